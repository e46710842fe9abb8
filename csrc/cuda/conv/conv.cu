// Convolution on CUDA: checks, workspaces, and the order of the launches.
#include <algorithm>

#include "core/conv_checks.h"
#include "cuda/conv/pack.h"
#include "cuda/conv/portable/run.h"
#include "cuda/conv/reduce.h"
#include "cuda/conv/stem/stem.h"
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

/// The splits' sums of a weight gradient.
template <class T>
void sum_pixels(WgradArgs<T>& args, TileShape tile, const Context& context) {
  if constexpr (has_stem<T>) {
    if (stem_takes_wgrad(args.x, args.gz, args.kernel, context)) return stem_wgrad(args, context);
  }
  with_math<T>(context, [&]<class Math>() { run_wgrad<Math>(args, tile, context); });
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

/// What a gradient's sums are taken over, and where they go.
struct Shares {
  int64_t columns;
  WgradPlan plan;
  int64_t partial, partial_bias;  // values
};
template <class T>
Shares shares_of(const Source<T>& x, const Source<T>& gz, int64_t kernel, const Context& context) {
  const int64_t columns = kernel * kernel * x.c, pixels = int64_t(x.n) * x.h * x.w;
  WgradPlan plan = choose_wgrad(gz.c, columns, (pixels + pixels_of_a_stage<T> - 1) / pixels_of_a_stage<T>);
  if constexpr (has_stem<T>) {
    if (stem_takes_wgrad(x, gz, kernel, context)) plan.splits = stem_wgrad_splits(gz);
  }
  return {columns, plan, int64_t(plan.splits) * gz.c * columns, int64_t(plan.splits) * gz.c};
}

}  // namespace

size_t conv_fprop_workspace(const Tensor& x, const Tensor& weight, Epilogue, Context context) {
  check_nhwc(x, "x");
  check_kernel(weight, x.size(1), 1, "x");
  return for_float(x, "x", [&]<class T>() {
    const WeightView<T> weights = fprop_view<T>(weight);
    const bool stem = stem_takes_fprop(source_of<T>(x, {}, x.size(2), x.size(3)), weights, context);
    return stem ? 0 : weights.packed_bytes();
  });
}

size_t conv_dgrad_workspace(const Tensor& gy, const Selected& selected, const Tensor& weight, int64_t h, int64_t w,
                            Context context) {
  check_gradient(gy, selected, h, w);
  check_kernel(weight, gy.size(1), 0, "gy");
  return for_float(gy, "gy", [&]<class T>() {
    const WeightView<T> weights = dgrad_view<T>(weight);
    const bool stem = stem_takes_dgrad(source_of<T>(gy, selected, h, w), weights, context);
    return stem ? 0 : weights.packed_bytes();
  });
}

size_t conv_wgrad_workspace(const Tensor& x, const Tensor& gy, const Selected& selected, int64_t kernel,
                            Context context) {
  check_nhwc(x, "x");
  check_gradient(gy, selected, x.size(2), x.size(3));
  VGGFAST_CHECK(kernel == 1 || kernel == 3, "kernel is ", kernel, ": 1 or 3 is wanted");
  return for_float(x, "x", [&]<class T>() {
    const int64_t h = x.size(2), w = x.size(3);
    const Shares shares = shares_of(source_of<T>(x, {}, h, w), source_of<T>(gy, selected, h, w), kernel, context);
    return static_cast<size_t>(shares.partial + shares.partial_bias) * sizeof(SumOf<T>);
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
    const Source<T> source = source_of<T>(x, {}, x.size(2), x.size(3));
    const WeightView<T> weights = fprop_view<T>(weight);
    if constexpr (has_stem<T>) {
      if (stem_takes_fprop(source, weights, context)) return stem_fprop(source, weights, out, context);
    }
    convolve(source, weights, out, workspace, context);
  });
}

void conv_dgrad(const Tensor& gy, const Selected& selected, const Tensor& weight, const Tensor& gx, Workspace workspace,
                Context context) {
  check_dgrad(gy, selected, weight, gx);
  check_pixels(gx, "gx", gx.size(2), gx.size(3));
  for_float(gy, "gy", [&]<class T>() {
    const Source<T> gz = source_of<T>(gy, selected, gx.size(2), gx.size(3));
    const WeightView<T> weights = dgrad_view<T>(weight);
    if constexpr (has_stem<T>) {
      if (stem_takes_dgrad(gz, weights, context)) return stem_dgrad(gz, weights, gx.as<T>(), context);
    }
    convolve(gz, weights, output_of<T>(gx, gx.size(2), gx.size(3)), workspace, context);
  });
}

void conv_wgrad(const Tensor& x, const Tensor& gy, const Selected& selected, const Tensor& gw, const Tensor* gb,
                Workspace workspace, Context context) {
  check_wgrad(x, gy, selected, gw, gb);
  check_pixels(x, "x", x.size(2), x.size(3));
  for_float(x, "x", [&]<class T>() {
    const int64_t cout = gw.size(0), kernel = gw.size(2), h = x.size(2), w = x.size(3);
    const Source<T> source = source_of<T>(x, {}, h, w), gz = source_of<T>(gy, selected, h, w);
    const Shares shares = shares_of(source, gz, kernel, context);
    SumOf<T>* const partial = static_cast<SumOf<T>*>(workspace.data);
    check_workspace(workspace, static_cast<size_t>(shares.partial + shares.partial_bias) * sizeof(SumOf<T>));
    WgradArgs<T> args{.x = source,
                      .gz = gz,
                      .row = Divider(std::max<int64_t>(1, w)),
                      .column = Divider(std::max<int64_t>(1, h)),
                      .pixels = static_cast<int>(x.size(0) * h * w),
                      .kernel = static_cast<int>(kernel),
                      .columns = static_cast<int>(shares.columns),
                      .row_tiles = 0,
                      .column_tiles = 0,
                      .splits = shares.plan.splits,
                      .partial = partial,
                      .partial_bias = gb ? partial + shares.partial : nullptr};
    sum_pixels(args, shares.plan.tile, context);
    reduce_wgrad<T>({.partial = args.partial,
                     .partial_bias = args.partial_bias,
                     .splits = args.splits,
                     .cout = static_cast<int>(cout),
                     .cin = static_cast<int>(x.size(1)),
                     .kernel = static_cast<int>(kernel),
                     .gw = gw.as<T>(),
                     .out_stride = gw.stride(0),
                     .in_stride = gw.stride(1),
                     .row_stride = gw.stride(2),
                     .column_stride = gw.stride(3),
                     .gb = gb ? gb->as<T>() : nullptr,
                     .gb_stride = gb ? gb->stride(0) : 0},
                    context);
  });
}

}  // namespace vggfast::cuda
