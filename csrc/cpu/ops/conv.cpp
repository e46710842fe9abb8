// Convolution on the CPU: checks, and what the tensors of each pass are to an algorithm (cpu/algorithms/).
#include "vggfast/conv.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "core/conv_checks.h"
#include "cpu/algorithms/conv_algorithm.h"
#include "cpu/ops/dtypes.h"
#include "cpu/parallel.h"
#include "vggfast/cpu.h"
#include "vggfast/error.h"

namespace vggfast {
namespace {

using cpu::ConvInput;
using cpu::ConvPlan;
using cpu::Extent;
using cpu::extent_of;
using cpu::Pass;
using View = cpu::WeightView<void>;

/// Throws unless `t` is of a dtype that convolutions take, on the CPU.
void check_taken(const Tensor& t, const char* name) {
  VGGFAST_CHECK(t.device == Device::cpu, name, " must be on cpu, got ", name_of(t.device));
  VGGFAST_CHECK(conv_takes(t.dtype), name,
                " must be float32 or float64, or bfloat16 on instruction set amx or amx-emulated, got ",
                name_of(t.dtype), " on ", cpu_isa());
}

ConvPlan plan_fprop(const Tensor& x, const Tensor& weight, Epilogue e, Context context) {
  check_taken(x, "x");
  return cpu::choose({.dtype = x.dtype,
                      .in = extent_of(x),
                      .cout = weight.size(0),
                      .kernel = weight.size(2),
                      .epilogue = e,
                      .threads = context.threads,
                      .exact = context.exact});
}

/// Of a pass that reads gy. `in` and `cout` are as the problem has them.
ConvPlan plan_gradient(Pass pass, const Tensor& gy, const Masked& masked, Extent in, int64_t cout, int64_t kernel,
                       Context context) {
  return cpu::choose({.pass = pass,
                      .dtype = gy.dtype,
                      .in = in,
                      .cout = cout,
                      .kernel = kernel,
                      .epilogue = masked.mask ? masked.epilogue : Epilogue{},
                      .masked = masked.mask != nullptr,
                      .threads = context.threads,
                      .exact = context.exact});
}

ConvPlan plan_dgrad(const Tensor& gy, const Masked& masked, const Tensor& weight, int64_t h, int64_t w,
                    Context context) {
  check_taken(gy, "gy");
  return plan_gradient(Pass::dgrad, gy, masked, {gy.size(0), h, w, gy.size(1)}, weight.size(1), weight.size(2),
                       context);
}

ConvPlan plan_wgrad(const Tensor& x, const Tensor& gy, const Masked& masked, int64_t kernel, Context context) {
  check_taken(x, "x");
  return plan_gradient(Pass::wgrad, gy, masked, extent_of(x), gy.size(1), kernel, context);
}

/// Room for what widened() makes of weights, and behind it for the bias.
size_t widened_bytes(const Tensor& weight) {
  if (weight.dtype != DType::bf16) return 0;
  constexpr size_t line = 64;
  const auto floats = static_cast<size_t>(weight.numel() + weight.size(0));
  return (floats * sizeof(float) + line - 1) / line * line;
}

/// The weights as algorithms read them: those of bfloat16 as the same values in floats, written to `room`.
Tensor widened(const Tensor& weight, void* room, Context context) {
  if (weight.dtype != DType::bf16) return weight;
  const int64_t in = weight.size(1), kernel = weight.size(2), filter = in * kernel * kernel;
  const auto widen = [&](int64_t begin, int64_t end, int) {
    float* to = static_cast<float*>(room) + begin * filter;
    for (int64_t o = begin; o < end; ++o) {
      for (int64_t i = 0; i < in; ++i) {
        const uint16_t* from = weight.as<uint16_t>() + o * weight.stride(0) + i * weight.stride(1);
        for (int64_t r = 0; r < kernel; ++r) {
          for (int64_t s = 0; s < kernel; ++s) {
            *to++ = std::bit_cast<float>(uint32_t{from[r * weight.stride(2) + s * weight.stride(3)]} << 16);
          }
        }
      }
    }
  };
  cpu::parallel_ranges(weight.size(0), 1 + (1 << 14) / filter, context.threads, widen);
  return {room, DType::f32, weight.device, weight.shape, {filter, kernel * kernel, kernel, 1}};
}

/// The same of a dense bias, which may be null; `room` is behind the weights'.
const void* widened(const Tensor* bias, const Tensor& weight, void* room) {
  if (!bias || bias->dtype != DType::bf16) return bias ? bias->data : nullptr;
  float* to = static_cast<float*>(room) + weight.numel();
  cpu::kernels().to_float(bias->as<cpu::Bf16>(), bias->size(0), to);
  return to;
}

View view_of(const Tensor& weight) {
  return {weight.data,      weight.size(0),   weight.size(1),   weight.size(2),
          weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)};
}

/// The weights as dgrad sees them: transposed and flipped.
View flipped_view_of(const Tensor& weight) {
  const int64_t last_tap = (weight.size(2) - 1) * (weight.stride(2) + weight.stride(3));
  return {weight.as<const std::byte>() + last_tap * static_cast<int64_t>(size_of(weight.dtype)),
          weight.size(1),
          weight.size(0),
          weight.size(2),
          weight.stride(1),
          weight.stride(0),
          -weight.stride(2),
          -weight.stride(3)};
}

cpu::ConvOutput<void> output_of(Epilogue e, const Tensor& y, const Tensor* mask) {
  return {.y = y.data,
          .h = y.size(2),
          .w = y.size(3),
          .c = y.size(1),
          .relu = e.relu,
          .pool = e.pool,
          .mask = mask ? mask->as<uint8_t>() : nullptr};
}

// Packed weights are kept where packing would take this share of a call; or where they are small, as a share of x's
// bytes, and it would take the lesser share: what is kept has to be worth its memory.
constexpr double packing_share = 1.0 / 8, little_packing_share = 1.0 / 64, small_share = 1.0 / 2;
constexpr int64_t compared_bytes = 1 << 18;  // at a time, by one thread

/// The same as a plan by weights that were packed beforehand, whichever algorithm would be the cheapest for those: the
/// results are the same.
ConvPlan with_packed_weights(const ConvPlan& plan) {
  cpu::ConvProblem problem = plan.problem;
  problem.packed = true;
  return cpu::plan_with(*plan.algorithm, problem);
}

ConvPlan plan_packed(const Tensor& x, const Tensor& weight, Epilogue e, Context context) {
  check_nhwc(x, "x");
  check_kernel(weight, x.size(1), 1, "x");
  const ConvPlan plan = plan_fprop(x, weight, e, context);
  VGGFAST_CHECK(plan.algorithm->cost(plan.problem).packing > 0,
                "weight must be of a convolution whose weights are packed, got ", plan.algorithm->name);
  return with_packed_weights(plan);
}

/// Floats of a bias that is filled up to whole vectors.
int64_t padded_bias(const Tensor& weight) {
  const int64_t lanes = cpu::kernels().lanes;
  return (weight.size(0) + lanes - 1) / lanes * lanes;
}

/// Throws unless `t` has no gaps in memory: then all its values are what lies from its address on.
void check_dense(const Tensor& t, const char* name) {
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
  const bool forward = std::all_of(t.strides.begin(), t.strides.end(), [](int64_t stride) { return stride >= 0; });
  VGGFAST_CHECK(forward && last + 1 == t.numel(), name, " must be dense in memory, got shape ", describe(t.shape),
                " with strides ", describe(t.strides));
}

void check_room(Workspace packed, size_t expected) {
  VGGFAST_CHECK(packed.bytes == expected, "packed must have ", expected, " bytes, got ", packed.bytes);
}

bool same_bytes(const Tensor& a, const Tensor& b, Context context) {
  const int64_t bytes = a.numel() * static_cast<int64_t>(size_of(a.dtype));
  std::atomic<bool> same = true;
  cpu::parallel_ranges(bytes, compared_bytes, context.threads, [&](int64_t begin, int64_t end, int) {
    const auto count = static_cast<size_t>(end - begin);
    if (std::memcmp(a.as<std::byte>() + begin, b.as<std::byte>() + begin, count) != 0) same = false;
  });
  return same;
}

constexpr uint8_t no_bits = 0;  // what an empty mask points at: a map of one pixel has no window

/// gy as the convolution's own output would have its gradient: of extents h x w, through the mask where there is
/// one.
ConvInput<void> gradient_of(const Tensor& gy, const Masked& masked, int64_t h, int64_t w) {
  const Extent extent{gy.size(0), h, w, gy.size(1)};
  if (!masked.mask) return {.data = gy.data, .extent = extent};
  return {.data = gy.data,
          .extent = extent,
          .mask = masked.mask->data ? masked.mask->as<uint8_t>() : &no_bits,
          .relu = masked.epilogue.relu,
          .pool = masked.epilogue.pool,
          .stored_h = gy.size(2),
          .stored_w = gy.size(3)};
}

/// Writes 0 to the values of t, NHWC, that a ReLU let not pass, by its mask.
void apply_mask(const Tensor& t, const Tensor& mask, Context context) {
  const int64_t channels = t.size(1), bytes = (channels + 7) / 8, pixels = t.size(0) * t.size(2) * t.size(3);
  const size_t size = size_of(t.dtype);
  constexpr int64_t values_of_a_task = 1 << 16;
  cpu::parallel_ranges(pixels, std::max<int64_t>(1, values_of_a_task / channels), context.threads,
                       [&](int64_t begin, int64_t end, int) {
                         for (int64_t pixel = begin; pixel < end; ++pixel) {
                           std::byte* const values = t.as<std::byte>() + pixel * channels * static_cast<int64_t>(size);
                           const uint8_t* const bits = mask.as<uint8_t>() + pixel * bytes;
                           for (int64_t c = 0; c < channels; ++c) {
                             if (!(bits[c / 8] >> c % 8 & 1))
                               std::memset(values + c * static_cast<int64_t>(size), 0, size);
                           }
                         }
                       });
}

}  // namespace

