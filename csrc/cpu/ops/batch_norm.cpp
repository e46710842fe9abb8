// Batch norm on the CPU: checks, statistics, and how threads divide pixels and rows. Kernels: cpu/kernels/batch_norm.h.
#include "vggfast/batch_norm.h"

#include <algorithm>
#include <cmath>

#include "core/checks.h"
#include "cpu/kernel_table.h"
#include "cpu/ops/dtypes.h"
#include "cpu/parallel.h"

namespace vggfast {
namespace {

using cpu::ceil_div;
using cpu::extent_of;

constexpr int64_t grain_values = 1 << 14;  // values that make a piece of work worth a thread
constexpr int64_t most_parts = 64;         // of a sum: their number is the same for any number of threads

int64_t padded(const Tensor& x) { return ceil_div(x.size(1), 64) * 64; }  // a multiple of any vector's lanes

/// Of what belongs to a channel of maps of this dtype: weight, bias, mean and variance.
DType channel_dtype(DType maps) { return maps == DType::bf16 ? DType::f32 : maps; }

size_t workspace_bytes(const Tensor& x, Context context) {
  check_nhwc(x, "x");
  const auto channels = static_cast<size_t>(padded(x));
  return 2 * most_parts * channels * sizeof(double) +
         (4 + 3 * static_cast<size_t>(int{context.threads})) * channels * size_of(channel_dtype(x.dtype));
}

/// Calls body.operator()<S>() for the type that maps lie as.
template <class Body>
void for_maps(const Tensor& x, Body body) {
  VGGFAST_CHECK(x.device == Device::cpu, "x must be on cpu, got ", name_of(x.device));
  switch (x.dtype) {
    case DType::f32:
      return body.template operator()<float>();
    case DType::f64:
      return body.template operator()<double>();
    case DType::bf16:
      return body.template operator()<cpu::Bf16>();
    default:
      fail("x must be float32, float64 or bfloat16, got ", name_of(x.dtype));
  }
}

/// The workspace, cut up.
template <class T>
struct Scratch {
  Scratch(const Tensor& x, const Workspace& workspace, Context context)
      : channels(x.size(1)), stride(padded(x)), sums(static_cast<double*>(workspace.data)) {
    VGGFAST_CHECK(workspace.bytes >= workspace_bytes(x, context), "workspace must have at least ",
                  workspace_bytes(x, context), " bytes, got ", workspace.bytes);
  }

  /// One of four arrays of a value a channel.
  T* array(int64_t i) const { return reinterpret_cast<T*>(sums + 2 * most_parts * stride) + i * stride; }

  /// Leaves in sums, a channel, two totals over [0, units): those that add(begin, end, scratch, sums) adds to, once for
  /// each of the parts that the units are cut into. `grain`: units that make a part.
  template <class Add>
  void total(int64_t units, int64_t grain, Context context, Add add) const {
    const int64_t each = std::max(grain, ceil_div(units, most_parts)),
                  parts = std::max<int64_t>(1, ceil_div(units, each));
    cpu::parallel_for(parts, context.threads, [&](int64_t part, int worker) {
      double* own = sums + part * 2 * channels;
      std::fill_n(own, 2 * channels, 0.0);
      add(part * each, std::min(units, (part + 1) * each), array(4 + 3 * worker), own);
    });
    for (int64_t part = 1; part < parts; ++part) {
      for (int64_t c = 0; c < 2 * channels; ++c) sums[c] += sums[part * 2 * channels + c];
    }
  }

