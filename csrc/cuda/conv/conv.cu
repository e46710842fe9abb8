// Convolution on CUDA: checks, and who computes it: the first layer's kernels, Hopper's where the GPU is one, or the
// portable ones.
#include <algorithm>

#include "core/conv_checks.h"
#ifdef VGGFAST_SM90
#include "cuda/conv/sm90/conv.h"
#endif
#include "cuda/conv/sm80/conv.h"
#include "cuda/dtypes.h"
#include "vggfast/cuda.h"

namespace vggfast::cuda {
namespace {

/// The kernels count pixels and windows in 31 bits.
void check_pixels(const Tensor& t, const char* name, int64_t h, int64_t w) {
  VGGFAST_CHECK(t.size(0) * (h + 1) * (w + 1) < int64_t(1) << 31, name, " must have under 2^31 pixels, got shape ",
                describe(t.shape));
}

template <class T>
Output<T> output_of(const Tensor& y, int64_t h, int64_t w) {
  return {.data = y.as<T>(),
          .bias = nullptr,
          .mask = nullptr,
          .h = static_cast<int>(h),
          .w = static_cast<int>(w),
          .c = static_cast<int>(y.size(1)),
          .relu = false,
          .pool = false,
          .vectors = y.size(1) % 8 == 0 && reinterpret_cast<uintptr_t>(y.data) % chunk_bytes == 0};
}

}  // namespace

size_t conv_fprop_workspace(const Tensor& x, const Tensor& weight, [[maybe_unused]] Epilogue e, Context context) {
  check_nhwc(x, "x");
  check_kernel(weight, x.size(1), 1, "x");
  return for_float(x, "x", [&]<class T>() {
    const WeightView<T> weights = fprop_view<T>(weight);
    if (stem_takes_fprop(source_of<T>(x, {}, x.size(2), x.size(3)), weights, context)) return size_t(0);
#ifdef VGGFAST_SM90
    if (hopper::takes_fprop<T>(x, weights.out, e.pool && weights.kernel == 1, context)) {
      return hopper::packed_bytes(weights);
    }
#endif
    return weights.packed_bytes();
  });
}

size_t conv_dgrad_workspace(const Tensor& gy, const Masked& masked, const Tensor& weight, int64_t h, int64_t w,
                            Context context) {
  check_gradient(gy, masked, h, w);
  check_kernel(weight, gy.size(1), 0, "gy");
  return for_float(gy, "gy", [&]<class T>() {
    const WeightView<T> weights = dgrad_view<T>(weight);
    if (stem_takes_dgrad(source_of<T>(gy, masked, h, w), weights, context)) return size_t(0);
#ifdef VGGFAST_SM90
    if (hopper::takes_fprop<T>(gy, weights.out, false, context)) {
      return hopper::with_gradient(hopper::packed_bytes(weights), gy, masked, h, w);
    }
#endif
    return weights.packed_bytes();
  });
}

size_t conv_wgrad_workspace(const Tensor& x, const Tensor& gy, const Masked& masked, int64_t kernel, Context context) {
  check_nhwc(x, "x");
  check_gradient(gy, masked, x.size(2), x.size(3));
  VGGFAST_CHECK(kernel == 1 || kernel == 3, "kernel must be 1 or 3, got ", kernel);
#ifdef VGGFAST_SM90
  if (hopper::takes_wgrad(x, gy, masked, kernel)) return hopper::wgrad_workspace(x, gy, masked);
#endif
  return for_float(x, "x", [&]<class T>() {
    const int64_t h = x.size(2), w = x.size(3);
    const Source<T> source = source_of<T>(x, {}, h, w), gz = source_of<T>(gy, masked, h, w);
    return partial_bytes<T>(wgrad_plan(source, gz, kernel, context).splits, gz.c, kernel * kernel * source.c);
  });
}

void conv_fprop(const Tensor& x, const Tensor& weight, const Tensor* bias, Epilogue e, const Tensor& y,
                const Tensor* mask, Workspace workspace, Context context) {
  check_fprop(x, weight, bias, e, y, mask);
  check_pixels(x, "x", x.size(2), x.size(3));
  for_float(x, "x", [&]<class T>() {
    Output<T> out = output_of<T>(y, x.size(2), x.size(3));
    out.bias = bias ? bias->as<T>() : nullptr;
    out.mask = mask ? mask->as<uint8_t>() : nullptr;
    out.relu = e.relu;
    out.pool = e.pool;
    const Source<T> source = source_of<T>(x, {}, x.size(2), x.size(3));
    const WeightView<T> weights = fprop_view<T>(weight);
    if constexpr (has_stem<T>) {
      if (stem_takes_fprop(source, weights, context)) return stem_fprop(source, weights, out, context);
    }
#ifdef VGGFAST_SM90
    if (hopper::takes_fprop<T>(x, out.c, e.pool && weights.kernel == 1, context)) {
      return hopper::fprop(x, weights, out, workspace, context);
    }
#endif
    convolve(source, weights, out, workspace, context);
  });
}

void conv_dgrad(const Tensor& gy, const Masked& masked, const Tensor& weight, const Tensor& gx, Workspace workspace,
                Context context) {
  check_dgrad(gy, masked, weight, gx);
  check_pixels(gx, "gx", gx.size(2), gx.size(3));
  for_float(gy, "gy", [&]<class T>() {
    const int64_t h = gx.size(2), w = gx.size(3);
    const Source<T> source = source_of<T>(gy, masked, h, w);
    const WeightView<T> weights = dgrad_view<T>(weight);
    const Output<T> out = output_of<T>(gx, h, w);
    if constexpr (has_stem<T>) {
      if (stem_takes_dgrad(source, weights, context)) return stem_dgrad(source, weights, out.data, context);
    }
#ifdef VGGFAST_SM90
    if (hopper::takes_fprop<T>(gy, out.c, false, context)) {
      const size_t packed = hopper::packed_bytes(weights);
      const Tensor gz = hopper::gradient_of_sums(gy, masked, h, w, workspace, packed, context);
      return hopper::fprop(gz, weights, out, workspace, context);
    }
#endif
    convolve(source, weights, out, workspace, context);
  });
}

void conv_wgrad(const Tensor& x, const Tensor& gy, const Masked& masked, const Tensor& gw, const Tensor* gb,
                Workspace workspace, Context context) {
  check_wgrad(x, gy, masked, gw, gb);
  check_pixels(x, "x", x.size(2), x.size(3));
  for_float(x, "x", [&]<class T>() {
#ifdef VGGFAST_SM90
    if constexpr (sizeof(T) == 2) {
      if (hopper::takes_wgrad(x, gy, masked, gw.size(2))) {
        return hopper::wgrad<T>(x, gy, masked, gw, gb, workspace, context);
      }
    }
#endif
    const int64_t h = x.size(2), w = x.size(3);
    sum_and_reduce(source_of<T>(x, {}, h, w), source_of<T>(gy, masked, h, w), gw, gb, workspace, context);
  });
}

}  // namespace vggfast::cuda
