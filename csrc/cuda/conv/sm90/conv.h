// Convolutions by the Hopper kernels, from tensors: what they take, their workspaces, and the order of their launches.
// Included by conv.cu alone.
#pragma once

#include "cuda/conv/common/epilogue.h"
#include "cuda/conv/common/reduce.h"
#include "cuda/conv/heuristics.h"
#include "cuda/conv/sm90/fprop/run.h"
#include "cuda/conv/sm90/wgrad/run.h"
#include "vggfast/cuda.h"

namespace vggfast::cuda::hopper {

/// Whether the Hopper kernels take a convolution of x to `cout` channels. As far as shapes and x say: outputs are
/// aligned.
template <class T>
bool takes_fprop(const Tensor& x, int64_t cout, bool pool_of_1x1, const Context& context) {
  constexpr int64_t least_channels = 16;  // fewer would fill little of a stage
  if (sizeof(T) == 8 || (sizeof(T) == 4 && !context.tf32) || x.size(1) < least_channels || x.numel() == 0) return false;
  const bool whole = x.size(1) * sizeof(T) % 16 == 0 && cout % 8 == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
  return whole && !pool_of_1x1 && !is_portable_tile(conv_tile()) && is_hopper();
}

/// Of the workspace: the weights', 0 where the Hopper kernels read them where they lie.
template <class T>
size_t packed_bytes(const WeightView<T>& weights) {
  return lie_as_packed(weights) ? 0 : weights.packed_bytes();
}

/// The gradient of the sums has the workspace's second part.
inline size_t gradient_at(size_t first) { return (first + 255) / 256 * 256; }
inline size_t gradient_bytes(const Tensor& gy, int64_t h, int64_t w) {
  return static_cast<size_t>(gy.size(0) * gy.size(1) * h * w) * size_of(gy.dtype);
}

/// Bytes of a workspace whose first part has `first`.
inline size_t with_gradient(size_t first, const Tensor& gy, const Masked& masked, int64_t h, int64_t w) {
  return masked.mask ? gradient_at(first) + gradient_bytes(gy, h, w) : first;
}

/// What gy is the gradient of its sums by: itself without a mask, else written to the workspace behind its `first`
/// bytes.
inline Tensor gradient_of_sums(const Tensor& gy, const Masked& masked, int64_t h, int64_t w, Workspace workspace,
                               size_t first, const Context& context) {
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

/// fprop of x, by weights of any view.
template <class T>
void fprop(const Tensor& x, const WeightView<T>& weights, const cuda::Output<T>& y, Workspace workspace,
           const Context& context) {
  if constexpr (sizeof(T) < 8) {
    FpropProblem<T> problem{.x = x.as<T>(),
                            .n = static_cast<int>(x.size(0)),
                            .h = y.h,
                            .w = y.w,
                            .cin = weights.in,
                            .weights = weights.data,
                            .weight_stride = weights.out_stride,
                            .tap_stride = weights.column_stride,
                            .kernel = weights.kernel,
                            .cout = weights.out,
                            .bias = y.bias,
                            .mask = y.mask,
                            .y = y.data,
                            .relu = y.relu,
                            .pool = y.pool};
    if (!lie_as_packed(weights)) {
      check_workspace(workspace, weights.packed_bytes());
      T* const packed = static_cast<T*>(workspace.data);
      pack_weights(weights, context.tf32, packed, context);
      problem.weights = packed;
      problem.weight_stride = weights.depth();
      problem.tap_stride = weights.in;
    }
    run_fprop(problem, conv_tile(), context);
  }
}

/// By the Hopper kernel: the splits' sums, and behind them the gradient that a mask leads to.
inline size_t wgrad_workspace(const Tensor& x, const Tensor& gy, const Masked& masked) {
  const int64_t cout = gy.size(1), splits = plan_wgrad(x, cout).splits;
  return with_gradient(partial_bytes<bf16>(splits, cout, 9 * x.size(1)), gy, masked, x.size(2), x.size(3));
}

template <class T>
void wgrad(const Tensor& x, const Tensor& gy, const Masked& masked, const Tensor& gw, const Tensor* gb,
           Workspace workspace, const Context& context) {
  check_workspace(workspace, wgrad_workspace(x, gy, masked));
  const WgradPlan plan = plan_wgrad(x, gw.size(0));
  const size_t sums = partial_bytes<T>(plan.splits, gw.size(0), 9 * x.size(1));
  const Tensor gz = gradient_of_sums(gy, masked, x.size(2), x.size(3), workspace, sums, context);
  float* const partial = static_cast<float*>(workspace.data);
  float* const bias = partial_bias<T>(partial, plan.splits, gw, gb);
  run_wgrad(x, gz, plan, partial, bias, context);
  reduce<T>(partial, bias, plan.splits, gw, gb, context);
}

}  // namespace vggfast::cuda::hopper
