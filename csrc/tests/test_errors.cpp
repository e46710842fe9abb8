// What the ops refuse, and that the error's text names the argument, its value and what is allowed. Nothing is written.
#include <cstdlib>
#include <limits>

#include "reference.h"
#include "vggfast/build_info.h"
#include "vggfast/conv.h"

namespace vggfast::test {
namespace {

constexpr DType f32 = DType::f32;
constexpr Context one_thread{1};

/// A tensor's view with something changed.
template <class Change>
Tensor with(const Tensor& t, Change change) {
  Tensor out = t;
  change(out);
  return out;
}
Tensor of_shape(const Tensor& t, std::vector<int64_t> shape) {
  return with(t, [&](Tensor& out) { out.shape = std::move(shape); });
}
Tensor of_strides(const Tensor& t, std::vector<int64_t> strides) {
  return with(t, [&](Tensor& out) { out.strides = std::move(strides); });
}
Tensor of_dtype(const Tensor& t, DType dtype) {
  return with(t, [&](Tensor& out) { out.dtype = dtype; });
}
Tensor on_cuda(const Tensor& t) {
  return with(t, [](Tensor& out) { out.device = Device::cuda; });
}
bool untouched(const Held& held) {
  const auto* bytes = static_cast<const unsigned char*>(held.memory->data());
  for (size_t i = 0; i < held.memory->bytes(); ++i) {
    if (bytes[i] != 0xFF) return false;
  }
  return true;
}

/// One convolution that is right, to be made wrong one argument at a time.
struct Conv {
  Held x = make_nhwc(f32, 2, 3, 5, 4), weight = make(f32, {7, 3, 3, 3}, {0, 1, 2, 3}), bias = make_vector(f32, 7);
  Held y = make_nhwc(f32, 2, 7, 5, 4), gw = make(f32, {7, 3, 3, 3}, {0, 1, 2, 3});
  Held mask = make_mask({.relu = true}, 2, 7, 5, 4);
  Held output_x = make_nhwc(f32, 2, 3, 5, 4);

