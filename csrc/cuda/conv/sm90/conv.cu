// The Hopper kernels from tensors: which convolutions they take, their workspaces, and the order of their launches.
#include <algorithm>

#include "core/conv_checks.h"
#include "cuda/conv/common/pack.h"
#include "cuda/conv/common/reduce.h"
#include "cuda/conv/conv_algorithm.h"
#include "cuda/conv/heuristics.h"
#include "cuda/conv/sm90/block1/run.h"
#include "cuda/conv/sm90/fprop/choice.h"
#include "cuda/conv/sm90/fprop/estimate.h"
#include "cuda/conv/sm90/fprop/run.h"
#include "cuda/conv/sm90/wgrad/run.h"
#include "cuda/dtypes.h"

namespace vggfast::cuda::sm90 {
namespace {

bool whole_chunks(const Tensor& t) {
  return t.size(1) * static_cast<int64_t>(size_of(t.dtype)) % chunk_bytes == 0 &&
         reinterpret_cast<uintptr_t>(t.data) % chunk_bytes == 0;
}

/// Whether this GPU has the kernels, and no tile of others was asked for.
bool are_to_be_had() { return !sm80_tile_asked_for() && is_hopper(); }

/// Whether the fprop kernel takes x to `cout` channels. It may be asked before there is a y: outputs are aligned.
bool takes(const Tensor& x, int64_t cout, const Context& context) {
  constexpr int64_t least_channels = 16;  // fewer would fill little of a stage
  const bool type = x.dtype == DType::bf16 || x.dtype == DType::f16 || (x.dtype == DType::f32 && context.tf32);
  return type && x.size(1) >= least_channels && x.numel() > 0 && whole_chunks(x) && cout % 8 == 0 && are_to_be_had();
}

/// Bytes of the workspace that weights take: none where the kernels read them where they lie.
template <class T>
size_t packed_bytes(const WeightView<T>& weights, const Workspace* packed) {
  return lie_as_packed(weights) ? 0 : packing_bytes(weights, packed);
}

// ---- The gradient of the sums before an epilogue. Where gy comes through a mask, it has the workspace's second part.

size_t gradient_at(size_t first) { return (first + 255) / 256 * 256; }
size_t gradient_bytes(const Tensor& gy, int64_t h, int64_t w) {
  return static_cast<size_t>(gy.size(0) * gy.size(1) * h * w) * size_of(gy.dtype);
}

/// Bytes of a workspace whose first part has `first`.
size_t with_gradient(size_t first, const Tensor& gy, const Masked& masked, int64_t h, int64_t w) {
  return masked.mask ? gradient_at(first) + gradient_bytes(gy, h, w) : first;
}

/// gy itself where it has no mask; else it is written to the workspace, after the `first` bytes.
Tensor gradient_of_sums(const Tensor& gy, const Masked& masked, int64_t h, int64_t w, Workspace workspace, size_t first,
                        const Context& context) {
  if (!masked.mask) return gy;
  check_workspace(workspace, gradient_at(first) + gradient_bytes(gy, h, w));
  const int64_t n = gy.size(0), c = gy.size(1);
  const Tensor gz{static_cast<char*>(workspace.data) + gradient_at(first),
                  gy.dtype,
                  gy.device,
                  {n, c, h, w},
                  {h * w * c, 1, w * c, c}};
  cuda::mask_scatter(gy, *masked.mask, masked.epilogue, gz, context);
  return gz;
}

// ---- fprop, and dgrad as fprop of the gradient ----------------------------------------------------------------------

/// x to y, which is what the epilogue makes of the sums, by weights of any view.
template <class T>
void convolve(const Tensor& x, const WeightView<T>& weights, const Tensor& y, Epilogue e, const Tensor* bias,
              const Tensor* mask, const Tensor* x_mask, const Workspace* packed, Workspace workspace,
              const Context& context) {
  FpropProblem<T> problem{.x = x.as<T>(),
                          .n = static_cast<int>(x.size(0)),
                          .h = static_cast<int>(x.size(2)),
                          .w = static_cast<int>(x.size(3)),
                          .cin = weights.in,
                          .weights = weights.data,
                          .weight_stride = weights.out_stride,
                          .tap_stride = weights.column_stride,
                          .kernel = weights.kernel,
                          .cout = weights.out,
                          .bias = bias ? bias->as<T>() : nullptr,
                          .mask = mask ? mask->as<uint8_t>() : nullptr,
                          .x_mask = x_mask ? x_mask->as<uint8_t>() : nullptr,
                          .y = y.as<T>(),
                          .relu = e.relu,
                          .pool = e.pool};
  Context how = context;
  if (!lie_as_packed(weights)) {
    how.fixed_weights = context.fixed_weights && packed;
    problem.weights = packed_weights(weights, packed, workspace, context);
    problem.weight_stride = weights.depth();
    problem.tap_stride = weights.in;
  }
  run_fprop(problem, sm90_tile_asked_for(), how);
}

bool supports_fprop(const ConvFprop& p) {
  return !(p.epilogue.pool && p.weight.size(2) == 1) && takes(p.x, p.weight.size(0), p.context);
}

size_t fprop_bytes(const ConvFprop& p) {
  return for_tensor_cores(p.x.dtype, [&]<class T>() { return packed_bytes(fprop_view<T>(p.weight), p.packed); });
}

void run_fprop_pass(const ConvFprop& p, Workspace workspace) {
  for_tensor_cores(p.x.dtype, [&]<class T>() {
    convolve(p.x, fprop_view<T>(p.weight), *p.y, p.epilogue, p.bias, p.mask, nullptr, p.packed, workspace, p.context);
  });
}

bool supports_dgrad(const ConvDgrad& p) { return takes(p.gy, p.weight.size(1), p.context); }

size_t dgrad_bytes(const ConvDgrad& p) {
  return for_tensor_cores(p.gy.dtype, [&]<class T>() {
    return with_gradient(packed_bytes(dgrad_view<T>(p.weight), p.packed), p.gy, p.masked, p.h, p.w);
  });
}

void run_dgrad_pass(const ConvDgrad& p, Workspace workspace) {
  for_tensor_cores(p.gy.dtype, [&]<class T>() {
    const WeightView<T> weights = dgrad_view<T>(p.weight);
    const Tensor gz = gradient_of_sums(p.gy, p.masked, p.h, p.w, workspace, packed_bytes(weights, p.packed), p.context);
    convolve(gz, weights, *p.gx, {}, nullptr, nullptr, p.x_mask, p.packed, workspace, p.context);
  });
}

// ---- wgrad ----------------------------------------------------------------------------------------------------------

/// gy need not be aligned where a mask leads to it, which is undone beforehand.
bool supports_wgrad(const ConvWgrad& p) {
  const bool type = p.x.dtype == DType::bf16 || p.x.dtype == DType::f16;
  return type && p.kernel == 3 && p.x.numel() > 0 && whole_chunks(p.x) && p.gy.size(1) % 8 == 0 &&
         (p.masked.mask || whole_chunks(p.gy)) && are_to_be_had();
}

/// The splits' sums are float32, whatever the dtype.
size_t sums_bytes(const ConvWgrad& p, const WgradPlan& plan) {
  return partial_bytes<float>(plan.splits, p.gy.size(1), 9 * p.x.size(1));
}

size_t wgrad_bytes(const ConvWgrad& p) {
  const size_t sums = sums_bytes(p, plan_wgrad(p.x, p.gy.size(1)));
  return with_gradient(sums, p.gy, p.masked, p.x.size(2), p.x.size(3));
}

void run_wgrad_pass(const ConvWgrad& p, Workspace workspace) {
  check_workspace(workspace, wgrad_bytes(p));
  const WgradPlan plan = plan_wgrad(p.x, p.gy.size(1));
  const Tensor gz =
      gradient_of_sums(p.gy, p.masked, p.x.size(2), p.x.size(3), workspace, sums_bytes(p, plan), p.context);
  float* const partial = static_cast<float*>(workspace.data);
  float* const bias = partial_bias<float>(partial, plan.splits, *p.gw, p.gb);
  run_wgrad(p.x, gz, plan, partial, bias, p.context);
  p.x.dtype == DType::bf16 ? reduce<bf16>(partial, bias, plan.splits, *p.gw, p.gb, p.context)
                           : reduce<f16>(partial, bias, plan.splits, *p.gw, p.gb, p.context);
}

// ---- The ops that only Hopper has -----------------------------------------------------------------------------------

template <class T, class U>
void run_scaled(const Tensor& x, const Tensor& weight, const Tensor* bias, double scale, Epilogue e, const Tensor& y,
                const Context& context) {
  run_fprop<T, U>({.x = x.as<T>(),
                   .n = static_cast<int>(x.size(0)),
                   .h = static_cast<int>(x.size(2)),
                   .w = static_cast<int>(x.size(3)),
                   .cin = static_cast<int>(x.size(1)),
                   .weights = weight.as<T>(),
                   .weight_stride = weight.size(2) * weight.size(3) * weight.size(1),
                   .tap_stride = weight.size(1),
                   .kernel = static_cast<int>(weight.size(2)),
                   .cout = static_cast<int>(weight.size(0)),
                   .bias = bias ? bias->as<float>() : nullptr,
                   .mask = nullptr,
                   .x_mask = nullptr,
                   .y = y.as<U>(),
                   .relu = e.relu,
                   .pool = e.pool,
                   .scale = static_cast<float>(scale)},
                  sm90_tile_asked_for(), context);
}

void fprop_scaled(const Tensor& x, const Tensor& weight, const Tensor* bias, double scale, Epilogue e, const Tensor& y,
                  const Context& context) {
  if (x.dtype == DType::bf16) return run_scaled<bf16, e4m3>(x, weight, bias, scale, e, y, context);
  if (y.dtype == DType::bf16) return run_scaled<e4m3, bf16>(x, weight, bias, scale, e, y, context);
  run_scaled<e4m3, e4m3>(x, weight, bias, scale, e, y, context);
}

template <class T>
void run_block1_of(const Tensor& x, const Tensor& w1, const Tensor* b1, const Tensor& w2, const Tensor* b2,
                   const Tensor& y, const Context& context) {
  const int c = static_cast<int>(w2.size(0));
  const FpropProblem<T> second{.x = nullptr,
                               .n = static_cast<int>(x.size(0)),
                               .h = static_cast<int>(x.size(2)),
                               .w = static_cast<int>(x.size(3)),
                               .cin = c,
                               .weights = w2.as<T>(),
                               .weight_stride = 9 * c,
                               .tap_stride = c,
                               .kernel = 3,
                               .cout = c,
                               .bias = b2 ? b2->as<T>() : nullptr,
                               .mask = nullptr,
                               .y = y.as<T>(),
                               .relu = true,
                               .pool = true};
  run_block1(source_of<T>(x, {}, x.size(2), x.size(3)), fprop_view<T>(w1), b1 ? b1->as<T>() : nullptr, second, context);
}

void block1(const Tensor& x, const Tensor& w1, const Tensor* b1, const Tensor& w2, const Tensor* b2, const Tensor& y,
            const Context& context) {
  x.dtype == DType::bf16 ? run_block1_of<bf16>(x, w1, b1, w2, b2, y, context)
                         : run_block1_of<f16>(x, w1, b1, w2, b2, y, context);
}

std::vector<ConvChoice> choices(int64_t n, int64_t cin, int64_t h, int64_t w, int64_t cout, int64_t kernel, bool pool,
                                int64_t bytes, int num_sms, const std::array<int, 3>& clusters) {
  const Residency gpu{num_sms, clusters};
  const Shape shape{{static_cast<int>(n), static_cast<int>(h), static_cast<int>(w), static_cast<int>(cout)},
                    static_cast<int>(cin),
                    static_cast<int>(kernel),
                    static_cast<int>(bytes),
                    static_cast<int>(bytes),
                    pool};
  const TileId chosen = choose_tile(shape, {}, gpu);
  std::vector<ConvChoice> found;
  for_each_tile([&]<class Tile>(TileId id) {
    if (!fits<Tile>(shape) || gpu.of(Tile::cluster) == 0) return;
    found.push_back(
        {name_of(id), estimate<Tile>(shape, gpu), estimate<Tile>(shape, gpu, Warpgroups::in_step), id == chosen});
  });
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.clocks < b.clocks; });
  return found;
}

std::array<int, 3> clusters() { return residency<bf16, bf16>().clusters; }

}  // namespace

extern const Sm90Library library;
const Sm90Library library = {
    .conv =
        {
            .name = "sm90",
            .fprop = {.supports = supports_fprop, .workspace_bytes = fprop_bytes, .run = run_fprop_pass},
            .dgrad = {.supports = supports_dgrad, .workspace_bytes = dgrad_bytes, .run = run_dgrad_pass},
            .wgrad = {.supports = supports_wgrad, .workspace_bytes = wgrad_bytes, .run = run_wgrad_pass},
        },
    .fprop_scaled = fprop_scaled,
    .block1 = block1,
    .choices = choices,
    .clusters = clusters,
};

}  // namespace vggfast::cuda::sm90