bool conv_takes(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f64 || (dtype == DType::bf16 && cpu::kernels().tiles);
}

size_t conv_fprop_workspace(const Tensor& x, const Tensor& weight, Epilogue e, Context context) {
  check_nhwc(x, "x");
  check_kernel(weight, x.size(1), 1, "x");
  return widened_bytes(weight) + plan_fprop(x, weight, e, context).workspace_bytes;
}

size_t conv_dgrad_workspace(const Tensor& gy, const Masked& masked, const Tensor& weight, int64_t h, int64_t w,
                            Context context) {
  check_gradient(gy, masked, h, w);
  check_kernel(weight, gy.size(1), 0, "gy");
  return widened_bytes(weight) + plan_dgrad(gy, masked, weight, h, w, context).workspace_bytes;
}

size_t conv_wgrad_workspace(const Tensor& x, const Tensor& gy, const Masked& masked, int64_t kernel, Context context) {
  check_nhwc(x, "x");
  check_gradient(gy, masked, x.size(2), x.size(3));
  VGGFAST_CHECK(kernel == 1 || kernel == 3, "kernel must be 1 or 3, got ", kernel);
  return plan_wgrad(x, gy, masked, kernel, context).workspace_bytes;
}

void conv_fprop(const Tensor& x, const Tensor& weight, const Tensor* bias, Epilogue e, const Tensor& y,
                const Tensor* mask, Workspace workspace, Context context) {
  check_fprop(x, weight, bias, e, y, mask);
  const ConvPlan plan = plan_fprop(x, weight, e, context);
  const size_t room = widened_bytes(weight);
  check_workspace(workspace, room + plan.workspace_bytes);
  plan.run({.in = {.data = x.data, .extent = extent_of(x)},
            .weight = view_of(widened(weight, workspace.data, context)),
            .bias = widened(bias, weight, workspace.data),
            .out = output_of(e, y, mask),
            .workspace = static_cast<std::byte*>(workspace.data) + room});
}

