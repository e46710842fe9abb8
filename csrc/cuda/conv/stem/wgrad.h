// The first layer's wgrad: gw (cout x 9 * c, c <= 4) = gz^T (cout x pixels) * x shifted by each tap (pixels x 9 * c),
// and gb beside it, bound by reading gy, whose mask makes gz of it.
//
// The tiles, 8 columns x 4 rows (2 of float32) of one image, are shared out evenly among all warps. A warp multiplies
// 64 channels of gz by all taps and keeps the sums in registers to the end; then a block's warps add theirs up in
// order, to partial (splits x cout x 9 * c) and partial_bias (splits x cout), for reduce.cu. Shared memory of a warp:
// two stages of 4 KB of gz, by pixel; and 1 to 2 KB of x with its border, a copy for each column of taps, so that two
// pixels are one aligned word, and zero where a tile overhangs; 57 to 63 KB a block. Who waits on whom: lanes wait for
// their warp, twice a tile, while the next one is loaded; warps wait for each other only before the last sum.
#pragma once

#include "cuda/conv/common/wgrad_args.h"
#include "cuda/conv/common/wgrad_math.h"
#include "cuda/conv/stem/gradients.h"
#include "cuda/conv/stem/words.h"
#include "cuda/ptx/griddepcontrol.h"

namespace vggfast::cuda {

template <class T, int Channels>
struct StemWgrad {
  static constexpr int warps = 6, threads = 32 * warps;
  static constexpr int least_blocks = Channels == 3 ? 2 : 1;
  static constexpr int group = 64;  // channels of a block
  static constexpr int columns = 8, rows = pixels_of_a_stage<T> / columns;
  using Stage = PixelStage<T, group>;
  static constexpr int halo_columns = columns + 2, halo_rows = rows + 2;
  static constexpr int values_of_lane = (halo_columns * Channels + 31) / 32;  // of a row of the border
  static constexpr int plane_rows = halo_rows + 1;  // odd: consecutive planes fall into different banks
  static constexpr int ones_at = 3 * Channels * plane_rows * columns;  // after x, in values
  static constexpr bool bias_by_ones = sizeof(T) == 2;                 // TF32 would round the gradients
  static constexpr int inputs = ones_at + (bias_by_ones ? rows * columns : 0);
  static constexpr int input_bytes = inputs * static_cast<int>(sizeof(T));
  static constexpr int warp_bytes = 2 * Stage::bytes + input_bytes;
  static constexpr int blocks_across = (9 * Channels + 7) / 8, blocks_down = group / 16;  // products
  static constexpr int depth = values_of_word<T> * 8;                                     // pixels of a product
  static constexpr int sums_of_row = 8 * blocks_across + 1;                               // the last one is the bias'
  static constexpr int sum_bytes = group * sums_of_row * static_cast<int>(sizeof(float));
  static constexpr int shared_bytes = warps * (warp_bytes > sum_bytes ? warp_bytes : sum_bytes);
  static constexpr int least_tiles = 4;  // of a warp
  static_assert(warp_bytes % chunk_bytes == 0);
};

template <class T>
struct StemWgradArgs {
  Source<T> x, gz;
  Divider tiles_across, tiles_down;
  int tiles, groups, splits;
  float *partial, *partial_bias;  // partial_bias may be null
};

/// A lane's part of a tile of gz: one chunk of some columns of each row.
template <class T, class Traits>
class WgradGradients {
 public:
  using Stage = typename Traits::Stage;

  __device__ __forceinline__ WgradGradients(int first_channel, Lane at)
      : c_(first_channel + at.lane % Stage::chunks * chunk_of<T>) {}

