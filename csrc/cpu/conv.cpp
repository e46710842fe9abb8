// Convolution on the CPU: checks, packing, and the sharing of tiles among threads. Kernels: cpu/kernels/conv.h.
#include "vggfast/conv.h"

#include <algorithm>
#include <utility>

#include "cpu/dtypes.h"
#include "cpu/kernel_table.h"
#include "cpu/parallel.h"
#include "vggfast/error.h"

namespace vggfast {
namespace {

using cpu::ConvArgs;
using cpu::Extent;
using cpu::extent_of;
using cpu::Kernels;
using cpu::WeightView;
using cpu::WgradArgs;

constexpr int64_t cache_bytes = 256 << 10;  // of packed weights that one task may walk through
constexpr int64_t wgrad_tasks = 64;         // wgrad splits its pixels until there are about as many tasks
constexpr int64_t tiles_per_task = 16;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Carves typed pieces off a workspace.
template <class T>
class Carver {
 public:
  explicit Carver(Workspace workspace) : next_(static_cast<T*>(workspace.data)) {}
  T* take(int64_t count) { return std::exchange(next_, next_ + count); }

 private:
  T* next_;
};

void check_kernel(const Tensor& weight, int64_t channels, int channel_axis, const char* input) {
  VGGFAST_CHECK(weight.dim() == 4 && weight.size(2) == weight.size(3) && (weight.size(2) == 1 || weight.size(2) == 3),
                "weight has shape ", describe(weight.shape), ": (Cout, Cin, 3, 3) or (Cout, Cin, 1, 1) is wanted");
  VGGFAST_CHECK(weight.size(0) >= 1 && weight.size(1) >= 1, "weight has shape ", describe(weight.shape),
                ": at least one channel on each side is wanted");
  VGGFAST_CHECK(weight.size(channel_axis) == channels, "weight has shape ", describe(weight.shape), ", and ", input,
                " has ", channels, " channels: axis ", channel_axis, " of weight must be as many");
}

void check_workspace(Workspace workspace, size_t wanted) {
  VGGFAST_CHECK(workspace.bytes >= wanted, "workspace has ", workspace.bytes, " bytes: ", wanted, " are wanted");
}

template <class T>
size_t fprop_workspace(int64_t cin, int64_t cout, int64_t kernel) {
  const int64_t channels = cpu::kernels().of<T>().block_channels;
  return sizeof(T) * static_cast<size_t>((kernel * kernel * cin + 1) * ceil_div(cout, channels) * channels + cin);
}

/// fprop for weights of any view, so that dgrad is the same code.
template <class T>
void run_fprop(const Tensor& x, const WeightView<T>& weight, const T* bias, Epilogue e, const Tensor& y,
               const Tensor* selection, Workspace workspace, Context context) {
  const Kernels<T>& kernels = cpu::kernels().of<T>();
  const int64_t channels = kernels.block_channels, blocks = ceil_div(weight.out, channels);
  const int64_t block_values = weight.kernel * weight.kernel * weight.in * channels;
  check_workspace(workspace, fprop_workspace<T>(weight.in, weight.out, weight.kernel));

  Carver<T> carver(workspace);
  T* packed = carver.take(blocks * block_values);
  T* padded_bias = carver.take(blocks * channels);
  T* zeros = carver.take(weight.in);
  std::fill_n(padded_bias, blocks * channels, T(0));
  std::fill_n(zeros, weight.in, T(0));
  if (bias) std::copy_n(bias, weight.out, padded_bias);
  cpu::parallel_for(blocks, context.threads,
                    [&](int64_t block, int) { kernels.conv_pack(weight, block, packed + block * block_values); });

  const ConvArgs<T> args{.x = x.as<T>(),
                         .in = extent_of(x),
                         .kernel = weight.kernel,
                         .cout = weight.out,
                         .packed = packed,
                         .bias = padded_bias,
                         .zeros = zeros,
                         .y = y.as<T>(),
                         .oh = y.size(2),
                         .ow = y.size(3),
                         .relu = e.relu,
                         .pool = e.pool,
                         .selection = selection ? selection->as<uint8_t>() : nullptr};
  const int64_t outputs = y.size(0) * y.size(2) * y.size(3);
  const int64_t tiles = ceil_div(outputs, kernels.tile_pixels / (e.pool ? 4 : 1));
  const int64_t blocks_per_task =
      std::clamp<int64_t>(cache_bytes / (block_values * static_cast<int64_t>(sizeof(T))), 1, blocks);
  const int64_t tile_tasks = ceil_div(tiles, tiles_per_task), block_tasks = ceil_div(blocks, blocks_per_task);
  cpu::parallel_for(tile_tasks * block_tasks, context.threads, [&](int64_t task, int) {
    const int64_t tile = task % tile_tasks * tiles_per_task, block = task / tile_tasks * blocks_per_task;
    kernels.conv_fprop(args, tile, std::min(tile + tiles_per_task, tiles), block,
                       std::min(block + blocks_per_task, blocks));
  });
}

/// How wgrad cuts its sum: by shape alone, so that the result does not depend on the threads.
struct WgradSplit {
  int64_t blocks, input_units, groups, rows_per_group, partial_values, bias_values;

