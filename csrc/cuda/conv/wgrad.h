// The weights' gradient as an implicit GEMM whose sum runs over pixels, and the bias' beside it.
//
//   gw (cout x taps * cin) = gz^T (cout x pixels) * x, shifted by each tap (pixels x taps * cin)
//
// Both operands are read where they lie, gz through its selection. A block owns a tile of gw and a share of the pixels
// (split); its sums go to partial (splits x cout x taps * cin) and partial_bias (splits x cout), which reduce.cu adds
// up in order: no atomics, the same bits every time. Shared memory: Tile::stages stages of rows + columns times 64
// bytes, 64 KB at most. Waiting is as in fprop.h.
#pragma once

#include "cuda/conv/source.h"
#include "cuda/conv/wgrad_math.h"
#include "cuda/divider.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/sync.h"
#include "cuda/ptx/warp.h"

namespace vggfast::cuda {

template <class T>
struct WgradArgs {
  Source<T> x, gz;
  Divider image, row;  // pixels of one
  int pixels;          // of the batch
  int kernel;
  int columns;  // taps * cin
  int row_tiles, column_tiles, splits;
  std::conditional_t<sizeof(T) == 8, double, float>*partial, *partial_bias;  // partial_bias may be null
};

struct Pixel {
  int image, y, x;
};
template <class T>
__device__ __forceinline__ Pixel pixel_at(const WgradArgs<T>& a, int pixel) {
  const int image = a.image.quotient(pixel), within = pixel - image * static_cast<int>(a.image.divisor);
  const int y = a.row.quotient(within);
  return {image, y, within - y * static_cast<int>(a.row.divisor)};
}

/// A thread's chunks of an operand's stages: column threadIdx % chunks of a row, every so many pixels. An operand is
/// `Taps` ? x, its column tap * cin + channel : gz, its column the channel.
template <class T, class Tile, int Columns, Reads How, bool Taps>
class PixelChunks {
 public:
  using Stage = PixelStage<T, Columns>;
  static constexpr int apart = Tile::threads / Stage::chunks;
  static constexpr int count = pixels_of_a_stage<T> / apart;

  __device__ __forceinline__ PixelChunks(const WgradArgs<T>& a, int first_column) {
    column_ = first_column + static_cast<int>(threadIdx.x) % Stage::chunks * chunk_of<T>;
    const int channels = source(a).c;
    tap_ = Taps ? column_ / channels : 0;
    channel_ = column_ - tap_ * channels;
  }

  /// Begins to bring pixels [first, first + pixels_of_a_stage).
  __device__ __forceinline__ void fetch(const WgradArgs<T>& a, int first, char* stage) {
    const Source<T>& from = source(a);
    const int taps = Taps ? a.kernel * a.kernel : 1;
    const int dy = Taps ? tap_ / a.kernel - a.kernel / 2 : 0, dx = Taps ? tap_ % a.kernel - a.kernel / 2 : 0;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int row = static_cast<int>(threadIdx.x) / Stage::chunks + apart * i;
      Pixel p = pixel_at(a, first + row);
      const bool real = first + row < a.pixels;
      if constexpr (How == Reads::gathered) {
#pragma unroll
        for (int e = 0; e < chunk_of<T>; ++e) {
          int tap = tap_, channel = channel_ + e;
          while (Taps && channel >= from.c) channel -= from.c, ++tap;
          const bool inside = real && tap < taps && channel < from.c;
          const int ey = Taps ? tap / a.kernel - a.kernel / 2 : 0, ex = Taps ? tap % a.kernel - a.kernel / 2 : 0;
          held_[i].values[e] = inside ? from.element(p.image, p.y + ey, p.x + ex, channel) : T{};
        }
      } else {
        p.y += dy, p.x += dx;
        const bool inside = real && tap_ < taps && channel_ < from.c && from.inside(p.y, p.x);
        if constexpr (How == Reads::selected) {
          held_[i] = inside ? from.selected_chunk(p.image, p.y, p.x, channel_) : Chunk<T>{};
        } else {
          const T* chunk = inside ? from.values(p.image, p.y * from.w + p.x) + channel_ : from.data;
          ptx::cp_async_ca_16(stage + target(row), chunk, inside);
        }
      }
    }
  }

  __device__ __forceinline__ void store(char* stage) const {
    if constexpr (How != Reads::async) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const int row = static_cast<int>(threadIdx.x) / Stage::chunks + apart * i;
        *reinterpret_cast<Chunk<T>*>(stage + target(row)) = held_[i];
      }
    }
  }

 private:
  __device__ __forceinline__ static const Source<T>& source(const WgradArgs<T>& a) { return Taps ? a.x : a.gz; }
  __device__ __forceinline__ static int target(int row) {
    return Stage::chunk_offset(row, static_cast<int>(threadIdx.x) % Stage::chunks);
  }

  int column_, tap_, channel_;
  Chunk<T> held_[How == Reads::async ? 1 : count];
};