  __device__ __forceinline__ void fetch(const Source<T>& gz, TilePlace tile, char* stage, Lane at) {
#pragma unroll
    for (int row = 0; row < Traits::rows; ++row) {
      const GradientRow gradients(gz, tile.image, tile.y + row);
#pragma unroll
      for (int i = 0; i < columns; ++i) {
        const GradientColumn column(gz, tile.x + apart * i + at.lane / Stage::chunks);
        chunks_.fetch(gz, row * columns + i, gradients, column, c_, stage + target(row * columns + i, at));
      }
    }
    ptx::cp_async_commit_group();
    chunks_.fetch_bits(gz);
  }

  /// Waits for them, and applies the mask where they lie.
  __device__ __forceinline__ void select(const Source<T>& gz, char* stage, Lane at) const {
    ptx::cp_async_wait_group<0>();
    if (!gz.relu && !gz.pool) return;
#pragma unroll
    for (int i = 0; i < Traits::rows * columns; ++i) {
      char* const chunk = stage + target(i, at);
      *reinterpret_cast<Words*>(chunk) = chunks_.read_masked(i, c_, chunk);
    }
  }

 private:
  static constexpr int apart = 32 / Stage::chunks, columns = Traits::columns / apart;

  __device__ __forceinline__ static int target(int i, Lane at) {
    return Stage::chunk_offset(apart * i + at.lane / Stage::chunks, at.lane % Stage::chunks);
  }

  int c_;
  GradientChunks<T, Traits::rows * columns> chunks_;
};

/// A lane's values of a tile of x and its border: value `lane` of each row, and of four channels the 32nd further.
template <class T, int Channels>
class WgradInputs {
 public:
  using Traits = StemWgrad<T, Channels>;

  __device__ __forceinline__ WgradInputs(int c, Lane at) {
#pragma unroll
    for (int k = 0; k < Traits::values_of_lane; ++k) {
      column_[k] = (at.lane + 32 * k) / c;
      channel_[k] = at.lane + 32 * k - column_[k] * c;
    }
  }

  __device__ __forceinline__ void fetch(const Source<T>& x, TilePlace tile, Lane at) {
    const int64_t row_values = int64_t(x.w) * x.c;
    const T* from =
        x.data + (int64_t(tile.image) * x.h + tile.y - 1) * row_values + int64_t(tile.x - 1) * x.c + at.lane;
#pragma unroll
    for (int row = 0; row < Traits::halo_rows; ++row) {
      const bool inside = static_cast<unsigned>(tile.y - 1 + row) < static_cast<unsigned>(x.h);
#pragma unroll
      for (int k = 0; k < Traits::values_of_lane; ++k) {
        const bool real = inside && column_[k] < Traits::halo_columns &&
                          static_cast<unsigned>(tile.x - 1 + column_[k]) < static_cast<unsigned>(x.w);
        held_[row][k] = T{};
        if (real) held_[row][k] = from[32 * k];
      }
      from += row_values;
    }
  }

  /// A copy for each column of taps; pixels that a tile has beyond the image have no neighbours.
  __device__ __forceinline__ void store(char* inputs, int columns) const {
#pragma unroll
    for (int k = 0; k < Traits::values_of_lane; ++k) {
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) {
        const int column = column_[k] - tap;
        if (static_cast<unsigned>(column) >= static_cast<unsigned>(Traits::columns)) continue;
#pragma unroll
        for (int row = 0; row < Traits::halo_rows; ++row) {
          T value = column < columns ? held_[row][k] : T{};
          if constexpr (sizeof(T) == 4) value = ptx::as_float(ptx::cvt_rna_tf32(value));
          reinterpret_cast<T*>(inputs)[place(tap, channel_[k], row) + column] = value;
        }
      }
    }
  }

  __device__ __forceinline__ static void store_ones(char* inputs, Lane at) {
    T* const ones = reinterpret_cast<T*>(inputs) + Traits::ones_at;
    for (int i = at.lane; i < Traits::rows * Traits::columns; i += 32) ones[i] = narrow<T>(1.0f);
  }

