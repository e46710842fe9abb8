// Direct convolution on the CPU: sizes, packing, and how threads divide the tiles. Kernels: cpu/kernels/conv.h.
#include <algorithm>
#include <limits>

#include "cpu/algorithms/conv_algorithm.h"
#include "cpu/parallel.h"

namespace vggfast::cpu {
namespace {

constexpr int64_t cache_bytes = 256 << 10;  // of packed weights that one task reads again for each tile: a part of L2
constexpr int64_t tiles_per_task = 16;
constexpr int64_t wgrad_tasks = 64;        // pixels are split until there are about as many tasks of wgrad
constexpr int64_t grain_values = 1 << 14;  // of a masked input that make a piece of work worth a thread

/// One layer's direct convolution, 3x3 or 1x1, by the instruction set in use.
template <class T>
class Direct {
 public:
  Direct(int64_t cin, int64_t cout, int64_t kernel);

  /// Values of the packed weights with the padded bias, and what else fprop reads.
  int64_t packed_values() const { return blocks_ * (block_values_ + kernels_.block_channels) + cin_; }
  void pack(const WeightView<T>& weight, const T* bias, T* packed, int threads) const;
  void fprop(const ConvInput<T>& in, const T* packed, const ConvOutput<T>& out, int threads) const;

 private:
  const Kernels<T>& kernels_;
  int64_t cin_, cout_, kernel_, blocks_, block_values_;
};

/// Its weights' gradient: each task sums one block of weights over its own rows of pixels; groups of rows are added up
/// at the end.
template <class T>
class DirectWgrad {
 public:
  DirectWgrad(Extent in, int64_t cout, int64_t kernel);
  int64_t workspace_values() const { return groups_ * (partial_values_ + bias_values_); }
  /// `gb` may be null; its stride is in elements.
  void run(const T* x, const T* gy, const WeightView<T>& shape, T* gw, T* gb, int64_t gb_stride, T* workspace,
           int threads) const;

 private:
  void add_up(const T* partial, const T* partial_bias, const WeightView<T>& shape, T* gw, T* gb, int64_t gb_stride,
              int threads) const;