  void fprop(const Tensor& x_, const Tensor& weight_, const Tensor& bias_, const Tensor& y_, const Tensor& mask_,
             Epilogue e = {.relu = true}) {
    const HeldWorkspace workspace(conv_fprop_workspace(x, weight, e, one_thread));
    conv_fprop(x_, weight_, &bias_, e, y_, &mask_, workspace, one_thread);
  }
};

void check_conv_inputs() {
  Conv c;
  const auto x = [&](const Tensor& wrong) { c.fprop(wrong, c.weight, c.bias, c.y, c.mask); };
  CHECK_ERROR(x(of_shape(c.x, {2, 3, 20})), "x must have 4 axes (N, C, H, W), got shape (2, 3, 20)");
  CHECK_ERROR(x(of_shape(c.x, {})), "x must have 4 axes (N, C, H, W), got shape ()");
  CHECK_ERROR(x(of_shape(c.x, {-1, 3, 5, 4})), "x must have extents of at least 0, got shape (-1, 3, 5, 4)");
  CHECK_ERROR(x(of_strides(c.x, {60, 20, 4, 1})),
              "x must be dense NHWC (channels_last), got strides (60, 20, 4, 1) for shape (2, 3, 5, 4)");
  CHECK_ERROR(x(of_strides(c.x, {120, 1, 12, 3})), "x must be dense NHWC (channels_last), got strides (120, 1, 12, 3)");
  CHECK_ERROR(x(of_dtype(c.x, DType::u8)), "weight must be uint8, got float32");
  CHECK_ERROR(x(on_cuda(c.x)), "weight must be on cuda, got cpu");
  CHECK_ERROR(x(of_dtype(c.x, DType::f64)), "weight must be float64, got float32");

  const auto weight = [&](const Tensor& wrong) { c.fprop(c.x, wrong, c.bias, c.y, c.mask); };
  for (const auto& shape : std::vector<std::vector<int64_t>>{{7, 27}, {7, 3, 5, 5}, {7, 3, 2, 2}, {7, 3, 1, 3}}) {
    CHECK_ERROR(weight(of_shape(c.weight, shape)), "weight must have shape (Cout, Cin, 3, 3) or (Cout, Cin, 1, 1)",
                ("got " + describe(shape)).c_str());
  }
  CHECK_ERROR(weight(of_shape(c.weight, {0, 3, 3, 3})),
              "weight must have at least one input and one output channel, got shape (0, 3, 3, 3)");
  CHECK_ERROR(weight(of_shape(c.weight, {7, 4, 3, 3})),
              "weight must have 3 channels on axis 1, as many as x, got shape (7, 4, 3, 3)");
  CHECK_ERROR(weight(of_dtype(c.weight, DType::f64)), "weight must be float32, got float64");
  CHECK_ERROR(weight(on_cuda(c.weight)), "weight must be on cpu, got cuda");
  CHECK(untouched(c.y) && untouched(c.mask));
}

void check_conv_outputs() {
  Conv c;
  const auto bias = [&](const Tensor& wrong) { c.fprop(c.x, c.weight, wrong, c.y, c.mask); };
  CHECK_ERROR(bias(of_shape(c.bias, {6})), "bias must have shape (7), got (6)");
  CHECK_ERROR(bias(of_dtype(c.bias, DType::f64)), "bias must be float32, got float64");
  CHECK_ERROR(bias(of_strides(c.bias, {2})), "bias is not contiguous");

  const auto y = [&](const Tensor& wrong) { c.fprop(c.x, c.weight, c.bias, wrong, c.mask); };
  CHECK_ERROR(y(of_shape(c.y, {2, 7, 20})), "y must have 4 axes (N, C, H, W), got shape (2, 7, 20)");
  CHECK_ERROR(y(of_strides(c.y, {140, 20, 4, 1})), "y must be dense NHWC (channels_last), got strides (140, 20, 4, 1)");
  CHECK_ERROR(y(make_nhwc(f32, 2, 8, 5, 4)), "y must have shape (2, 7, 5, 4), got (2, 8, 5, 4)");
  CHECK_ERROR(y(of_dtype(c.y, DType::f64)), "y must be float32, got float64");
  CHECK_ERROR(c.fprop(c.x, c.weight, c.bias, make_nhwc(f32, 2, 7, 3, 2), c.mask, {.pool = true}),
              "y must have shape (2, 7, 2, 2), got (2, 7, 3, 2)");

  const auto mask = [&](const Tensor& wrong) { c.fprop(c.x, c.weight, c.bias, c.y, wrong); };
  CHECK_ERROR(mask(of_shape(c.mask, {2, 2, 5, 4, 1})), "mask must have shape (2, 1, 5, 4, 1), got (2, 2, 5, 4, 1)");
  CHECK_ERROR(mask(of_dtype(c.mask, f32)), "mask must be uint8, got float32");
  CHECK_ERROR(mask(of_strides(c.mask, {20, 20, 1, 5, 1})), "mask is not contiguous");
  CHECK_ERROR(c.fprop(c.x, c.weight, c.bias, c.y, c.mask, {}), "neither ReLU nor pool");
  CHECK(untouched(c.y) && untouched(c.mask));
}

void check_conv_dgrad() {
  Conv c;
  const Tensor &gy = c.y, &weight = c.weight, &gx = c.output_x;
  const Masked masked{.mask = &c.mask.view, .epilogue = {.relu = true}};
  const HeldWorkspace workspace(conv_dgrad_workspace(gy, masked, weight, 5, 4, one_thread));
  const auto dgrad = [&](const Tensor& gy_, const Masked& masked_, const Tensor& weight_, const Tensor& gx_) {
    conv_dgrad(gy_, masked_, weight_, gx_, workspace, one_thread);
  };
  const auto asked = [&](const Tensor& gy_, const Masked& masked_, int64_t h, int64_t w) {
    (void)conv_dgrad_workspace(gy_, masked_, weight, h, w, one_thread);
  };
  CHECK_ERROR(dgrad(of_shape(gy, {2, 7, 20}), {}, weight, gx),
              "gy must have 4 axes (N, C, H, W), got shape (2, 7, 20)");
  CHECK_ERROR(dgrad(gy, {}, of_shape(weight, {6, 3, 3, 3}), gx),
              "weight must have 7 channels on axis 0, as many as gy, got shape (6, 3, 3, 3)");
  CHECK_ERROR(dgrad(gy, {}, weight, make_nhwc(f32, 2, 3, 4, 5)), "gy must have H 4 and W 5, got shape (2, 7, 5, 4)");
  CHECK_ERROR(dgrad(gy, {}, weight, make_nhwc(f32, 2, 2, 5, 4)), "gx must have shape (2, 3, 5, 4), got (2, 2, 5, 4)");
  CHECK_ERROR(dgrad(gy, {}, of_dtype(weight, DType::f64), gx), "weight must be float32, got float64");
  CHECK_ERROR(asked(gy, {}, 5, 3), "gy must have H 5 and W 3, got shape (2, 7, 5, 4)");

  // Extents that fit no mask: gy is as large as the map before the pool, or the map belongs to another gy.
  for (const Epilogue& e : {Epilogue{.relu = false, .pool = true}, Epilogue{.relu = true, .pool = true}}) {
    const Held bits = make_mask(e, 2, 7, 2, 2), small = make_nhwc(f32, 2, 7, 2, 2);
    const Masked pooled{.mask = &bits.view, .epilogue = e};
    CHECK_ERROR(dgrad(gy, pooled, weight, gx), "gy must have H 2 and W 2, got shape (2, 7, 5, 4)");
    CHECK_ERROR(asked(gy, pooled, 5, 4), "gy must have H 2 and W 2, got shape (2, 7, 5, 4)");
    CHECK_ERROR(asked(small, pooled, 6, 4), "gy must have H 3 and W 2, got shape (2, 7, 2, 2)");
    CHECK_ERROR(asked(small, masked, 2, 2), "mask must have shape (2, 1, 2, 2, 1), got (2, 1, 5, 4, 1)");
    CHECK_ERROR(dgrad(small, {.mask = &bits.view, .epilogue = {.relu = true}}, weight, gx),
                "gy must have H 5 and W 4, got shape (2, 7, 2, 2)");
  }
  const auto mask = [&](const Tensor& wrong, Epilogue e) { dgrad(gy, {.mask = &wrong, .epilogue = e}, weight, gx); };
  CHECK_ERROR(mask(of_dtype(c.mask, f32), {.relu = true}), "mask must be uint8, got float32");
  CHECK_ERROR(mask(of_shape(c.mask, {2, 1, 5, 4, 2}), {.relu = true}),
              "mask must have shape (2, 1, 5, 4, 1), got (2, 1, 5, 4, 2)");
  CHECK_ERROR(mask(of_strides(c.mask, {20, 20, 1, 5, 1}), {.relu = true}), "mask is not contiguous");
  CHECK_ERROR(mask(c.mask, {}), "neither ReLU nor pool");
  const Held bits = make_mask({.relu = true, .pool = true}, 2, 3, 5, 4);
  CHECK_ERROR(conv_dgrad(gy, {}, weight, gx, workspace, one_thread, &bits.view),
              "x_mask must have shape (2, 1, 5, 4, 1), got (2, 3, 5, 4, 1)");
  CHECK(untouched(c.output_x));
}

void check_conv_wgrad() {
  Conv c;
  const Tensor& gy = c.y;
  const Masked masked{.mask = &c.mask.view, .epilogue = {.relu = true}};
  const HeldWorkspace sums(conv_wgrad_workspace(c.x, gy, masked, 3, one_thread));
  const auto wgrad = [&](const Tensor& x, const Tensor& gy_, const Tensor& gw, const Tensor& gb,
                         const Masked& masked_ = {}) { conv_wgrad(x, gy_, masked_, gw, &gb, sums, one_thread); };
  CHECK_ERROR(wgrad(of_strides(c.x, {60, 20, 4, 1}), gy, c.gw, c.bias),
              "x must be dense NHWC (channels_last), got strides (60, 20, 4, 1)");
  CHECK_ERROR(wgrad(c.x, make_nhwc(f32, 2, 7, 4, 5), c.gw, c.bias), "gy must have H 5 and W 4, got shape (2, 7, 4, 5)");
  CHECK_ERROR(wgrad(c.x, make_nhwc(f32, 1, 7, 5, 4), c.gw, c.bias),
              "gy must have shape (2, 7, 5, 4), got (1, 7, 5, 4)");
  CHECK_ERROR(wgrad(c.x, make_nhwc(f32, 2, 6, 5, 4), c.gw, c.bias),
              "gy must have shape (2, 7, 5, 4), got (2, 6, 5, 4)");
  CHECK_ERROR(wgrad(c.x, of_dtype(gy, DType::f64), c.gw, c.bias), "gy must be float32, got float64");
  CHECK_ERROR(wgrad(c.x, gy, of_dtype(c.gw, DType::f64), c.bias), "gw must be float32, got float64");
  CHECK_ERROR(wgrad(c.x, gy, of_shape(c.gw, {7, 4, 3, 3}), c.bias),
              "weight must have 3 channels on axis 1, as many as x, got shape (7, 4, 3, 3)");
  CHECK_ERROR(wgrad(c.x, gy, c.gw, of_shape(c.bias, {3})), "gb must have shape (7), got (3)");
  const Epilogue both{.relu = true, .pool = true};
  const Held bits = make_mask(both, 2, 7, 2, 2);
  CHECK_ERROR(wgrad(c.x, gy, c.gw, c.bias, {.mask = &bits.view, .epilogue = both}),
              "gy must have H 2 and W 2, got shape (2, 7, 5, 4)");
  CHECK_ERROR(wgrad(c.x, gy, c.gw, c.bias, {.mask = &bits.view, .epilogue = {.relu = true}}),
              "mask must have shape (2, 1, 5, 4, 1), got (2, 3, 2, 2, 1)");
  CHECK_ERROR(conv_wgrad_workspace(c.x, gy, {}, 5, one_thread), "kernel must be 1 or 3, got 5");
  CHECK_ERROR(conv_fprop_workspace(of_dtype(c.x, DType::u8), c.weight, {}, one_thread),
              "x must be float32 or float64, or bfloat16 on instruction set amx or amx-emulated, got uint8");
  CHECK_ERROR(conv_fprop_workspace(on_cuda(c.x), c.weight, {}, one_thread), "x must be on cpu, got cuda");
  CHECK(untouched(c.gw) && untouched(c.bias));
}

/// A workspace one byte short of what the op's own function says.
void check_workspaces() {
  for_each_setting([&](DType dtype, const std::string& setting) {
    const Held x = make_nhwc(dtype, 1, 3, 2, 2), y = make_nhwc(dtype, 1, 7, 2, 2), gx = make_nhwc(dtype, 1, 3, 2, 2);
    const Held weight = make(dtype, {7, 3, 3, 3}, {0, 1, 2, 3}), gw = make(dtype, {7, 3, 3, 3}, {0, 1, 2, 3});
    const Held bits = make_mask({.relu = true}, 1, 7, 2, 2);
    const Context context{3};
    const auto check = [&](size_t bytes, auto run) {
      const std::string text =
          "workspace must have at least " + std::to_string(bytes) + " bytes, got " + std::to_string(bytes - 1);
      CHECK_ERROR(run(HeldWorkspace(bytes - 1)), text.c_str());
    };
    for (const char* algorithm : {"direct", "winograd2", "winograd4", "winograd6"}) {
      set_conv_algorithm(algorithm);
      for (const Masked& s : {Masked{}, Masked{.mask = &bits.view, .epilogue = {.relu = true}}}) {
        check(conv_dgrad_workspace(y, s, weight, 2, 2, context),
              [&](const HeldWorkspace& w) { conv_dgrad(y, s, weight, gx, w, context); });
        check(conv_wgrad_workspace(x, y, s, 3, context),
              [&](const HeldWorkspace& w) { conv_wgrad(x, y, s, gw, nullptr, w, context); });
      }
      check(conv_fprop_workspace(x, weight, {}, context),
            [&](const HeldWorkspace& w) { conv_fprop(x, weight, nullptr, {}, y, nullptr, w, context); });
    }
    check(lrn_dgrad_workspace(x, context), [&](const HeldWorkspace& w) { lrn_dgrad(x, x, {}, gx, w, context); });
    CHECK(untouched(y) && untouched(gx) && untouched(gw), setting);
  });
  set_conv_algorithm("auto");
}

void check_pools() {
  const Epilogue e{.relu = false, .pool = true};
  const Held x = make_nhwc(f32, 2, 3, 5, 4), y = make_nhwc(f32, 2, 3, 2, 2), bits = make_mask(e, 2, 3, 2, 2);
  const Held sums = make(f32, {2, 3}, {0, 1}), odd = make_nhwc(f32, 2, 3, 4, 2);
  const auto pool = [&](const Tensor& x_, const Tensor& y_, const Tensor& bits_) {
    max_pool2x2(x_, y_, &bits_, one_thread);
  };
  CHECK_ERROR(pool(of_shape(x, {2, 3, 20}), y, bits), " must have 4 axes (N, C, H, W), got shape (2, 3, 20)");
  CHECK_ERROR(pool(of_strides(x, {60, 20, 4, 1}), y, bits),
              " must be dense NHWC (channels_last), got strides (60, 20, 4, 1)");
  CHECK_ERROR(pool(of_dtype(x, DType::u8), y, bits), "x must be float32 or float64, got uint8");
  CHECK_ERROR(pool(on_cuda(x), y, bits), "x must be on cpu, got cuda");
  CHECK_ERROR(pool(x, of_dtype(y, DType::f64), bits), "y must be float32, got float64");
  CHECK_ERROR(pool(x, odd, bits), "y must have shape (2, 3, 2, 2), got (2, 3, 4, 2)");
  CHECK_ERROR(pool(x, y, of_shape(bits, {2, 3, 2, 2, 1})), "mask must have shape (2, 2, 2, 2, 1), got (2, 3, 2, 2, 1)");
  CHECK_ERROR(mask_gather(x, bits, {}, x, one_thread), "neither ReLU nor pool");
  CHECK_ERROR(mask_gather(of_dtype(x, DType::u8), bits, e, y, one_thread), "z must be float32 or float64, got uint8");
  CHECK_ERROR(mask_scatter(odd, bits, e, x, one_thread), "y must have shape (2, 3, 2, 2), got (2, 3, 4, 2)");
  CHECK_ERROR(mask_scatter(y, of_dtype(bits, f32), e, x, one_thread), "mask must be uint8, got float32");

  CHECK_ERROR(sum_pool(of_shape(x, {2, 3}), false, sums, one_thread),
              "x must have 4 axes (N, C, H, W), got shape (2, 3)");
  CHECK_ERROR(sum_pool(x, false, of_shape(sums, {3, 2}), one_thread), "y must have shape (2, 3), got (3, 2)");
  CHECK_ERROR(sum_pool(x, false, of_strides(sums, {1, 2}), one_thread), "y is not contiguous");
  CHECK_ERROR(sum_pool(x, false, of_strides(sums, {6, 1}), one_thread), "y is not contiguous");
  CHECK_ERROR(sum_pool(x, false, of_dtype(sums, DType::f64), one_thread), "y must be float32, got float64");
  CHECK(untouched(x) && untouched(y) && untouched(bits) && untouched(sums));
}

void check_lrn() {
  const Held x = make_nhwc(f32, 2, 3, 5, 4), y = make_nhwc(f32, 2, 3, 5, 4);
  const HeldWorkspace workspace(lrn_dgrad_workspace(x, one_thread));
  CHECK_ERROR(lrn_fprop(of_shape(x, {2, 3}), {}, y, one_thread), "x must have 4 axes (N, C, H, W), got shape (2, 3)");
  CHECK_ERROR(lrn_fprop(of_strides(x, {60, 20, 4, 1}), {}, y, one_thread),
              "x must be dense NHWC (channels_last), got strides (60, 20, 4, 1)");
  CHECK_ERROR(lrn_fprop(x, {}, of_shape(y, {2, 3, 4, 5}), one_thread),
              "y must be dense NHWC (channels_last), got strides", "for shape (2, 3, 4, 5)");
  CHECK_ERROR(lrn_fprop(x, {}, of_dtype(y, DType::f64), one_thread), "y must be float32, got float64");
  CHECK_ERROR(lrn_fprop(x, {.size = 0}, y, one_thread), "size must be at least 1, got 0");
  CHECK_ERROR(lrn_fprop(of_dtype(x, DType::u8), {}, of_dtype(y, DType::u8), one_thread),
              "x must be float32 or float64, got uint8");
  CHECK_ERROR(lrn_dgrad_workspace(of_shape(x, {}), one_thread), "x must have 4 axes (N, C, H, W), got shape ()");
  CHECK_ERROR(lrn_dgrad(of_dtype(x, DType::f64), x, {}, y, workspace, one_thread), "gy must be float32, got float64");
  CHECK_ERROR(lrn_dgrad(x, x, {.size = -3}, y, workspace, one_thread), "size must be at least 1, got -3");
  CHECK(untouched(x) && untouched(y));
}

/// First of all: what VGGFAST_CPU_ISA says counts when the instruction set is first asked for.
void check_isas() {
  const char* before = std::getenv("VGGFAST_CPU_ISA");
  const std::string kept = before ? before : "";
  setenv("VGGFAST_CPU_ISA", "abacus", 1);
  CHECK_ERROR(cpu_isa(), "VGGFAST_CPU_ISA must be one of amx-emulated, portable", "got 'abacus'");
  setenv("VGGFAST_CPU_ISA", kept.c_str(), 1);
  const std::vector<std::string> isas = cpu_isas();
  CHECK_EQUAL(cpu_isa(), kept.empty() ? isas.back() : kept);
  CHECK_EQUAL(isas.front(), "amx-emulated");
  for (const std::string& isa : isas) {
    set_cpu_isa(isa);
    CHECK_EQUAL(cpu_isa(), isa);
    CHECK_ERROR(set_cpu_isa("abacus"), "isa must be one of amx-emulated, portable", "on this machine, got 'abacus'",
                isa.c_str());
    CHECK_EQUAL(cpu_isa(), isa, "after an unknown one was asked for");
  }
}

/// bfloat16 on the instruction sets that have it, and on one that has not.
void check_bf16() {
  const std::string before = cpu_isa();
  Conv c;
  const Tensor x = of_dtype(c.x, DType::bf16), gy = of_dtype(c.y, DType::bf16),
               weight = of_dtype(c.weight, DType::bf16);
  set_cpu_isa("amx-emulated");
  CHECK(conv_takes(DType::bf16) && conv_takes(DType::f64) && !conv_takes(DType::f16));
  const size_t bytes = conv_fprop_workspace(x, weight, {}, one_thread);
  CHECK_ERROR(conv_fprop(x, weight, nullptr, {}, gy, nullptr, HeldWorkspace(bytes - 1), one_thread),
              ("workspace must have at least " + std::to_string(bytes)).c_str());
  CHECK_ERROR(conv_fprop(x, c.weight, nullptr, {}, gy, nullptr, HeldWorkspace(bytes), one_thread),
              "weight must be bfloat16, got float32");
  const size_t sums = conv_wgrad_workspace(x, gy, {}, 3, one_thread);
  CHECK_ERROR(conv_wgrad(x, gy, {}, c.gw, nullptr, HeldWorkspace(sums - 1), one_thread),
              ("workspace must have at least " + std::to_string(sums)).c_str());
  CHECK_ERROR(conv_wgrad(x, gy, {}, weight, nullptr, HeldWorkspace(sums), one_thread),
              "gw must be float32, got bfloat16");
  set_cpu_isa("portable");
  CHECK(!conv_takes(DType::bf16));
  const char* refusal = "or bfloat16 on instruction set amx or amx-emulated, got bfloat16 on portable";
  CHECK_ERROR(conv_fprop_workspace(x, weight, {}, one_thread), "x must be float32", refusal);
  CHECK_ERROR(conv_dgrad_workspace(gy, {}, weight, 5, 4, one_thread), "gy must be float32", refusal);
  CHECK_ERROR(conv_wgrad_workspace(x, gy, {}, 3, one_thread), "x must be float32", refusal);
  CHECK(untouched(c.y));
  set_cpu_isa(before);
}

void check_threads() {
  CHECK_ERROR(Context{1025}, "threads must be at most 1024, got 1025");
  CHECK_ERROR(Context{std::numeric_limits<int>::max()}, "threads must be at most 1024, got 2147483647");
  CHECK_EQUAL(int{Context{-3}.threads}, 1);
}

void check_build_info() {
  for (const auto& [name, value] : build_info()) CHECK(!name.empty() && !value.empty(), name, " is '", value, "'");
  CHECK(!build_info().empty());
}

}  // namespace
}  // namespace vggfast::test

int main() {
  using namespace vggfast::test;
  check_isas();
  check_conv_inputs();
  check_conv_outputs();
  check_conv_dgrad();
  check_conv_wgrad();
  check_workspaces();
  check_bf16();
  check_pools();
  check_lrn();
  check_threads();
  check_build_info();
  return result();
}
