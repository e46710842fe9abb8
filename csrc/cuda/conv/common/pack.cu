// packed[o][tap * in + i] = weights[o][i][tap], or 0 beyond either extent. A block has a tile of output and input
// channels with all their taps. Of the two kinds of channels one lies closer together in memory, with the taps between
// its values or beyond them: a warp reads along that one, whole runs of memory, to shared memory, ordered by tap and
// output channel; after the one barrier it writes along the input channels, whole runs again.
#include "cuda/conv/common/pack.h"
#include "cuda/divider.h"
#include "cuda/ptx/griddepcontrol.h"
#include "cuda/ptx/sync.h"

namespace vggfast::cuda {
namespace {

constexpr int threads = 256, warp = 32, warps = threads / warp, most_taps = 9;

/// Channels of either kind in a tile. Rows are longer by a value and taps by a few, against bank conflicts.
template <class T>
constexpr int side = sizeof(T) == 8 ? 16 : 32;
template <class T>
constexpr int pitch = side<T> + 1;
template <class T>
constexpr int tap_pitch = side<T> * pitch<T> + 8;
template <class T>
constexpr size_t tile_bytes = most_taps * tap_pitch<T> * sizeof(T);

/// How a tile is read: the taps that lie between one channel and the next are read before it.
struct Reading {
  bool along_outs, taps_first;
};

template <class T>
__device__ __forceinline__ T rounded_to_tf32(T value, bool tf32) {
  if constexpr (std::is_same_v<T, float>) {
    if (tf32) return ptx::as_float(ptx::cvt_rna_tf32(value));
  }
  return value;
}

template <class T, int Taps>
__global__ void __launch_bounds__(threads)
    pack_weights_kernel(const WeightView<T> weights, Divider in_tiles, int depth, Reading how, bool tf32, T* packed) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  T* const tile = reinterpret_cast<T*>(ptx::shared_memory());
  const int lane = static_cast<int>(threadIdx.x) % warp, first = static_cast<int>(threadIdx.x) / warp;
  const int block = static_cast<int>(blockIdx.x);
  const int out_tile = in_tiles.quotient(block), in_tile = in_tiles.remainder(block);
  const int out0 = out_tile * side<T>, in0 = in_tile * side<T>;
  const int outs_left = weights.out - out0, ins_left = weights.in - in0;  // of outs none where rows are rounded up
  const int outs = outs_left < side<T> ? outs_left : side<T>, ins = ins_left < side<T> ? ins_left : side<T>;

  const T* const from = weights.data + out0 * weights.out_stride + in0 * weights.in_stride;
  const int count = how.along_outs ? outs : ins, others = how.along_outs ? ins : outs;
  const int64_t stride = how.along_outs ? weights.out_stride : weights.in_stride;
  const int64_t other_stride = how.along_outs ? weights.in_stride : weights.out_stride;
  const int step = how.along_outs ? pitch<T> : 1, other_step = how.along_outs ? 1 : pitch<T>;
  for (int e = lane; e < Taps * side<T>; e += warp) {
    const int tap = how.taps_first ? e % Taps : e / side<T>, channel = how.taps_first ? e / Taps : e % side<T>;
    constexpr int kernel = Taps == 9 ? 3 : 1;
    const T* const source =
        from + channel * stride + tap / kernel * weights.row_stride + tap % kernel * weights.column_stride;
    T* const target = tile + tap * tap_pitch<T> + channel * step;
    if (channel >= count) continue;
#pragma unroll 4
    for (int other = first; other < others; other += warps) {
      target[other * other_step] = rounded_to_tf32(source[other * other_stride], tf32);
    }
  }
  ptx::sync_threads();

  T* const row0 = packed + int64_t(out0) * depth;
  for (int out = first; out < side<T>; out += warps) {
    T* const row = row0 + out * depth;
    if (lane < ins) {
#pragma unroll
      for (int tap = 0; tap < Taps; ++tap) {
        row[tap * weights.in + in0 + lane] = out < outs ? tile[tap * tap_pitch<T> + out * pitch<T> + lane] : T{};
      }
    }
    // The last tile of a row has the zeros at its end.
    if (in0 + ins == weights.in) {
      for (int k = Taps * weights.in + lane; k < depth; k += warp) row[k] = T{};
    }
  }
}

}  // namespace

template <class T>
void pack_weights(const WeightView<T>& weights, bool tf32, T* packed, const Context& context) {
  const int64_t depth = weights.depth(), in_tiles = ceil_div(weights.in, side<T>);
  VGGFAST_CHECK(weights.rows() * depth < (int64_t(1) << 31) - (1 << 20), "weight must have under 2^31 values, got ",
                weights.out, " x ", weights.in, " channels");
  const auto size = [](int64_t stride) { return stride < 0 ? -stride : stride; };
  const bool along_outs = size(weights.out_stride) < size(weights.in_stride);
  const int64_t nearest = size(along_outs ? weights.out_stride : weights.in_stride);
  const Reading how{.along_outs = along_outs, .taps_first = size(weights.column_stride) < nearest};
  const auto start = [&](auto kernel) {
    launch("pack_weights_kernel", kernel,
           {.blocks = static_cast<unsigned>(weights.rows() / side<T> * in_tiles),
            .threads = threads,
            .shared_bytes = tile_bytes<T>},
           context, weights, Divider(in_tiles), static_cast<int>(depth), how, tf32, packed);
  };
  weights.kernel == 3 ? start(pack_weights_kernel<T, 9>) : start(pack_weights_kernel<T, 1>);
}

template void pack_weights(const WeightView<bf16>&, bool, bf16*, const Context&);
template void pack_weights(const WeightView<f16>&, bool, f16*, const Context&);
template void pack_weights(const WeightView<float>&, bool, float*, const Context&);
template void pack_weights(const WeightView<double>&, bool, double*, const Context&);

}  // namespace vggfast::cuda
