// The first layer's fprop: y (n, h, w, cout) = epilogue(3 x 3 taps of x (n, h, w, c <= 4) * weights), bound by storing
// y.
//
// A persistent block owns 128 bytes of y's channels; their weights stay in registers. It walks over tiles of 12 x 32
// pixels: a tile of x and its border come to shared memory, value by value, as rows of c-channel pixels may begin at
// any address, and each lane reads the words of its pixels' patches from there (patch.h). A word begins at an odd value
// where c and the pixel's column are odd: for 16 bits the tile lies there twice, one value apart. Shared memory: two
// buffers of 6 KB, or 8 with four channels. Who waits on whom: the next tile's values are on their way to registers
// while a tile is multiplied; then they go to the other buffer, and all threads meet.
#pragma once

#include "cuda/conv/portable/source.h"
#include "cuda/conv/stem/epilogue.h"
#include "cuda/conv/stem/patch.h"
#include "cuda/divider.h"
#include "cuda/ptx/sync.h"

namespace vggfast::cuda {

template <class T, int Channels>
struct StemFprop {
  using Shape = PatchShape<T, Channels>;
  static constexpr int warps = 6, threads = 32 * warps;
  static constexpr int least_blocks = Channels == 3 ? 2 : 1;
  static constexpr int tile_rows = 2 * warps, tile_columns = 32;  // a warp has a row of windows, eight at a time
  static constexpr int halo_rows = tile_rows + 2, halo_columns = tile_columns + 2;
  static constexpr int group = 128 / static_cast<int>(sizeof(T));  // channels of a block
  static constexpr int blocks_of_32 = group / 32;
  static constexpr int row_values = halo_columns * Channels + 2;  // the last patch's last word may reach beyond it
  static constexpr int copies = sizeof(T) == 2 ? 2 : 1;
  static constexpr int copy_bytes = halo_rows * row_values * static_cast<int>(sizeof(T));
  static constexpr int buffer_bytes = copies * copy_bytes;
  static constexpr int shared_bytes = 2 * buffer_bytes;
  static constexpr int rows_of_warp = (halo_rows + warps - 1) / warps, values_of_lane = (row_values + 31) / 32;
  static_assert(buffer_bytes % 16 == 0 && row_values % 2 == 0);
};

template <class T>
struct StemFpropArgs {
  Source<T> x;
  WeightView<T> weights;
  Output<T> y;
  Divider tiles_across, tiles_down;
  int tiles, groups;
};

struct TilePlace {
  int image, y, x;  // of its first pixel

  template <class Traits, class T>
  __device__ __forceinline__ static TilePlace of(const StemFpropArgs<T>& a, int tile) {
    const int row = a.tiles_across.quotient(tile), image = a.tiles_down.quotient(row);
    return {image, (row - image * static_cast<int>(a.tiles_down.divisor)) * Traits::tile_rows,
            (tile - row * static_cast<int>(a.tiles_across.divisor)) * Traits::tile_columns};
  }
};

/// A thread's values of a tile of x and its border, on their way to shared memory: a warp has every sixth row.
template <class T, int Channels>
class Halo {
 public:
  using Traits = StemFprop<T, Channels>;

  __device__ __forceinline__ void fetch(const Source<T>& x, TilePlace tile) {
    const int row_values = x.w * x.c, first = (tile.x - 1) * x.c + lane();
#pragma unroll
    for (int i = 0; i < Traits::rows_of_warp; ++i) {
      const int y = tile.y - 1 + row_of(i);
      const bool inside = row_of(i) < Traits::halo_rows && static_cast<unsigned>(y) < static_cast<unsigned>(x.h);
      const T* const row = x.data + (int64_t(tile.image) * x.h + y) * row_values;
#pragma unroll
      for (int k = 0; k < Traits::values_of_lane; ++k) {
        const int at = first + 32 * k;
        const bool real = inside && static_cast<unsigned>(at) < static_cast<unsigned>(row_values);
        held_[i][k] = real ? row[at] : T{};
      }
    }
  }

  __device__ __forceinline__ void store(char* buffer) const {
    T* const values = reinterpret_cast<T*>(buffer);
#pragma unroll
    for (int i = 0; i < Traits::rows_of_warp; ++i) {
      if (row_of(i) >= Traits::halo_rows) continue;
#pragma unroll
      for (int k = 0; k < Traits::values_of_lane; ++k) {
        const int at = lane() + 32 * k;
        if (at >= Traits::row_values) continue;
        T* const to = values + row_of(i) * Traits::row_values + at;
        if constexpr (sizeof(T) == 4) {
          *to = ptx::as_float(ptx::cvt_rna_tf32(held_[i][k]));
        } else {
          *to = held_[i][k];
          if (at > 0) to[Traits::halo_rows * Traits::row_values - 1] = held_[i][k];  // the other copy
        }
      }
    }
  }

 private:
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ __forceinline__ static int row_of(int i) { return static_cast<int>(threadIdx.x) / 32 + Traits::warps * i; }