ConvPacking conv_packing(const Tensor& x, const Tensor& weight, Epilogue e, Context context) {
  check_nhwc(x, "x");
  check_kernel(weight, x.size(1), 1, "x");
  const ConvPlan plan = plan_fprop(x, weight, e, context);
  const cpu::ConvEstimate cost = plan.algorithm->cost(plan.problem);
  ConvPacking found{cpu_isa() + " " + plan.algorithm->name};
  if (x.dtype != DType::f32 || cost.packing <= 0) return found;
  const size_t bytes = with_packed_weights(plan).packed_bytes;
  const double share = cost.packing / (static_cast<double>(cost.multiply_adds) + cost.other),
               of_x = static_cast<double>(bytes) / (static_cast<double>(x.numel()) * sizeof(float));
  if (share >= packing_share || (share >= little_packing_share && of_x <= small_share)) found.bytes = bytes;
  return found;
}

void conv_pack(const Tensor& x, const Tensor& weight, Epilogue e, Workspace packed, Context context) {
  const ConvPlan plan = plan_packed(x, weight, e, context);
  check_like(weight, "weight", weight.shape, DType::f32, Device::cpu);
  check_room(packed, plan.packed_bytes);
  plan.pack(cpu::cast<float>(view_of(weight)), nullptr, packed.data);
}

