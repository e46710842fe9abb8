// linear_fprop, linear_dgrad and linear_wgrad against naive loops over whole numbers, whose sums are exact: rows,
// outputs and inputs below, at and above the register tiles and blocks; aligned for streaming or not; any threads.
#include "reference.h"
#include "vggfast/linear.h"

namespace vggfast::test {
namespace {

struct Shape {
  int64_t rows, inputs, outputs;
};

Held make_matrix(int64_t rows, int64_t columns) { return make(DType::f32, {rows, columns}, {0, 1}); }

Held random_matrix(int64_t rows, int64_t columns, Random& random) {
  Held held = make_matrix(rows, columns);
  const Array values = random.array(Fill::integers, 1, 1, rows, columns);
  std::copy(values.values.begin(), values.values.end(), held.view.as<float>());
  return held;
}

/// sum over k of a[i, k] b[k, j], by strides of each.
Held product(int64_t rows, int64_t columns, int64_t terms, const float* a, int64_t a_row, int64_t a_term,
             const float* b, int64_t b_term, int64_t b_column, const float* bias) {
  Held out = make_matrix(rows, columns);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      float sum = bias ? bias[j] : 0;
      for (int64_t k = 0; k < terms; ++k) sum += a[i * a_row + k * a_term] * b[k * b_term + j * b_column];
      out.view.as<float>()[i * columns + j] = sum;
    }
  }
  return out;
}

void check(const Shape& s, Random& random) {
  const auto [n, in, out] = s;
  const Held x = random_matrix(n, in, random), weight = random_matrix(out, in, random),
             gy = random_matrix(n, out, random);
  const Held row = random_matrix(1, out, random);
  Tensor bias = row.view;
  bias.shape = {out};
  bias.strides = {1};
  const float *px = x.view.as<float>(), *pw = weight.view.as<float>(), *pgy = gy.view.as<float>();
  const Held plain = product(n, out, in, px, in, 1, pw, 1, in, nullptr);
  const Held biased = product(n, out, in, px, in, 1, pw, 1, in, bias.as<float>());
  const Held gx = product(n, in, out, pgy, out, 1, pw, in, 1, nullptr);
  const Held gw = product(out, in, n, pgy, 1, out, px, in, 1, nullptr);
  for (const std::string& isa : cpu_isas()) {
    set_cpu_isa(isa);
    for (int threads : {0, 1, 2, 3}) {
      std::ostringstream name;
      name << isa << " " << describe({n, in, out}) << " threads " << threads;
      const Held y = make_matrix(n, out), with_bias = make_matrix(n, out);
      const Held dgrad = make_matrix(n, in), wgrad = make_matrix(out, in);
      linear_fprop(x, weight, nullptr, y, {}, {threads});
      linear_fprop(x, weight, &bias, with_bias, {}, {threads});
      linear_dgrad(gy, weight, dgrad, {}, {threads});
      linear_wgrad(x, gy, wgrad, {}, {threads});
      CHECK(y.same_bytes(plain), "linear ", name.str());
      CHECK(with_bias.same_bytes(biased), "linear with bias ", name.str());
      CHECK(dgrad.same_bytes(gx), "linear_dgrad ", name.str());
      CHECK(wgrad.same_bytes(gw), "linear_wgrad ", name.str());
    }
  }
}

void check_errors() {
  const Held x = make_matrix(2, 5), weight = make_matrix(3, 5), y = make_matrix(2, 3);
  Tensor flat = x.view;
  flat.shape = {10};
  flat.strides = {1};
  CHECK_ERROR(linear_fprop(flat, weight, nullptr, y, {}, {1}), "x must have 2 axes, got shape (10)");
  CHECK_ERROR(linear_fprop(x, make_matrix(5, 3), nullptr, y, {}, {1}), "weight must have shape (3, 5), got ");
  CHECK_ERROR(linear_fprop(x, make(DType::f32, {3, 5}, {1, 0}), nullptr, y, {}, {1}), "weight is not contiguous");
  CHECK_ERROR(linear_fprop(x, weight, &y.view, y, {}, {1}), "bias must have shape (3), got ");
  CHECK_ERROR(linear_fprop(make(DType::f64, {2, 5}, {0, 1}), weight, nullptr, y, {}, {1}),
              "x must be float32, or bfloat16 on instruction set amx or amx-emulated, got float64 on ");
  CHECK_ERROR(linear_dgrad(y, weight, make_matrix(1, 5), {}, {1}), "gy must have shape (1, 3), got ");
  CHECK_ERROR(linear_wgrad(x, y, make_matrix(3, 4), {}, {1}), "gw must have shape (3, 5), got ");
}

void run_all() {
  Random random(3);
  const int64_t rows[] = {1, 2, 3, 5, 8, 9, 17}, outputs[] = {1, 2, 3, 4, 7, 16, 100},
                inputs[] = {1, 15, 16, 31, 33, 1024, 1061};
  for (size_t i = 0; i < std::size(rows); ++i) {
    for (size_t j = 0; j < std::size(rows); ++j) check({rows[i], inputs[j], outputs[(i + 2 * j) % 7]}, random);
  }
  for (const Shape& s : {Shape{0, 5, 3}, {3, 0, 5}, {3, 5, 0}, {2, 2048, 1400}, {2, 2050, 1400}}) check(s, random);
  check_errors();
}

}  // namespace
}  // namespace vggfast::test

int main() {
  vggfast::test::run_all();
  return vggfast::test::result();
}