  T held_[Traits::rows_of_warp][Traits::values_of_lane];
};

/// What a lane keeps for all tiles: its weights, and where the words of its patches lie and what of them is real.
template <class T, int Channels>
struct StemLane {
  using Traits = StemFprop<T, Channels>;
  using Shape = typename Traits::Shape;

  Lane at;
  uint32_t weights[Traits::blocks_of_32][4][Shape::steps][2];
  int offset[Shape::words];
  uint32_t mask[Shape::words], one;
  int right;  // from a pixel of an even column to its right neighbour, in bytes; the copy that has it aligned

  __device__ __forceinline__ StemLane(const StemFpropArgs<T>& a, int first_channel) {
    const int c = a.x.c;
    const bool shifted = Traits::copies == 2 && c % 2 == 1;
    right = (shifted ? c - 1 : c) * static_cast<int>(sizeof(T)) + (shifted ? Traits::copy_bytes : 0);
#pragma unroll
    for (int i = 0; i < Shape::words; ++i) {
      const PatchWord<T, Channels> word(c, 4 * i + at.within);
      mask[i] = word.mask();
      offset[i] = word.offset(Traits::row_values) * static_cast<int>(sizeof(T));
      if (i == Shape::words - 1) one = word.one();
#pragma unroll
      for (int block = 0; block < Traits::blocks_of_32; ++block) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          // Column g of product j is a channel of lane g / 2: the one that its sums' element g % 2 is to be.
          const int channel = first_channel + 32 * block + at.group / 2 * lane_channels + 2 * j + at.group % 2;
          weights[block][j][i / 2][i % 2] = word.of_weights(a.weights, a.y.bias, channel);
        }
      }
    }
  }

  /// The operand of a window's pixels in row `down` of it, from where the window lies.
  __device__ __forceinline__ void load(const char* window, int down, uint32_t (&pixels)[Shape::steps][4]) const {
#pragma unroll
    for (int i = 0; i < Shape::words; ++i) {
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        const char* const word = window + (column ? right : 0) + offset[i];
        uint32_t& value = pixels[i / 2][i % 2 * 2 + column];
        value = mask[i] & *reinterpret_cast<const uint32_t*>(word + down * Traits::row_values * sizeof(T));
        if (i == Shape::words - 1) value |= one;
      }
    }
  }
};

/// Eight windows of a warp, of which this lane's lies at `window`: all their products and outputs.
template <class T, int Channels>
__device__ __forceinline__ void compute_windows(const StemLane<T, Channels>& lane, const char* window, int channels,
                                                const WindowOutputs<T>& outputs) {
  using Traits = StemFprop<T, Channels>;
  uint32_t pixels[2][Traits::Shape::steps][4];
#pragma unroll
  for (int down = 0; down < 2; ++down) lane.load(window, down, pixels[down]);
#pragma unroll
  for (int block = 0; block < Traits::blocks_of_32; ++block) {
    WindowSums sums;
#pragma unroll
    for (int down = 0; down < 2; ++down) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float sum[4] = {};
#pragma unroll
        for (int step = 0; step < Traits::Shape::steps; ++step) {
          StemMath<T>::product(sum, pixels[down][step], lane.weights[block][j][step]);
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[2 * down + e / 2][2 * j + e % 2] = sum[e];
      }
    }
    if (32 * block < channels) outputs.store(sums, 32 * block);
  }
}

template <class T, int Channels>
__global__ void __launch_bounds__(StemFprop<T, Channels>::threads, StemFprop<T, Channels>::least_blocks)
    stem_fprop_kernel(const StemFpropArgs<T> a) {
  using Traits = StemFprop<T, Channels>;
  char* const shared = ptx::shared_memory();
  const int first_channel = static_cast<int>(blockIdx.x) % a.groups * Traits::group;
  const int step = static_cast<int>(gridDim.x) / a.groups, warp = static_cast<int>(threadIdx.x) / 32;
  int tile = static_cast<int>(blockIdx.x) / a.groups;
  const StemLane<T, Channels> lane(a, first_channel);
  const int channel = first_channel + lane.at.within * lane_channels;
  Halo<T, Channels> halo;
  TilePlace place = TilePlace::of<Traits>(a, tile);
  halo.fetch(a.x, place);
  halo.store(shared);
  ptx::sync_threads();
#pragma unroll 1
  for (int buffer = 0; tile < a.tiles; buffer ^= 1) {
    const TilePlace now = place;
    tile += step;
    place = TilePlace::of<Traits>(a, tile);
    if (tile < a.tiles) halo.fetch(a.x, place);
    const char* const row = shared + buffer * Traits::buffer_bytes + 2 * warp * Traits::row_values * sizeof(T);
    if (now.y + 2 * warp < a.y.h) {
#pragma unroll 1
      for (int x = 2 * lane.at.group; x < Traits::tile_columns; x += 16) {
        const WindowOutputs<T> outputs(a.y, now.image, now.y + 2 * warp, now.x + x, channel);
        compute_windows(lane, row + x * a.x.c * sizeof(T), a.y.c - channel, outputs);
      }
    }
    if (tile < a.tiles) halo.store(shared + (buffer ^ 1) * Traits::buffer_bytes);
    ptx::sync_threads();
  }
}

}  // namespace vggfast::cuda