size_t conv_fprop_packed_workspace(const Tensor& x, const Tensor& weight, Epilogue e, Context context) {
  return static_cast<size_t>(padded_bias(weight)) * sizeof(float) + plan_packed(x, weight, e, context).workspace_bytes;
}

bool conv_fprop_packed(const Tensor& x, const Tensor& weight, const Tensor& original, Workspace packed,
                       const Tensor* bias, Epilogue e, const Tensor& y, const Tensor* mask, Workspace workspace,
                       Context context) {
  check_fprop(x, weight, bias, e, y, mask);
  const ConvPlan plan = plan_packed(x, weight, e, context);
  check_like(original, "original", weight.shape, DType::f32, Device::cpu);
  VGGFAST_CHECK(original.strides == weight.strides, "original must have weight's strides, ", describe(weight.strides),
                ", got ", describe(original.strides));
  check_dense(weight, "weight");
  check_room(packed, plan.packed_bytes);
  const int64_t biases = padded_bias(weight);
  check_workspace(workspace, static_cast<size_t>(biases) * sizeof(float) + plan.workspace_bytes);
  if (!same_bytes(weight, original, context)) return false;
  float* const padded = static_cast<float*>(workspace.data);
  std::fill_n(padded, biases, 0.0f);
  if (bias) std::copy_n(bias->as<float>(), weight.size(0), padded);
  plan.run({.in = {.data = x.data, .extent = extent_of(x)},
            .packed = packed.data,
            .bias = padded,
            .out = output_of(e, y, mask),
            .workspace = padded + biases});
  return true;
}

void conv_dgrad(const Tensor& gy, const Masked& masked, const Tensor& weight, const Tensor& gx, Workspace workspace,
                Context context, const Tensor* x_mask) {
  check_dgrad(gy, masked, weight, gx, x_mask);
  const int64_t h = gx.size(2), w = gx.size(3);
  const ConvPlan plan = plan_dgrad(gy, masked, weight, h, w, context);
  const size_t room = widened_bytes(weight);
  check_workspace(workspace, room + plan.workspace_bytes);
  plan.run({.in = gradient_of(gy, masked, h, w),
            .weight = flipped_view_of(widened(weight, workspace.data, context)),
            .out = {.y = gx.data, .h = h, .w = w, .c = gx.size(1)},
            .workspace = static_cast<std::byte*>(workspace.data) + room});
  if (x_mask) apply_mask(gx, *x_mask, context);
}

void conv_wgrad(const Tensor& x, const Tensor& gy, const Masked& masked, const Tensor& gw, const Tensor* gb,
                Workspace workspace, Context context) {
  check_wgrad(x, gy, masked, gw, gb, x.dtype == DType::bf16 ? DType::f32 : x.dtype);
  const ConvPlan plan = plan_wgrad(x, gy, masked, gw.size(2), context);
  check_workspace(workspace, plan.workspace_bytes);
  plan.run_wgrad({.x = {.data = x.data, .extent = extent_of(x)},
                  .gy = gradient_of(gy, masked, x.size(2), x.size(3)),
                  .shape = view_of(gw),
                  .gw = gw.data,
                  .gb = gb ? gb->data : nullptr,
                  .gb_stride = gb ? gb->stride(0) : 0,
                  .workspace = workspace.data});
}

}  // namespace vggfast