  /// Where the first pixel of a tile lies for the tap and channel of a column of gw; the column after them is the
  /// bias', and what those beyond read is of no use.
  __device__ __forceinline__ static int place_of_column(int column, int c) {
    const int tap = column / c;
    if (Traits::bias_by_ones && column == 9 * c) return Traits::ones_at;
    return tap < 9 ? place(tap % 3, column - tap * c, tap / 3) : 0;
  }

 private:
  __device__ __forceinline__ static int place(int tap, int channel, int row) {
    return ((tap * Channels + channel) * Traits::plane_rows + row) * Traits::columns;
  }

  int column_[Traits::values_of_lane], channel_[Traits::values_of_lane];
  T held_[Traits::halo_rows][Traits::values_of_lane];
};

/// A warp's sums, and the bias'.
template <class Traits>
struct WgradSums {
  float products[Traits::blocks_down][Traits::blocks_across][4] = {};
  float bias[Traits::blocks_down][2] = {};
};

/// Adds a tile of `rows` real rows to the sums. `places`: of this lane's column of gw of each product.
template <class T, class Traits>
__device__ __forceinline__ void multiply_tile(WgradSums<Traits>& sums, const char* stage, const T* inputs,
                                              const int (&places)[Traits::blocks_across], int rows, bool with_bias,
                                              Lane at) {
  constexpr int rows_of_product = Traits::depth / Traits::columns;
#pragma unroll
  for (int product = 0; product < Traits::rows / rows_of_product; ++product) {
    const int row = product * rows_of_product;
    if (row >= rows) break;
    uint32_t fb[Traits::blocks_across][2];
#pragma unroll
    for (int j = 0; j < Traits::blocks_across; ++j) {
      const T* const line = inputs + places[j] + row * Traits::columns + at.within * values_of_word<T>;
      fb[j][0] = *reinterpret_cast<const uint32_t*>(line);
      fb[j][1] = *reinterpret_cast<const uint32_t*>(line + 4 * values_of_word<T>);
      if (row + rows_of_product > rows) fb[j][1] = 0;  // its row is beyond the image, those above and below may not be
    }
#pragma unroll
    for (int i = 0; i < Traits::blocks_down; ++i) {
      uint32_t fa[4];
      load_a<T, typename Traits::Stage>(fa, stage, product * Traits::depth, 16 * i, at);
      if (!Traits::bias_by_ones && with_bias) {
        sums.bias[i][0] += sum_of_register<T>(fa[0]) + sum_of_register<T>(fa[2]);
        sums.bias[i][1] += sum_of_register<T>(fa[1]) + sum_of_register<T>(fa[3]);
      }
#pragma unroll
      for (uint32_t& word : fa) word = rounded<StemMath<T>>(word);
#pragma unroll
      for (int j = 0; j < Traits::blocks_across; ++j) StemMath<T>::product(sums.products[i][j], fa, fb[j]);
    }
  }
}

/// Puts a warp's sums down for the block, a row for each channel.
template <class Traits>
__device__ __forceinline__ void put_down(const WgradSums<Traits>& sums, float* to, Lane at) {
#pragma unroll
  for (int i = 0; i < 2 * Traits::blocks_down; ++i) {
    float* const row = to + (8 * i + at.group) * Traits::sums_of_row;
#pragma unroll
    for (int j = 0; j < Traits::blocks_across; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) row[8 * j + 2 * at.within + e] = sums.products[i / 2][j][i % 2 * 2 + e];
    }
    if (Traits::bias_by_ones) continue;
    float bias = sums.bias[i / 2][i % 2];
    bias += ptx::as_float(ptx::shfl_xor(ptx::as_bits(bias), 1));
    bias += ptx::as_float(ptx::shfl_xor(ptx::as_bits(bias), 2));
    if (at.within == 0) row[Traits::sums_of_row - 1] = bias;
  }
}