  const Kernels<T>& kernels_;
  Extent in_;
  int64_t cout_, kernel_, blocks_, input_units_, rows_per_group_, groups_, bias_values_, partial_values_;
};

template <class T>
Direct<T>::Direct(int64_t cin, int64_t cout, int64_t kernel)
    : kernels_(kernels().of<T>()),
      cin_(cin),
      cout_(cout),
      kernel_(kernel),
      blocks_(ceil_div(cout, kernels_.block_channels)),
      block_values_(kernel * kernel * cin * kernels_.block_channels) {}

template <class T>
void Direct<T>::pack(const WeightView<T>& weight, const T* bias, T* packed, int threads) const {
  parallel_for(blocks_, threads,
               [&](int64_t block, int) { kernels_.conv_pack(weight, block, packed + block * block_values_); });
  T* rest = packed + blocks_ * block_values_;
  std::fill_n(rest, blocks_ * kernels_.block_channels + cin_, T(0));
  if (bias) std::copy_n(bias, cout_, rest);
}

template <class T>
void Direct<T>::fprop(const ConvInput<T>& in, const T* packed, const ConvOutput<T>& out, int threads) const {
  const T* bias = packed + blocks_ * block_values_;
  const ConvArgs<T> args{.x = in.data,
                         .in = in.extent,
                         .kernel = kernel_,
                         .packed = packed,
                         .bias = bias,
                         .zeros = bias + blocks_ * kernels_.block_channels,
                         .out = out};
  const int64_t tiles = ceil_div(in.extent.n * out.h * out.w, kernels_.tile_pixels / (out.pool ? 4 : 1));
  const int64_t blocks_per_task =
      std::clamp<int64_t>(cache_bytes / (block_values_ * static_cast<int64_t>(sizeof(T))), 1, blocks_);
  const int64_t tile_tasks = ceil_div(tiles, tiles_per_task), block_tasks = ceil_div(blocks_, blocks_per_task);
  parallel_for(tile_tasks * block_tasks, threads, [&](int64_t task, int) {
    const int64_t tile = task % tile_tasks * tiles_per_task, block = task / tile_tasks * blocks_per_task;
    kernels_.conv_fprop(args, tile, std::min(tile + tiles_per_task, tiles), block,
                        std::min(block + blocks_per_task, blocks_));
  });
}

template <class T>
DirectWgrad<T>::DirectWgrad(Extent in, int64_t cout, int64_t kernel)
    : kernels_(kernels().of<T>()),
      in_(in),
      cout_(cout),
      kernel_(kernel),
      blocks_(ceil_div(cout, kernels_.block_channels)),
      input_units_(ceil_div(in.c, kernels_.wgrad_inputs)) {
  // By shape alone, so that the result does not depend on the threads.
  const int64_t rows = std::max<int64_t>(in.n * in.h, 1);
  rows_per_group_ = ceil_div(rows, std::clamp<int64_t>(ceil_div(wgrad_tasks, blocks_ * input_units_), 1, rows));
  groups_ = ceil_div(rows, rows_per_group_);
  bias_values_ = blocks_ * kernels_.block_channels;
  partial_values_ = bias_values_ * kernel * kernel * in.c;
}

template <class T>
void DirectWgrad<T>::run(const T* x, const T* gy, const WeightView<T>& shape, T* gw, T* gb, int64_t gb_stride,
                         T* workspace, int threads) const {
  T* partial_bias = workspace + groups_ * partial_values_;
  std::fill_n(workspace, workspace_values(), T(0));
  const int64_t rows = in_.n * in_.h, units = blocks_ * input_units_;
  const int64_t tasks = rows * in_.w > 0 ? groups_ * units : 0;  // without pixels, the zeros are the sums
  parallel_for(tasks, threads, [&](int64_t task, int) {
    const int64_t group = task / units, unit = task % units, row = group * rows_per_group_;
    const WgradArgs<T> args{.x = x,
                            .gy = gy,
                            .in = in_,
                            .kernel = kernel_,
                            .cout = cout_,
                            .row_begin = row,
                            .row_end = std::min(row + rows_per_group_, rows),
                            .partial = workspace + group * partial_values_,
                            .partial_bias = gb ? partial_bias + group * bias_values_ : nullptr};
    kernels_.conv_wgrad(args, unit % input_units_, unit / input_units_);
  });
  add_up(workspace, partial_bias, shape, gw, gb, gb_stride, threads);
}

template <class T>
void DirectWgrad<T>::add_up(const T* partial, const T* partial_bias, const WeightView<T>& shape, T* gw, T* gb,
                            int64_t gb_stride, int threads) const {
  const int64_t channels = kernels_.block_channels, taps = kernel_ * kernel_;
  parallel_for(cout_, threads, [&](int64_t out, int) {
    const T* column = partial + out / channels * taps * in_.c * channels + out % channels;
    for (int64_t tap = 0; tap < taps; ++tap) {
      T* w = gw + out * shape.stride_out + tap / kernel_ * shape.stride_row + tap % kernel_ * shape.stride_column;
      for (int64_t c = 0; c < in_.c; ++c) {
        T sum = 0;
        for (int64_t group = 0; group < groups_; ++group) {
          sum += column[group * partial_values_ + (tap * in_.c + c) * channels];
        }
        w[c * shape.stride_in] = sum;
      }
    }
    if (gb) {
      T sum = 0;
      for (int64_t group = 0; group < groups_; ++group) sum += partial_bias[group * bias_values_ + out];
      gb[out * gb_stride] = sum;
    }
  });
}

/// What mask_scatter makes of `in` at `to`, or `in` itself where it has no mask: the direct kernels read none.
template <class T>
ConvInput<T> scattered(const ConvInput<T>& in, T* to, int threads) {
  if (!in.mask) return in;
  const Extent e = in.extent;
  const MaskArgs<T> args{.z = to,
                         .y = const_cast<T*>(in.data),  // mask_scatter reads it
                         .mask = const_cast<uint8_t*>(in.mask),
                         .big = e,
                         .oh = in.stored_h,
                         .ow = in.stored_w,
                         .relu = in.relu,
                         .pool = in.pool};
  if (in.stored_h * in.stored_w == 0) {  // a single row or column may have no window
    std::fill_n(to, e.n * e.h * e.w * e.c, T(0));
  } else {
    parallel_ranges(e.n * in.stored_h, 1 + grain_values / (1 + in.stored_w * e.c), threads,
                    [&](int64_t begin, int64_t end, int) { kernels().of<T>().mask_scatter(args, begin, end); });
  }
  return {.data = to, .extent = e};
}

bool supports(const ConvProblem& p) {
  if (p.bf16_weights || p.dtype == DType::bf16) return false;
  return !p.packed || (p.pass == Pass::fprop && p.dtype == DType::f32);
}

ConvEstimate cost(const ConvProblem& p) {
  // "auto" takes it only where no other can: its kernels reach 0.75 to 0.96 of the speed of torch's direct ones, which
  // Winograd's exceed on every layer of a VGG.
  return {p.in.n * p.in.h * p.in.w * p.kernel * p.kernel * p.in.c * p.cout, std::numeric_limits<double>::infinity()};
}

/// Calls body.operator()<T>() for the problem's dtype.
template <class Body>
auto for_dtype(const ConvProblem& p, Body body) {
  return p.dtype == DType::f64 ? body.template operator()<double>() : body.template operator()<float>();
}

size_t packed_bytes(const ConvProblem& p) {
  return for_dtype(p, [&]<class T>() {
    return sizeof(T) * static_cast<size_t>(Direct<T>(p.in.c, p.cout, p.kernel).packed_values());
  });
}

size_t workspace_bytes(const ConvProblem& p) {
  return for_dtype(p, [&]<class T>() {
    const int64_t pixels = p.in.n * p.in.h * p.in.w;
    int64_t values = 0;
    if (p.pass == Pass::wgrad) {
      values = DirectWgrad<T>(p.in, p.cout, p.kernel).workspace_values() + (p.masked ? pixels * p.cout : 0);
    } else {
      if (!p.packed) values += Direct<T>(p.in.c, p.cout, p.kernel).packed_values();
      if (p.masked) values += pixels * p.in.c;
    }
    return sizeof(T) * static_cast<size_t>(values);
  });
}

void pack(const ConvProblem& p, const WeightView<float>& weight, const float* bias, void* packed) {
  Direct<float>(p.in.c, p.cout, p.kernel).pack(weight, bias, static_cast<float*>(packed), p.threads);
}

void run(const ConvProblem& p, const ConvCall& call) {
  for_dtype(p, [&]<class T>() {
    const Direct<T> layer(p.in.c, p.cout, p.kernel);
    const T* packed = static_cast<const T*>(call.packed);
    T* free = static_cast<T*>(call.workspace);
    if (!p.packed) {
      layer.pack(cast<T>(call.weight), static_cast<const T*>(call.bias), free, p.threads);
      packed = free;
      free += layer.packed_values();
    }
    layer.fprop(scattered(cast<T>(call.in), free, p.threads), packed, cast<T>(call.out), p.threads);
  });
}

void run_wgrad(const ConvProblem& p, const WgradCall& call) {
  for_dtype(p, [&]<class T>() {
    const DirectWgrad<T> sums(p.in, p.cout, p.kernel);
    T* values = static_cast<T*>(call.workspace);
    const ConvInput<T> gz = scattered(cast<T>(call.gy), values + sums.workspace_values(), p.threads);
    sums.run(static_cast<const T*>(call.x.data), gz.data, cast<T>(call.shape), static_cast<T*>(call.gw),
             static_cast<T*>(call.gb), call.gb_stride, values, p.threads);
  });
}

}  // namespace

const ConvAlgorithm direct_conv{.name = "direct",
                                .roundings = 8,
                                .supports = supports,
                                .cost = cost,
                                .packed_bytes = packed_bytes,
                                .workspace_bytes = workspace_bytes,
                                .pack = pack,
                                .run = run,
                                .run_wgrad = run_wgrad};

}  // namespace vggfast::cpu
