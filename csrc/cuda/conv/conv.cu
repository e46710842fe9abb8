// Convolution on CUDA: checks, workspaces, and the order of the launches.
#include <algorithm>

#include "core/conv_checks.h"
#include "cuda/conv/heuristics.h"
#include "cuda/conv/hopper/fprop_run.h"
#include "cuda/conv/hopper/wgrad.h"
#include "cuda/conv/pack.h"
#include "cuda/conv/portable/run.h"
#include "cuda/conv/reduce.h"
#include "cuda/dtypes.h"
#include "vggfast/cuda.h"

namespace vggfast::cuda {
namespace {

template <class T>
using SumOf = std::conditional_t<sizeof(T) == 8, double, float>;

/// The kernels count pixels and windows in 31 bits.
void check_pixels(const Tensor& t, const char* name, int64_t h, int64_t w) {
  VGGFAST_CHECK(t.size(0) * (h + 1) * (w + 1) < int64_t(1) << 31, name, " has shape ", describe(t.shape),
                ": under 2^31 pixels are wanted");
}

/// Calls body.operator()<Math>() for the arithmetic of T.
template <class T, class Body>
void with_math(const Context& context, Body body) {
  if constexpr (std::is_same_v<T, bf16>) {
    body.template operator()<Bf16Math>();
  } else if constexpr (std::is_same_v<T, f16>) {
    body.template operator()<F16Math>();
  } else if constexpr (std::is_same_v<T, double>) {
    body.template operator()<F64Math>();
  } else {
    context.tf32 ? body.template operator()<Tf32Math>() : body.template operator()<F32Math>();
  }
}

/// Whether the Hopper kernels take a convolution of x to `cout` channels. As far as shapes and x say: outputs are
/// aligned.
template <class T>
bool on_hopper([[maybe_unused]] const Tensor& x, [[maybe_unused]] int64_t cout, [[maybe_unused]] bool pool_of_1x1,
               [[maybe_unused]] const Context& context) {
#ifdef VGGFAST_HOPPER
  constexpr int64_t least_channels = 16;  // fewer would fill little of a stage
  if (sizeof(T) == 8 || (sizeof(T) == 4 && !context.tf32) || x.size(1) < least_channels || x.numel() == 0) return false;
  const bool whole = x.size(1) * sizeof(T) % 16 == 0 && cout % 8 == 0 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
  return whole && !pool_of_1x1 && !is_portable_tile(conv_tile()) && is_hopper();
#else
  return false;
#endif
}

/// Of the workspace: the weights', 0 where the Hopper kernels read them where they lie.
template <class T>
size_t packed_bytes(const WeightView<T>& weights, bool hopper) {
  return hopper && hopper::lie_as_packed(weights) ? 0 : weights.packed_bytes();
}

/// The gradient of the sums has the workspace's second part.
size_t gradient_at(size_t weights) { return (weights + 255) / 256 * 256; }
size_t gradient_bytes(const Tensor& gy, int64_t h, int64_t w) {
  return static_cast<size_t>(gy.size(0) * gy.size(1) * h * w) * size_of(gy.dtype);
}

/// What gy is the gradient of its sums by: itself without a selection, else written to the workspace behind `weights`
/// bytes.
Tensor gradient_of_sums(const Tensor& gy, const Selected& selected, int64_t h, int64_t w, Workspace workspace,
                        size_t weights, const Context& context) {
  if (!selected.selection) return gy;
  check_workspace(workspace, gradient_at(weights) + gradient_bytes(gy, h, w));
  const int64_t n = gy.size(0), c = gy.size(1);
  const Tensor gz{static_cast<char*>(workspace.data) + gradient_at(weights),
                  gy.dtype,
                  gy.device,
                  {n, c, h, w},
                  {h * w * c, 1, w * c, c}};
  cuda::scatter_selected(gy, *selected.selection, selected.epilogue, gz, context);
  return gz;
}

/// As convolve(), by the Hopper kernels.
template <class T>
void convolve_on_hopper(const Tensor& x, const WeightView<T>& weights, const Output<T>& y, Workspace workspace,
                        const Context& context) {
  if constexpr (sizeof(T) < 8) {
    hopper::FpropProblem<T> problem{.x = x.as<T>(),
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
                                    .selection = y.selection,
                                    .y = y.data,
                                    .relu = y.relu,
                                    .pool = y.pool};
    if (!hopper::lie_as_packed(weights)) {
      check_workspace(workspace, weights.packed_bytes());
      T* const packed = static_cast<T*>(workspace.data);
      pack_weights(weights, context.tf32, packed, context);
      problem.weights = packed;
      problem.weight_stride = weights.depth();
      problem.tap_stride = weights.in;
    }
    hopper::run_fprop(problem, conv_tile(), context);
  }
}

/// fprop of any source, by weights of any view.
template <class T>
void convolve(const Source<T>& x, const WeightView<T>& weights, const Output<T>& y, Workspace workspace,
              const Context& context) {
  check_workspace(workspace, weights.packed_bytes());
  if (x.n * x.h * x.w == 0) return;
  T* const packed = static_cast<T*>(workspace.data);
  pack_weights(weights, context.tf32, packed, context);
  FpropArgs<T> args{.x = x,
                    .windows = Windows(x.n, x.h, x.w),
                    .weights = packed,
                    .depth = static_cast<int>(weights.depth()),
                    .kernel = weights.kernel,
                    .column_tiles = 0,
                    .y = y};
  const TileShape shape = choose_fprop_tile(4 * int64_t(args.windows.count), y.c);
  with_math<T>(context, [&]<class Math>() { run_fprop<Math>(args, shape, context); });
}

template <class T>
Output<T> output_of(const Tensor& y, int64_t h, int64_t w) {
  return {.data = y.as<T>(),
          .bias = nullptr,
          .selection = nullptr,
          .h = static_cast<int>(h),
          .w = static_cast<int>(w),
          .c = static_cast<int>(y.size(1)),
          .relu = false,
          .pool = false,
          .vectors = y.size(1) % 8 == 0 && reinterpret_cast<uintptr_t>(y.data) % chunk_bytes == 0};
}

/// What the splits' sums take, for gw and gb: splits x cout x columns, and splits x cout behind them.
template <class T>
size_t partial_bytes(int64_t splits, int64_t cout, int64_t columns) {
  return static_cast<size_t>(splits * cout * (columns + 1)) * sizeof(SumOf<T>);
}
template <class T>
SumOf<T>* partial_bias(SumOf<T>* partial, int64_t splits, const Tensor& gw, const Tensor* gb) {
  return gb ? partial + splits * gw.numel() : nullptr;
}

/// gw and gb from the splits' sums.
template <class T>
void reduce(const SumOf<T>* partial, const SumOf<T>* bias, int splits, const Tensor& gw, const Tensor* gb,
            const Context& context) {
  reduce_wgrad<T>({.partial = partial,
                   .partial_bias = bias,
                   .splits = splits,
                   .cout = static_cast<int>(gw.size(0)),
                   .cin = static_cast<int>(gw.size(1)),
                   .kernel = static_cast<int>(gw.size(2)),
                   .gw = gw.as<T>(),
                   .out_stride = gw.stride(0),
                   .in_stride = gw.stride(1),
                   .row_stride = gw.stride(2),
                   .column_stride = gw.stride(3),
                   .gb = gb ? gb->as<T>() : nullptr,
                   .gb_stride = gb ? gb->stride(0) : 0},
                  context);
}

template <class T>
WgradPlan portable_plan(const Tensor& x, int64_t cout, int64_t kernel) {
  const int64_t pixels = x.size(0) * x.size(2) * x.size(3);
  return choose_wgrad(cout, kernel * kernel * x.size(1), (pixels + pixels_of_a_stage<T> - 1) / pixels_of_a_stage<T>);
}

template <class T>
void portable_wgrad(const Tensor& x, const Tensor& gy, const Selected& selected, const Tensor& gw, const Tensor* gb,
                    Workspace workspace, const Context& context) {
  const int64_t cout = gw.size(0), kernel = gw.size(2), columns = kernel * kernel * x.size(1);
  const int64_t h = x.size(2), w = x.size(3);
  const WgradPlan plan = portable_plan<T>(x, cout, kernel);
  check_workspace(workspace, partial_bytes<T>(plan.splits, cout, columns));
  SumOf<T>* const partial = static_cast<SumOf<T>*>(workspace.data);
  WgradArgs<T> args{.x = source_of<T>(x, {}, h, w),
                    .gz = source_of<T>(gy, selected, h, w),
                    .row = Divider(std::max<int64_t>(1, w)),
                    .column = Divider(std::max<int64_t>(1, h)),
                    .pixels = static_cast<int>(x.size(0) * h * w),
                    .kernel = static_cast<int>(kernel),
                    .columns = static_cast<int>(columns),
                    .row_tiles = 0,
                    .column_tiles = 0,
                    .splits = plan.splits,
                    .partial = partial,
                    .partial_bias = partial_bias<T>(partial, plan.splits, gw, gb)};
  with_math<T>(context, [&]<class Math>() { run_wgrad<Math>(args, plan.tile, context); });
  reduce<T>(args.partial, args.partial_bias, plan.splits, gw, gb, context);
}

#ifdef VGGFAST_HOPPER

/// By the Hopper kernel: the splits' sums, and behind them the gradient that a selection leads to.
size_t hopper_wgrad_workspace(const Tensor& x, const Tensor& gy, const Selected& selected) {
  const int64_t cout = gy.size(1), splits = hopper::plan_wgrad(x, cout).splits;
  const size_t sums = partial_bytes<bf16>(splits, cout, 9 * x.size(1));
  return selected.selection ? gradient_at(sums) + gradient_bytes(gy, x.size(2), x.size(3)) : sums;
}

template <class T>
void hopper_wgrad(const Tensor& x, const Tensor& gy, const Selected& selected, const Tensor& gw, const Tensor* gb,
                  Workspace workspace, const Context& context) {
  check_workspace(workspace, hopper_wgrad_workspace(x, gy, selected));
  const hopper::WgradPlan plan = hopper::plan_wgrad(x, gw.size(0));
  const size_t sums = partial_bytes<T>(plan.splits, gw.size(0), 9 * x.size(1));
  const Tensor gz = gradient_of_sums(gy, selected, x.size(2), x.size(3), workspace, sums, context);
  float* const partial = static_cast<float*>(workspace.data);
  float* const bias = partial_bias<T>(partial, plan.splits, gw, gb);
  hopper::run_wgrad(x, gz, plan, partial, bias, context);
  reduce<T>(partial, bias, plan.splits, gw, gb, context);
}

#endif

}  // namespace

size_t conv_fprop_workspace(const Tensor& x, const Tensor& weight, Epilogue e, Context context) {
  check_nhwc(x, "x");
  check_kernel(weight, x.size(1), 1, "x");
  return for_float(x, "x", [&]<class T>() {
    return packed_bytes(fprop_view<T>(weight), on_hopper<T>(x, weight.size(0), e.pool && weight.size(2) == 1, context));
  });
}

size_t conv_dgrad_workspace(const Tensor& gy, const Selected& selected, const Tensor& weight, int64_t h, int64_t w,
                            Context context) {
  check_gradient(gy, selected, h, w);
  check_kernel(weight, gy.size(1), 0, "gy");
  return for_float(gy, "gy", [&]<class T>() {
    const bool hopper = on_hopper<T>(gy, weight.size(1), false, context);
    const size_t weights = packed_bytes(dgrad_view<T>(weight), hopper);
    return hopper && selected.selection ? gradient_at(weights) + gradient_bytes(gy, h, w) : weights;
  });
}

size_t conv_wgrad_workspace(const Tensor& x, const Tensor& gy, const Selected& selected, int64_t kernel, Context) {
  check_nhwc(x, "x");
  check_gradient(gy, selected, x.size(2), x.size(3));
  VGGFAST_CHECK(kernel == 1 || kernel == 3, "kernel is ", kernel, ": 1 or 3 is wanted");
#ifdef VGGFAST_HOPPER
  if (hopper::takes_wgrad(x, gy, selected, kernel)) return hopper_wgrad_workspace(x, gy, selected);
#endif
  return for_float(x, "x", [&]<class T>() {
    const int splits = portable_plan<T>(x, gy.size(1), kernel).splits;
    return partial_bytes<T>(splits, gy.size(1), kernel * kernel * x.size(1));
  });
}

void conv_fprop(const Tensor& x, const Tensor& weight, const Tensor* bias, Epilogue e, const Tensor& y,
                const Tensor* selection, Workspace workspace, Context context) {
  check_fprop(x, weight, bias, e, y, selection);
  check_pixels(x, "x", x.size(2), x.size(3));
  for_float(x, "x", [&]<class T>() {
    Output<T> out = output_of<T>(y, x.size(2), x.size(3));
    out.bias = bias ? bias->as<T>() : nullptr;
    out.selection = selection ? selection->as<uint8_t>() : nullptr;
    out.relu = e.relu;
    out.pool = e.pool;
    const WeightView<T> weights = fprop_view<T>(weight);
    if (on_hopper<T>(x, out.c, e.pool && weights.kernel == 1, context))
      return convolve_on_hopper(x, weights, out, workspace, context);
    convolve(source_of<T>(x, {}, x.size(2), x.size(3)), weights, out, workspace, context);
  });
}

void conv_dgrad(const Tensor& gy, const Selected& selected, const Tensor& weight, const Tensor& gx, Workspace workspace,
                Context context) {
  check_dgrad(gy, selected, weight, gx);
  check_pixels(gx, "gx", gx.size(2), gx.size(3));
  for_float(gy, "gy", [&]<class T>() {
    const int64_t h = gx.size(2), w = gx.size(3);
    const WeightView<T> weights = dgrad_view<T>(weight);
    const Output<T> out = output_of<T>(gx, h, w);
    if (on_hopper<T>(gy, out.c, false, context)) {
      const Tensor gz = gradient_of_sums(gy, selected, h, w, workspace, packed_bytes(weights, true), context);
      return convolve_on_hopper(gz, weights, out, workspace, context);
    }
    convolve(source_of<T>(gy, selected, h, w), weights, out, workspace, context);
  });
}

void conv_wgrad(const Tensor& x, const Tensor& gy, const Selected& selected, const Tensor& gw, const Tensor* gb,
                Workspace workspace, Context context) {
  check_wgrad(x, gy, selected, gw, gb);
  check_pixels(x, "x", x.size(2), x.size(3));
  for_float(x, "x", [&]<class T>() {
#ifdef VGGFAST_HOPPER
    if constexpr (sizeof(T) == 2) {
      if (hopper::takes_wgrad(x, gy, selected, gw.size(2))) {
        return hopper_wgrad<T>(x, gy, selected, gw, gb, workspace, context);
      }
    }
#endif
    portable_wgrad<T>(x, gy, selected, gw, gb, workspace, context);
  });
}

}  // namespace vggfast::cuda