  int64_t channels, stride;
  double* sums;
};

void check_channels(const Tensor& t, const char* name, const Tensor& x) {
  check_like(t, name, {x.size(1)}, channel_dtype(x.dtype), x.device);
  check_contiguous(t, name);
}

void check_maps(const Tensor& x, const Tensor& y, const char* y_name, const Tensor* mask, Epilogue e) {
  check_nhwc(x, "x");
  check_nhwc(y, y_name);
  const int64_t step = e.pool ? 2 : 1;
  VGGFAST_CHECK(x.size(2) >= step && x.size(3) >= step, "x must have H and W of at least ", step, ", got shape ",
                describe(x.shape));
  check_like(y, y_name, {x.size(0), x.size(1), x.size(2) / step, x.size(3) / step}, x.dtype, x.device);
  if (mask) check_mask(*mask, e, y);
}

int64_t rows_of(const Tensor& y) { return y.size(0) * y.size(2); }
int64_t rows_worth_a_task(const Tensor& x) { return 1 + grain_values / (1 + x.size(1) * x.size(3)); }

/// Mean and variance of each channel of x, which has pixels.
template <class S, class T = cpu::Computed<S>>
void moments(const Tensor& x, const Scratch<T>& scratch, T* mean, T* var, Context context) {
  const int64_t channels = x.size(1), pixels = x.size(0) * x.size(2) * x.size(3);
  T* const origin = scratch.array(0);  // the first pixel
  if constexpr (sizeof(S) == sizeof(T)) {
    std::copy_n(x.as<T>(), channels, origin);
  } else {
    cpu::kernels().to_float(x.as<S>(), channels, origin);
  }
  scratch.total(pixels, 1 + grain_values / channels, context, [&](int64_t begin, int64_t end, T* own, double* sums) {
    cpu::kernels().batch_norm<S>().moments(x.as<S>(), origin, channels, begin, end, own, sums);
  });
  for (int64_t c = 0; c < channels; ++c) {
    const double n = static_cast<double>(pixels), off = scratch.sums[c] / n;
    const double square = scratch.sums[channels + c] / n - off * off;
    mean[c] = static_cast<T>(static_cast<double>(origin[c]) + off);
    var[c] = static_cast<T>(square < 0 ? 0 : square);  // NaN stays
  }
}

}  // namespace

size_t batch_norm_fprop_workspace(const Tensor& x, Context context) { return workspace_bytes(x, context); }
size_t batch_norm_dgrad_workspace(const Tensor& x, Context context) { return workspace_bytes(x, context); }

void batch_norm_fprop(const Tensor& x, const Tensor* weight, const Tensor* bias, BatchNorm norm, Epilogue e,
                      const Tensor& mean, const Tensor& var, const Tensor& y, const Tensor* mask, Workspace workspace,
                      Context context) {
  check_maps(x, y, "y", mask, e);
  check_channels(mean, "mean", x);
  check_channels(var, "var", x);
  if (weight) check_channels(*weight, "weight", x);
  if (bias) check_channels(*bias, "bias", x);
  for_maps(x, [&]<class S>() {
    using T = cpu::Computed<S>;
    const Scratch<T> scratch(x, workspace, context);
    const int64_t channels = x.size(1);
    if (norm.training && x.numel() > 0) {
      moments<S>(x, scratch, mean.as<T>(), var.as<T>(), context);
    } else if (norm.training) {
      std::fill_n(mean.as<T>(), channels, T(0));
      std::fill_n(var.as<T>(), channels, T(0));
    }
    std::fill_n(scratch.array(0), 3 * scratch.stride, T(0));
    for (int64_t c = 0; c < channels; ++c) {
      const double inverse = 1 / std::sqrt(static_cast<double>(var.as<T>()[c]) + norm.eps);
      scratch.array(0)[c] = mean.as<T>()[c];
      scratch.array(1)[c] = static_cast<T>(inverse * (weight ? static_cast<double>(weight->as<T>()[c]) : 1.0));
      if (bias) scratch.array(2)[c] = bias->as<T>()[c];
    }
    const cpu::ConvOutput<S> out{
        y.as<S>(), y.size(2), y.size(3), channels, e.relu, e.pool, mask ? mask->as<uint8_t>() : nullptr};
    const cpu::BatchNormArgs<S> args{.x = x.as<S>(),
                                     .in = extent_of(x),
                                     .mean = scratch.array(0),
                                     .scale = scratch.array(1),
                                     .bias = scratch.array(2),
                                     .out = cpu::streamed(out, y.size(0))};
    cpu::parallel_ranges(rows_of(y), rows_worth_a_task(x), context.threads, [&](int64_t begin, int64_t end, int) {
      cpu::kernels().batch_norm<S>().fprop(args, begin, end);
    });
  });
}

void batch_norm_dgrad(const Tensor& gy, const Masked& masked, const Tensor& x, const Tensor* weight, BatchNorm norm,
                      const Tensor& mean, const Tensor& var, const Tensor& gx, const Tensor* gw, const Tensor* gb,
                      Workspace workspace, Context context) {
  const Epilogue e = masked.epilogue;
  check_maps(x, gy, "gy", masked.mask, e);
  check_nhwc(gx, "gx");
  check_like(gx, "gx", x.shape, x.dtype, x.device);
  check_channels(mean, "mean", x);
  check_channels(var, "var", x);
  if (weight) check_channels(*weight, "weight", x);
  if (gw) check_channels(*gw, "gw", x);
  if (gb) check_channels(*gb, "gb", x);
  for_maps(x, [&]<class S>() {
    using T = cpu::Computed<S>;
    const Scratch<T> scratch(x, workspace, context);
    const int64_t channels = x.size(1);
    std::fill_n(scratch.array(0), 4 * scratch.stride, T(0));
    std::copy_n(mean.as<T>(), channels, scratch.array(0));
    cpu::BatchNormGradient<S> args{.maps = {.z = x.as<S>(),
                                            .y = gy.as<S>(),
                                            .mask = masked.mask ? masked.mask->as<uint8_t>() : nullptr,
                                            .big = extent_of(x),
                                            .oh = gy.size(2),
                                            .ow = gy.size(3),
                                            .relu = e.relu,
                                            .pool = e.pool},
                                   .mean = scratch.array(0),
                                   .scale = scratch.array(1),
                                   .slope = scratch.array(2),
                                   .offset = scratch.array(3),
                                   .training = norm.training,
                                   .gx = gx.as<S>(),
                                   .stream = cpu::streams(gx.as<S>(), gx.numel(), channels)};
    if (norm.training || gw || gb) {
      scratch.total(rows_of(gy), rows_worth_a_task(x), context, [&](int64_t begin, int64_t end, T* own, double* sums) {
        cpu::kernels().batch_norm<S>().sums(args, begin, end, own, sums);
      });
    } else {
      std::fill_n(scratch.sums, 2 * channels, 0.0);
    }
    const double n = static_cast<double>(std::max<int64_t>(1, x.size(0) * x.size(2) * x.size(3)));
    for (int64_t c = 0; c < channels; ++c) {
      const double inverse = 1 / std::sqrt(static_cast<double>(var.as<T>()[c]) + norm.eps);
      const double scale = inverse * (weight ? static_cast<double>(weight->as<T>()[c]) : 1.0);
      const double sum = scratch.sums[c], product = scratch.sums[channels + c] * inverse;
      scratch.array(1)[c] = static_cast<T>(scale);
      scratch.array(2)[c] = static_cast<T>(-scale * inverse * product / n);
      scratch.array(3)[c] = static_cast<T>(-scale * sum / n);
      if (gw) gw->as<T>()[c] = static_cast<T>(product);
      if (gb) gb->as<T>()[c] = static_cast<T>(sum);
    }
    cpu::parallel_ranges(rows_of(gy), rows_worth_a_task(x), context.threads, [&](int64_t begin, int64_t end, int) {
      cpu::kernels().batch_norm<S>().dgrad(args, begin, end);
    });
  });
}

}  // namespace vggfast