/// Writes a block's sums to its part of `partial`; the bias' once, by the warps of the first column.
template <class Tile, class T, class Sum>
__device__ __forceinline__ void store_partial(const WgradArgs<T>& a, int split, int first_row, int first_column,
                                              const Sums<Sum, Tile>& sums, BiasSums<Sum, Tile>& bias, bool with_bias,
                                              Lane at) {
  const int cout = a.gz.c;
#pragma unroll
  for (int i = 0; i < 2 * Tile::down; ++i) {
    const int row = first_row + at.warp_down * Tile::warp_rows + 8 * i + at.group;
    if (with_bias) {
      Sum total = bias[i / 2][i % 2];
      if constexpr (sizeof(Sum) == 4) {
        total += ptx::as_float(ptx::shfl_xor(ptx::as_bits(total), 1));
        total += ptx::as_float(ptx::shfl_xor(ptx::as_bits(total), 2));
      }  // in float64 the group's first lane has it all
      if (row < cout && at.within == 0) a.partial_bias[int64_t(split) * cout + row] = total;
    }
    if (row >= cout) continue;
    Sum* const to = a.partial + (int64_t(split) * cout + row) * a.columns;
#pragma unroll
    for (int j = 0; j < Tile::across; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = first_column + at.warp_across * Tile::warp_columns + 8 * j + 2 * at.within + e;
        if (column < a.columns) to[column] = sums[i / 2][j][i % 2 * 2 + e];
      }
    }
  }
}

template <class Math, class Tile, Reads Gradients, Reads Inputs>
__global__ void __launch_bounds__(Tile::threads) conv_wgrad_kernel(const WgradArgs<typename Math::Element> a) {
  using T = typename Math::Element;
  using Sum = typename Math::Sum;
  constexpr int gradient_bytes = PixelStage<T, Tile::rows>::bytes, input_bytes = PixelStage<T, Tile::columns>::bytes;
  char* const shared = ptx::shared_memory();
  const auto gradients_of = [&](int step) { return shared + step % Tile::stages * (gradient_bytes + input_bytes); };
  const auto inputs_of = [&](int step) { return gradients_of(step) + gradient_bytes; };
  const int column_tile = static_cast<int>(blockIdx.x) % a.column_tiles;
  const int row_tile = static_cast<int>(blockIdx.x) / a.column_tiles % a.row_tiles;
  const int split = static_cast<int>(blockIdx.x) / a.column_tiles / a.row_tiles;
  const int all = (a.pixels + pixels_of_a_stage<T> - 1) / pixels_of_a_stage<T>;
  const int begin = static_cast<int>(int64_t(all) * split / a.splits);
  const int steps = static_cast<int>(int64_t(all) * (split + 1) / a.splits) - begin;
  const Lane at;
  const bool with_bias = a.partial_bias && column_tile == 0 && at.warp_across == 0;
  PixelChunks<T, Tile, Tile::rows, Gradients, false> gradients(a, row_tile * Tile::rows);
  PixelChunks<T, Tile, Tile::columns, Inputs, true> inputs(a, column_tile * Tile::columns);
  Sums<Sum, Tile> sums = {};
  BiasSums<Sum, Tile> bias = {};
  const auto fetch = [&](int step) {
    gradients.fetch(a, (begin + step) * pixels_of_a_stage<T>, gradients_of(step));
    inputs.fetch(a, (begin + step) * pixels_of_a_stage<T>, inputs_of(step));
  };
  const auto store = [&](int step) {
    gradients.store(gradients_of(step));
    inputs.store(inputs_of(step));
  };

#pragma unroll 1
  for (int step = 0; step < Tile::stages - 1; ++step) {
    if (step < steps) {
      fetch(step);
      store(step);
    }
    ptx::cp_async_commit_group();
  }
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait_group<Tile::stages - 2>();
    ptx::sync_threads();
    const int next = step + Tile::stages - 1;
    if (next < steps) fetch(next);
    ptx::cp_async_commit_group();
    multiply_pixels<Tile>(Math(), sums, bias, with_bias, gradients_of(step), inputs_of(step), at);
    if (next < steps) store(next);
  }
  store_partial<Tile>(a, split, row_tile * Tile::rows, column_tile * Tile::columns, sums, bias, with_bias, at);
}

}  // namespace vggfast::cuda