  WgradSplit(const auto& kernels, Extent in, int64_t cout, int64_t kernel)
      : blocks(ceil_div(cout, kernels.block_channels)), input_units(ceil_div(in.c, kernels.wgrad_inputs)) {
    const int64_t rows = std::max<int64_t>(in.n * in.h, 1);
    rows_per_group = ceil_div(rows, std::clamp<int64_t>(ceil_div(wgrad_tasks, blocks * input_units), 1, rows));
    groups = ceil_div(rows, rows_per_group);
    bias_values = blocks * kernels.block_channels;
    partial_values = bias_values * kernel * kernel * in.c;
  }
  int64_t values() const { return groups * (partial_values + bias_values); }
};

template <class T>
void run_wgrad(const Tensor& x, const Tensor& gy, const Tensor& gw, const Tensor* gb, Workspace workspace,
               Context context) {
  const Kernels<T>& kernels = cpu::kernels().of<T>();
  const int64_t cout = gy.size(1), kernel = gw.size(2), taps = kernel * kernel;
  const Extent in = extent_of(x);
  const WgradSplit split(kernels, in, cout, kernel);
  check_workspace(workspace, sizeof(T) * static_cast<size_t>(split.values()));

  Carver<T> carver(workspace);
  T* partial = carver.take(split.groups * split.partial_values);
  T* partial_bias = carver.take(split.groups * split.bias_values);
  std::fill_n(partial, split.values(), T(0));

  const int64_t rows = in.n * in.h, units = split.blocks * split.input_units;
  const int64_t tasks = x.numel() > 0 ? split.groups * units : 0;  // without pixels, the zeros are the sums
  cpu::parallel_for(tasks, context.threads, [&](int64_t task, int) {
    const int64_t group = task / units, unit = task % units, row = group * split.rows_per_group;
    const WgradArgs<T> args{.x = x.as<T>(),
                            .gy = gy.as<T>(),
                            .in = in,
                            .kernel = kernel,
                            .cout = cout,
                            .row_begin = row,
                            .row_end = std::min(row + split.rows_per_group, rows),
                            .partial = partial + group * split.partial_values,
                            .partial_bias = gb ? partial_bias + group * split.bias_values : nullptr};
    kernels.conv_wgrad(args, unit % split.input_units, unit / split.input_units);
  });

  const int64_t channels = kernels.block_channels;
  cpu::parallel_for(cout, context.threads, [&](int64_t out, int) {
    const T* column = partial + out / channels * taps * in.c * channels + out % channels;
    for (int64_t tap = 0; tap < taps; ++tap) {
      T* w = gw.as<T>() + out * gw.stride(0) + tap / kernel * gw.stride(2) + tap % kernel * gw.stride(3);
      for (int64_t c = 0; c < in.c; ++c) {
        T sum = 0;
        for (int64_t group = 0; group < split.groups; ++group) {
          sum += column[group * split.partial_values + (tap * in.c + c) * channels];
        }
        w[c * gw.stride(1)] = sum;
      }
    }
    if (gb) {
      T sum = 0;
      for (int64_t group = 0; group < split.groups; ++group) sum += partial_bias[group * split.bias_values + out];
      gb->as<T>()[out * gb->stride(0)] = sum;
    }
  });
}

}  // namespace

size_t conv_fprop_workspace(const Tensor& x, const Tensor& weight) {
  check_nhwc(x, "x");
  check_kernel(weight, x.size(1), 1, "x");
  return cpu::for_float(x, "x",
                        [&]<class T>() { return fprop_workspace<T>(weight.size(1), weight.size(0), weight.size(2)); });
}

size_t conv_dgrad_workspace(const Tensor& gy, const Tensor& weight) {
  check_nhwc(gy, "gy");
  check_kernel(weight, gy.size(1), 0, "gy");
  return cpu::for_float(gy, "gy",
                        [&]<class T>() { return fprop_workspace<T>(weight.size(0), weight.size(1), weight.size(2)); });
}

size_t conv_wgrad_workspace(const Tensor& x, const Tensor& gy, int64_t kernel) {
  check_nhwc(x, "x");
  check_nhwc(gy, "gy");
  VGGFAST_CHECK(kernel == 1 || kernel == 3, "kernel is ", kernel, ": 1 or 3 is wanted");
  return cpu::for_float(x, "x", [&]<class T>() {
    return sizeof(T) *
           static_cast<size_t>(WgradSplit(cpu::kernels().of<T>(), extent_of(x), gy.size(1), kernel).values());
  });
}

void conv_fprop(const Tensor& x, const Tensor& weight, const Tensor* bias, Epilogue e, const Tensor& y,
                const Tensor* selection, Workspace workspace, Context context) {
  check_nhwc(x, "x");
  check_nhwc(y, "y");
  check_kernel(weight, x.size(1), 1, "x");
  const int64_t cout = weight.size(0), scale = e.pool ? 2 : 1;
  check_like(weight, "weight", weight.shape, x.dtype, x.device);
  check_like(y, "y", {x.size(0), cout, x.size(2) / scale, x.size(3) / scale}, x.dtype, x.device);
  if (bias) check_like(*bias, "bias", {cout}, x.dtype, x.device);
  if (selection) check_selection(*selection, e, y);
  cpu::for_float(x, "x", [&]<class T>() {
    const WeightView<T> view{
        weight.as<T>(),  cout, weight.size(1), weight.size(2), weight.stride(0), weight.stride(1), weight.stride(2),
        weight.stride(3)};
    VGGFAST_CHECK(!bias || bias->stride(0) == 1 || cout == 1, "bias is not contiguous");
    run_fprop<T>(x, view, bias ? bias->as<T>() : nullptr, e, y, selection, workspace, context);
  });
}

void conv_dgrad(const Tensor& gy, const Tensor& weight, const Tensor& gx, Workspace workspace, Context context) {
  check_nhwc(gy, "gy");
  check_nhwc(gx, "gx");
  check_kernel(weight, gy.size(1), 0, "gy");
  check_like(weight, "weight", weight.shape, gy.dtype, gy.device);
  check_like(gx, "gx", {gy.size(0), weight.size(1), gy.size(2), gy.size(3)}, gy.dtype, gy.device);
  cpu::for_float(gy, "gy", [&]<class T>() {
    const int64_t last = weight.size(2) - 1;
    const T* last_tap = weight.as<T>() + last * (weight.stride(2) + weight.stride(3));
    const WeightView<T> flipped{last_tap,         weight.size(1),   weight.size(0),    weight.size(2),
                                weight.stride(1), weight.stride(0), -weight.stride(2), -weight.stride(3)};
    run_fprop<T>(gy, flipped, nullptr, {}, gx, nullptr, workspace, context);
  });
}

void conv_wgrad(const Tensor& x, const Tensor& gy, const Tensor& gw, const Tensor* gb, Workspace workspace,
                Context context) {
  check_nhwc(x, "x");
  check_nhwc(gy, "gy");
  check_kernel(gw, x.size(1), 1, "x");
  check_like(gy, "gy", {x.size(0), gw.size(0), x.size(2), x.size(3)}, x.dtype, x.device);
  check_like(gw, "gw", gw.shape, x.dtype, x.device);
  if (gb) check_like(*gb, "gb", {gw.size(0)}, x.dtype, x.device);
  cpu::for_float(x, "x", [&]<class T>() { run_wgrad<T>(x, gy, gw, gb, workspace, context); });
}

}  // namespace vggfast
