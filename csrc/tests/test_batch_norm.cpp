// batch_norm_fprop and batch_norm_dgrad against naive loops: every epilogue, odd extents, no pixels, guard pages. Of
// maps of bfloat16 they are what float32 makes of the same values, rounded once.
#include "bf16.h"
#include "reference.h"
#include "vggfast/batch_norm.h"

namespace vggfast::test {
namespace {

constexpr double roundings = 64;

struct Case {
  int64_t n, c, h, w;
  Epilogue e;
  bool training, affine;

  std::string name() const {
    std::ostringstream out;
    out << describe({n, c, h, w}) << " relu " << e.relu << " pool " << e.pool << " training " << training << " affine "
        << affine;
    return out.str();
  }
};

template <class Visit>
void for_each_value(const Array& x, Visit visit) {
  for (int64_t n = 0; n < x.n; ++n)
    for (int64_t c = 0; c < x.c; ++c)
      for (int64_t i = 0; i < x.h * x.w; ++i) visit(n, c, i);
}

/// Mean (0) and variance (1) of each channel; zeros where there is no pixel.
std::pair<Array, Array> moments(const Array& x) {
  const double count = std::max<double>(1, static_cast<double>(x.n * x.h * x.w));
  Array mean(1, x.c, 1, 1), var(1, x.c, 1, 1);
  for_each_value(x, [&](auto n, auto c, auto i) { mean.at(0, c, 0, 0) += x.at(n, c, 0, i) / count; });
  for_each_value(x, [&](auto n, auto c, auto i) {
    var.at(0, c, 0, 0) += std::pow(x.at(n, c, 0, i) - mean.at(0, c, 0, 0), 2) / count;
  });
  return {mean, var};
}

void check(const Case& k, Random& random) {
  const double eps = 0.25;
  const Array x = random.array(Fill::reals, k.n, k.c, k.h, k.w);
  const Array weight = random.array(Fill::reals, 1, k.c, 1, 1), bias = random.array(Fill::reals, 1, k.c, 1, 1);
  Array mean = random.array(Fill::reals, 1, k.c, 1, 1), var = absolute(random.array(Fill::reals, 1, k.c, 1, 1));
  if (k.training) std::tie(mean, var) = moments(x);
  const auto inverse = [&](int64_t c) { return 1 / std::sqrt(var.at(0, c, 0, 0) + eps); };
  const auto scale = [&](int64_t c) { return inverse(c) * (k.affine ? weight.at(0, c, 0, 0) : 1); };

  Array z(k.n, k.c, k.h, k.w);
  for_each_value(x, [&](auto n, auto c, auto i) {
    const double b = k.affine ? bias.at(0, c, 0, 0) : 0;
    z.at(n, c, 0, i) = (x.at(n, c, 0, i) - mean.at(0, c, 0, 0)) * scale(c) + b;
  });
  const Chosen output = select(z, k.e, false), chosen = choose(z, k.e, false, random);
  Array y_size = output.y, gx_size(k.n, k.c, k.h, k.w), channel_size(1, k.c, 1, 1), ones(1, k.c, 1, 1);
  for (double& v : y_size.values) v = 8;
  for (double& v : gx_size.values) v = 32;
  for (double& v : channel_size.values) v = static_cast<double>(1 + k.n * k.h * k.w);
  for (double& v : ones.values) v = 1;

  const Array gy = random.array(Fill::reals, k.n, k.c, output.y.h, output.y.w);
  const Array g = scatter(gy, chosen.from, k.e, k.h, k.w);
  Array gw(1, k.c, 1, 1), gb(1, k.c, 1, 1), gx(k.n, k.c, k.h, k.w);
  for_each_value(x, [&](auto n, auto c, auto i) {
    gb.at(0, c, 0, 0) += g.at(n, c, 0, i);
    gw.at(0, c, 0, 0) += g.at(n, c, 0, i) * (x.at(n, c, 0, i) - mean.at(0, c, 0, 0)) * inverse(c);
  });
  for_each_value(x, [&](auto n, auto c, auto i) {
    const double normal = (x.at(n, c, 0, i) - mean.at(0, c, 0, 0)) * inverse(c);
    const double common = (gb.at(0, c, 0, 0) + normal * gw.at(0, c, 0, 0)) / static_cast<double>(k.n * k.h * k.w);
    gx.at(n, c, 0, i) = scale(c) * (g.at(n, c, 0, i) - (k.training ? common : 0));
  });

  for_each_setting([&](DType dtype, const std::string& setting) {
    const Held held_x = put(dtype, x), held_gy = put(dtype, gy);
    const Held held_weight = put_vector(dtype, weight), held_bias = put_vector(dtype, bias);
    const bool masked = k.e.relu || k.e.pool;
    const Held bits = put_mask(k.e, chosen.from, chosen.window, true);
    const Tensor* w = k.affine ? &held_weight.view : nullptr;
    const Tensor* b = k.affine ? &held_bias.view : nullptr;
    std::unique_ptr<Held> first[2];
    for (int threads : {1, 2, 3}) {
      const std::string name = setting + " " + k.name() + " threads " + std::to_string(threads);
      const Held held_mean = k.training ? make_vector(dtype, k.c) : put_vector(dtype, mean);
      const Held held_var = k.training ? make_vector(dtype, k.c) : put_vector(dtype, var);
      auto y = std::make_unique<Held>(make_nhwc(dtype, k.n, k.c, output.y.h, output.y.w));
      const Held mask = make_mask(k.e, k.n, k.c, output.y.h, output.y.w);
      const BatchNorm norm{k.training, eps};
      const HeldWorkspace forward(batch_norm_fprop_workspace(held_x, {threads}));
      batch_norm_fprop(held_x, w, b, norm, k.e, held_mean, held_var, *y, masked ? &mask.view : nullptr, forward,
                       {threads});
      CHECK_NEAR(held_mean, mean, roundings, ones, "mean ", name);
      CHECK_NEAR(held_var, var, roundings, ones, "var ", name);
      CHECK_NEAR(*y, output.y, roundings, y_size, "y ", name);
      if (masked) CHECK_NEAR(*y, gather(z, mask, k.e), roundings, y_size, "mask ", name);
      auto out = std::make_unique<Held>(make_nhwc(dtype, k.n, k.c, k.h, k.w));
      const Held out_gw = make_vector(dtype, k.c), out_gb = make_vector(dtype, k.c);
      const HeldWorkspace backward(batch_norm_dgrad_workspace(held_x, {threads}));
      batch_norm_dgrad(held_gy, {masked ? &bits.view : nullptr, k.e}, held_x, w, norm, held_mean, held_var, *out,
                       k.affine ? &out_gw.view : nullptr, k.affine ? &out_gb.view : nullptr, backward, {threads});
      CHECK_NEAR(*out, gx, roundings, gx_size, "gx ", name);
      if (k.affine) CHECK_NEAR(out_gw, gw, roundings, channel_size, "gw ", name);
      if (k.affine) CHECK_NEAR(out_gb, gb, roundings, channel_size, "gb ", name);
      if (!first[0]) {
        first[0] = std::move(y);
        first[1] = std::move(out);
        continue;
      }
      CHECK(y->same_bytes(*first[0]), "y ", name);
      CHECK(out->same_bytes(*first[1]), "gx ", name);
    }
  });
}

/// Maps of float32 in bfloat16; no test has NaN.
Held narrowed(const Tensor& from) {
  Held held = make_nhwc(DType::bf16, from.size(0), from.size(1), from.size(2), from.size(3));
  for (int64_t i = 0; i < from.numel(); ++i) {
    held.view.as<uint16_t>()[i] = bits_of(rounded_to_bf16(from.as<float>()[i]));
  }
  return held;
}

/// All that one call forward and one back write, for maps of a dtype; those of bfloat16 hold the same values.
struct Written {
  Held y, mask, mean, var, gx, gw, gb;
};

Written run(DType dtype, const Case& k, const Array& x, const Array& gy, const Array& weight) {
  const DType wide = DType::f32;
  const auto maps = [&](const Array& a) {
    Held held = put(wide, a);
    return dtype == wide ? std::move(held) : narrowed(held);
  };
  const Held held_x = maps(x), held_gy = maps(gy), held_weight = put_vector(wide, weight);
  const auto given = [&] { return k.training ? make_vector(wide, k.c) : put_vector(wide, absolute(weight)); };
  const bool masked = k.e.relu || k.e.pool;
  Written out{make_nhwc(dtype, k.n, k.c, gy.h, gy.w),
              make_mask(k.e, k.n, k.c, gy.h, gy.w),
              given(),
              given(),
              make_nhwc(dtype, k.n, k.c, k.h, k.w),
              make_vector(wide, k.c),
              make_vector(wide, k.c)};
  const BatchNorm norm{k.training, 0.25};
  const HeldWorkspace forward(batch_norm_fprop_workspace(held_x, {2}));
  batch_norm_fprop(held_x, &held_weight.view, &held_weight.view, norm, k.e, out.mean, out.var, out.y,
                   masked ? &out.mask.view : nullptr, forward, {2});
  const HeldWorkspace backward(batch_norm_dgrad_workspace(held_x, {2}));
  batch_norm_dgrad(held_gy, {masked ? &out.mask.view : nullptr, k.e}, held_x, &held_weight.view, norm, out.mean,
                   out.var, out.gx, &out.gw.view, &out.gb.view, backward, {2});
  return out;
}

void check_bf16(const Case& k, Random& random) {
  const int64_t step = k.e.pool ? 2 : 1;
  const Array x = random.array(Fill::integers, k.n, k.c, k.h, k.w);
  const Array gy = random.array(Fill::integers, k.n, k.c, k.h / step, k.w / step);
  const Array weight = random.array(Fill::reals, 1, k.c, 1, 1);
  for (const std::string& isa : cpu_isas()) {
    set_cpu_isa(isa);
    const std::string name = isa + " bfloat16 " + k.name();
    const Written narrow = run(DType::bf16, k, x, gy, weight), wide = run(DType::f32, k, x, gy, weight);
    CHECK(narrow.y.same_bytes(narrowed(wide.y)), "y ", name);
    CHECK(narrow.gx.same_bytes(narrowed(wide.gx)), "gx ", name);
    CHECK(narrow.mask.same_bytes(wide.mask), "mask ", name);
    CHECK(narrow.mean.same_bytes(wide.mean) && narrow.var.same_bytes(wide.var), "statistics ", name);
    CHECK(narrow.gw.same_bytes(wide.gw) && narrow.gb.same_bytes(wide.gb), "gw and gb ", name);
  }
}

void run_all() {
  Random random(17);
  for (bool training : {true, false})
    for (bool affine : {true, false})
      for (const Epilogue e : {Epilogue{}, Epilogue{true, false}, Epilogue{false, true}, Epilogue{true, true}})
        for (const auto& [n, c, h, w] : {std::array<int64_t, 4>{2, 1, 2, 2},
                                         {1, 7, 5, 4},
                                         {2, 17, 3, 67},
                                         {3, 64, 6, 7},
                                         {1, 33, 70, 2},
                                         {0, 17, 3, 3}}) {
          check({n, c, h, w, e, training, affine}, random);
          if (affine) check_bf16({n, c, h, w, e, training, affine}, random);
        }
}

}  // namespace
}  // namespace vggfast::test

int main() {
  vggfast::test::run_all();
  return vggfast::test::result();
}