/// Adds up what the warps have put down, and writes this block's part of the partial sums.
template <class Traits, class T>
__device__ __forceinline__ void store_sums(const StemWgradArgs<T>& a, const float* sums, int split, int first_channel) {
  const int columns = 9 * a.x.c, left = a.gz.c - first_channel, channels = left < Traits::group ? left : Traits::group;
  const auto total = [&](int channel, int column) {
    float total = 0;
    for (int warp = 0; warp < Traits::warps; ++warp) {
      total += sums[(warp * Traits::group + channel) * Traits::sums_of_row + column];
    }
    return total;
  };
  const int64_t first = int64_t(split) * a.gz.c + first_channel;
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < channels * columns; i += Traits::threads) {
    a.partial[first * columns + i] = total(i / columns, i % columns);
  }
  const int bias = Traits::bias_by_ones ? columns : Traits::sums_of_row - 1;
  if (a.partial_bias && thread < channels) a.partial_bias[first + thread] = total(thread, bias);
}

template <class T, int Channels>
__global__ void __launch_bounds__(StemWgrad<T, Channels>::threads, StemWgrad<T, Channels>::least_blocks)
    stem_wgrad_kernel(const StemWgradArgs<T> a) {
  using Traits = StemWgrad<T, Channels>;
  const int first_channel = static_cast<int>(blockIdx.x) % a.groups * Traits::group;
  const int split = static_cast<int>(blockIdx.x) / a.groups, warp = static_cast<int>(threadIdx.x) / 32;
  const int share = split * Traits::warps + warp, shares = a.splits * Traits::warps;
  const int begin = static_cast<int>(int64_t(a.tiles) * share / shares);
  const int end = static_cast<int>(int64_t(a.tiles) * (share + 1) / shares);
  const Lane at;
  char* const stages = ptx::shared_memory() + warp * Traits::warp_bytes;
  char* const inputs_at = stages + 2 * Traits::Stage::bytes;
  int places[Traits::blocks_across];
#pragma unroll
  for (int j = 0; j < Traits::blocks_across; ++j) {
    places[j] = WgradInputs<T, Channels>::place_of_column(8 * j + at.group, a.x.c);
  }
  WgradGradients<T, Traits> gradients(first_channel, at);
  WgradInputs<T, Channels> inputs(a.x.c, at);
  WgradSums<Traits> sums;
  TilePlace next = TilePlace::of<Traits::rows, Traits::columns>(a.tiles_across, a.tiles_down, begin);
  const auto fetch = [&](int stage) {
    gradients.fetch(a.gz, next, stages + stage * Traits::Stage::bytes, at);
    inputs.fetch(a.x, next, at);
  };
  if (Traits::bias_by_ones) inputs.store_ones(inputs_at, at);
  ptx::griddepcontrol_wait();
  if (begin < end) fetch(0);
#pragma unroll 1
  for (int tile = begin, stage = 0; tile < end; ++tile, stage ^= 1) {
    const TilePlace now = next;
    char* const gradients_at = stages + stage * Traits::Stage::bytes;
    gradients.select(a.gz, gradients_at, at);
    inputs.store(inputs_at, a.x.w - now.x);
    next = TilePlace::of<Traits::rows, Traits::columns>(a.tiles_across, a.tiles_down, tile + 1);
    if (tile + 1 < end) fetch(stage ^ 1);
    ptx::sync_warp();
    multiply_tile<T, Traits>(sums, gradients_at, reinterpret_cast<const T*>(inputs_at), places, a.x.h - now.y,
                             a.partial_bias != nullptr, at);
    ptx::sync_warp();
  }
  ptx::griddepcontrol_launch_dependents();
  ptx::sync_threads();
  float* const put = reinterpret_cast<float*>(ptx::shared_memory());
  put_down(sums, put + warp * Traits::group * Traits::sums_of_row, at);
  ptx::sync_threads();
  store_sums<Traits>(a, put, split, first_channel);
}

}  // namespace vggfast::cuda
