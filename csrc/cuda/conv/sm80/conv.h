// Convolutions by the portable kernels and the first layer's, from views: workspaces, and the order of their launches.
// Included by conv.cu alone.
#pragma once

#include "cuda/conv/common/reduce.h"
#include "cuda/conv/sm80/run.h"
#include "cuda/conv/stem/stem.h"

namespace vggfast::cuda {

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

/// What a gradient's pixels are shared by.
template <class T>
WgradPlan wgrad_plan(const Source<T>& x, const Source<T>& gz, int64_t kernel, const Context& context) {
  const int64_t columns = kernel * kernel * x.c, pixels = int64_t(x.n) * x.h * x.w;
  WgradPlan plan = choose_wgrad(gz.c, columns, (pixels + pixels_of_a_stage<T> - 1) / pixels_of_a_stage<T>);
  if constexpr (has_stem<T>) {
    if (stem_takes_wgrad(x, gz, kernel, context)) plan.splits = stem_wgrad_splits(gz);
  }
  return plan;
}

/// The splits' sums of a weight gradient.
template <class T>
void sum_pixels(WgradArgs<T>& args, TileShape tile, const Context& context) {
  if constexpr (has_stem<T>) {
    if (stem_takes_wgrad(args.x, args.gz, args.kernel, context)) return stem_wgrad(args, context);
  }
  with_math<T>(context, [&]<class Math>() { run_wgrad<Math>(args, tile, context); });
}

template <class T>
void sum_and_reduce(const Source<T>& x, const Source<T>& gz, const Tensor& gw, const Tensor* gb, Workspace workspace,
                    const Context& context) {
  const int64_t kernel = gw.size(2), columns = kernel * kernel * x.c;
  const WgradPlan plan = wgrad_plan(x, gz, kernel, context);
  check_workspace(workspace, partial_bytes<T>(plan.splits, gz.c, columns));
  SumOf<T>* const partial = static_cast<SumOf<T>*>(workspace.data);
  WgradArgs<T> args{.x = x,
                    .gz = gz,
                    .row = Divider(std::max(1, x.w)),
                    .column = Divider(std::max(1, x.h)),
                    .pixels = x.n * x.h * x.w,
                    .kernel = static_cast<int>(kernel),
                    .columns = static_cast<int>(columns),
                    .row_tiles = 0,
                    .column_tiles = 0,
                    .splits = plan.splits,
                    .partial = partial,
                    .partial_bias = partial_bias<T>(partial, plan.splits, gw, gb)};
  sum_pixels(args, plan.tile, context);
  reduce<T>(args.partial, args.partial_bias, plan.splits, gw, gb, context);
}

}  // namespace vggfast::cuda
