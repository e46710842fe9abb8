// lrn_fprop and lrn_dgrad against naive loops: odd, even and over-long windows, both ways to raise to -beta, NaN.
#include "reference.h"
#include "vggfast/lrn.h"

namespace vggfast::test {
namespace {

constexpr double roundings = 64;  // of a value's magnitude: window sums of up to 70 squares, and a power

/// s of one pixel: k + alpha / size * (sum of squares over the window of c).
double normaliser(const Array& x, LrnParams p, int64_t n, int64_t c, int64_t i) {
  double sum = 0;
  for (int64_t j = c - p.size / 2; j <= c + (p.size - 1) / 2; ++j) {
    if (j >= 0 && j < x.c) sum += x.at(n, j, 0, i) * x.at(n, j, 0, i);
  }
  return p.k + p.alpha / static_cast<double>(p.size) * sum;
}

Array lrn(const Array& x, LrnParams p) {
  Array y(x.n, x.c, x.h, x.w);
  for (int64_t n = 0; n < x.n; ++n)
    for (int64_t c = 0; c < x.c; ++c)
      for (int64_t i = 0; i < x.h * x.w; ++i) {
        y.at(n, c, 0, i) = x.at(n, c, 0, i) * std::pow(normaliser(x, p, n, c, i), -p.beta);
      }
  return y;
}

/// The gradient by the Jacobian dy[c] / dx[j], entry by entry; `size` gets the sum of the terms' magnitudes.
Array lrn_input_gradient(const Array& gy, const Array& x, LrnParams p, Array& size) {
  Array gx(x.n, x.c, x.h, x.w);
  for (int64_t n = 0; n < x.n; ++n)
    for (int64_t i = 0; i < x.h * x.w; ++i)
      for (int64_t c = 0; c < x.c; ++c) {
        const double s = normaliser(x, p, n, c, i), g = gy.at(n, c, 0, i);
        const auto add = [&](int64_t j, double term) {
          gx.at(n, j, 0, i) += term;
          size.at(n, j, 0, i) += std::fabs(term);
        };
        add(c, g * std::pow(s, -p.beta));
        for (int64_t j = 0; j < x.c; ++j) {
          if (j < c - p.size / 2 || j > c + (p.size - 1) / 2) continue;
          add(j, -g * x.at(n, c, 0, i) * p.beta * std::pow(s, -p.beta - 1) * p.alpha / static_cast<double>(p.size) * 2 *
                     x.at(n, j, 0, i));
        }
      }
  return gx;
}

struct Shape {
  int64_t n, c, h, w;
};

void check(const Shape& s, LrnParams p, Random& random) {
  const Array x = random.array(Fill::reals, s.n, s.c, s.h, s.w), gy = random.array(Fill::reals, s.n, s.c, s.h, s.w);
  const Array y = lrn(x, p);
  Array size(s.n, s.c, s.h, s.w);
  const Array gx = lrn_input_gradient(gy, x, p, size);
  for_each_setting([&](DType dtype, const std::string& setting) {
    const Held held_x = put(dtype, x), held_gy = put(dtype, gy);
    std::unique_ptr<Held> first_y, first_gx;
    for (int threads : {1, 2, 3}) {
      std::ostringstream name;
      name << setting << " " << describe({s.n, s.c, s.h, s.w}) << " size " << p.size << " beta " << p.beta
           << " threads " << threads;
      auto out_y = std::make_unique<Held>(make_nhwc(dtype, s.n, s.c, s.h, s.w));
      auto out_gx = std::make_unique<Held>(make_nhwc(dtype, s.n, s.c, s.h, s.w));
      lrn_fprop(held_x, p, *out_y, {threads});
      CHECK_NEAR(*out_y, y, roundings, absolute(y), "lrn ", name.str());
      const HeldWorkspace workspace(lrn_dgrad_workspace(held_x, {threads}));
      lrn_dgrad(held_gy, held_x, p, *out_gx, workspace, {threads});
      CHECK_NEAR(*out_gx, gx, roundings, size, "lrn gradient ", name.str());
      if (!first_y) {
        first_y = std::move(out_y);
        first_gx = std::move(out_gx);
        continue;
      }
      CHECK(out_y->same_bytes(*first_y), "lrn ", name.str());
      CHECK(out_gx->same_bytes(*first_gx), "lrn gradient ", name.str());
    }
  });
}

/// A NaN, and an infinity, reach the channels whose windows hold them, and no others: size 4 is c - 2 ... c + 1.
void check_special(double special) {
  Array x(1, 9, 1, 1);
  for (double& v : x.values) v = 1;
  const Array ones = x;
  x.at(0, 4, 0, 0) = special;
  const LrnParams p{.size = 4, .alpha = 2, .beta = 0.75, .k = 1};
  const Array expected = lrn(x, p);
  for_each_setting([&](DType dtype, const std::string& setting) {
    const Held held = put(dtype, x), y = make_nhwc(dtype, 1, 9, 1, 1);
    lrn_fprop(held, p, y, {1});
    CHECK_NEAR(y, expected, roundings, ones, setting, " lrn with ", special);
  });
}

/// No threads means one, in the workspace too.
void check_no_threads(Random& random) {
  const Array x = random.array(Fill::reals, 1, 17, 3, 3);
  Array size(1, 17, 3, 3);
  const Array gx = lrn_input_gradient(x, x, {}, size);
  for_each_setting([&](DType dtype, const std::string& setting) {
    const Held held = put(dtype, x), out = make_nhwc(dtype, 1, 17, 3, 3);
    const HeldWorkspace workspace(lrn_dgrad_workspace(held, {0}));
    lrn_dgrad(held, held, {}, out, workspace, {0});
    CHECK_NEAR(out, gx, roundings, size, setting, " lrn gradient with 0 threads");
  });
}

void run_all() {
  Random random(11);
  const LrnParams paper{.size = 5, .alpha = 1e-4, .beta = 0.75, .k = 2};
  for (int64_t c : {1, 3, 7, 17, 33, 70}) {
    check({2, c, 3, 5}, paper, random);
    for (int64_t size : {1, 2, 4, 5, 100}) {
      check({1, c, 3, 3}, {.size = size, .alpha = 3, .beta = 0.75, .k = 1}, random);
      check({1, c, 3, 3}, {.size = size, .alpha = 2.5, .beta = 0.6, .k = 0.5}, random);
    }
  }
  for (const Shape& s : {Shape{0, 17, 3, 3}, {2, 17, 0, 3}, {2, 0, 3, 3}, {1, 1, 1, 1}, {2, 70, 13, 11}}) {
    check(s, {.size = 5, .alpha = 1, .beta = 0.75, .k = 2}, random);
  }
  check_special(std::numeric_limits<double>::quiet_NaN());
  check_special(std::numeric_limits<double>::infinity());
  check_no_threads(random);
}

}  // namespace
}  // namespace vggfast::test

int main() {
  vggfast::test::run_all();
  return vggfast::test::result();
}
