// The weights' gradient as an implicit GEMM whose sum runs over pixels, and the bias' beside it.
//
//   gw (cout x taps * cin) = gz^T (cout x pixels) * x, shifted by each tap (pixels x taps * cin)
//
// Both operands are read where they lie, gz through its mask. A block owns a tile of gw and a share of the pixels
// (split); its sums go to partial (splits x cout x taps * cin) and partial_bias (splits x cout), which reduce.cu adds
// up in order: no atomics, the same bits every time. Shared memory: Tile::stages stages of rows + columns times 64
// bytes, 64 KB at most. Who waits on whom: mainloop.h.
#pragma once

#include "cuda/conv/common/source.h"
#include "cuda/conv/common/wgrad_args.h"
#include "cuda/conv/common/wgrad_math.h"
#include "cuda/conv/sm80/mainloop.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/griddepcontrol.h"
#include "cuda/ptx/warp.h"

namespace vggfast::cuda {

struct Pixel {
  int image, y, x;
};
template <class T>
__device__ __forceinline__ Pixel pixel_at(const WgradArgs<T>& a, int pixel) {
  const int row = a.row.quotient(pixel), image = a.column.quotient(row);
  return {image, row - image * static_cast<int>(a.column.divisor), pixel - row * static_cast<int>(a.row.divisor)};
}

/// A thread's chunks of an operand's stages: column threadIdx % chunks of a row, every so many pixels. An operand is
/// `Taps` ? x, its column tap * cin + channel : gz, its column the channel.
template <class T, class Tile, int Columns, Reads How, bool Taps>
class PixelChunks {
 public:
  using Stage = PixelStage<T, Columns>;
  static constexpr int apart = Tile::threads / Stage::chunks;
  static constexpr int count = pixels_of_a_stage<T> / apart;

  /// `first`: the first stage's first pixel.
  __device__ __forceinline__ PixelChunks(const WgradArgs<T>& a, int first_column, int first)
      : from_(Taps ? a.x : a.gz), pixel_(first + static_cast<int>(threadIdx.x) / Stage::chunks) {
    const int column = first_column + static_cast<int>(threadIdx.x) % Stage::chunks * chunk_of<T>;
    tap_ = Taps ? column / from_.c : 0;
    channel_ = column - tap_ * from_.c;
    dy_ = Taps ? tap_ / a.kernel - a.kernel / 2 : 0;
    dx_ = Taps ? tap_ % a.kernel - a.kernel / 2 : 0;
    real_ = tap_ < (Taps ? a.kernel * a.kernel : 1) && channel_ < from_.c;
    // Images follow each other without a gap: a tap is the same way off in all of them.
    next_ = from_.data + (int64_t(pixel_) + dy_ * from_.w + dx_) * from_.c + channel_;
  }

  /// Begins to bring the next stage's pixels; store() ends it, once the stage is free.
  __device__ __forceinline__ void fetch(const WgradArgs<T>& a, char* stage) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int pixel = pixel_ + apart * i;
      const bool real = real_ && pixel < a.pixels;
      if constexpr (How == Reads::async && !Taps) {
        ptx::cp_async_ca_16(stage + target(i), next_ + int64_t(apart * i) * from_.c, real);
      } else {
        const Pixel p = pixel_at(a, pixel);
        if constexpr (How == Reads::async) {
          ptx::cp_async_ca_16(stage + target(i), next_ + int64_t(apart * i) * from_.c,
                              real && from_.inside(p.y + dy_, p.x + dx_));
        } else if constexpr (How == Reads::masked) {
          held_[i] = real ? from_.masked_chunk(from_.stored(p.image, p.y + dy_, p.x + dx_), channel_) : Words{};
        } else {
          held_[i] = gathered(a, p, pixel < a.pixels);
        }
      }
    }
    pixel_ += pixels_of_a_stage<T>;
    next_ += int64_t(pixels_of_a_stage<T>) * from_.c;
  }

  __device__ __forceinline__ void store(char* stage) const {
    if constexpr (How != Reads::async) {
#pragma unroll
      for (int i = 0; i < count; ++i) *reinterpret_cast<Held<T, How>*>(stage + target(i)) = held_[i];
    }
  }

 private:
  /// A chunk element by element: each may belong to a tap of its own.
  __device__ __forceinline__ Chunk<T> gathered(const WgradArgs<T>& a, Pixel p, bool real) const {
    Chunk<T> chunk;
#pragma unroll
    for (int e = 0; e < chunk_of<T>; ++e) {
      int tap = tap_, channel = channel_ + e;
      while (Taps && channel >= from_.c) channel -= from_.c, ++tap;
      const int dy = Taps ? tap / a.kernel - a.kernel / 2 : 0, dx = Taps ? tap % a.kernel - a.kernel / 2 : 0;
      const bool inside = real && tap < (Taps ? a.kernel * a.kernel : 1) && channel < from_.c;
      chunk.values[e] = inside ? from_.element(p.image, p.y + dy, p.x + dx, channel) : T{};
    }
    return chunk;
  }
  __device__ __forceinline__ static int target(int i) {
    return Stage::chunk_offset(static_cast<int>(threadIdx.x) / Stage::chunks + apart * i,
                               static_cast<int>(threadIdx.x) % Stage::chunks);
  }

  const Source<T>& from_;
  int pixel_;                    // of the next stage, this thread's first
  int tap_, channel_, dy_, dx_;  // of its chunks
  bool real_;                    // whether there are such
  const T* next_;                // where the next stage's first chunk lies, for cp.async
  Held<T, How> held_[How == Reads::async ? 1 : count];
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
__global__ void __launch_bounds__(Tile::threads, Tile::least_blocks)
    conv_wgrad_kernel(const WgradArgs<typename Math::Element> a) {
  using T = typename Math::Element;
  using Sum = typename Math::Sum;
  constexpr int gradient_bytes = PixelStage<T, Tile::rows>::bytes;
  constexpr int stage_bytes = gradient_bytes + PixelStage<T, Tile::columns>::bytes;
  const int column_tile = static_cast<int>(blockIdx.x) % a.column_tiles;
  const int row_tile = static_cast<int>(blockIdx.x) / a.column_tiles % a.row_tiles;
  const int split = static_cast<int>(blockIdx.x) / a.column_tiles / a.row_tiles;
  const int all = (a.pixels + pixels_of_a_stage<T> - 1) / pixels_of_a_stage<T>;
  const int begin = static_cast<int>(int64_t(all) * split / a.splits);
  const int steps = static_cast<int>(int64_t(all) * (split + 1) / a.splits) - begin;
  const Lane at;
  const bool with_bias = a.partial_bias && column_tile == 0 && at.warp_across == 0;
  const int first = begin * pixels_of_a_stage<T>;
  ptx::griddepcontrol_wait();
  PixelChunks<T, Tile, Tile::rows, Gradients, false> gradients(a, row_tile * Tile::rows, first);
  PixelChunks<T, Tile, Tile::columns, Inputs, true> inputs(a, column_tile * Tile::columns, first);
  Sums<Sum, Tile> sums = {};
  BiasSums<Sum, Tile> bias = {};
  const auto fetch = [&](char* stage) {
    gradients.fetch(a, stage);
    inputs.fetch(a, stage + gradient_bytes);
  };
  const auto store = [&](char* stage) {
    gradients.store(stage);
    inputs.store(stage + gradient_bytes);
  };
  const auto multiply = [&](const char* stage) {
    multiply_pixels<Tile>(Math(), sums, bias, with_bias, stage, stage + gradient_bytes, at);
  };
  run_stages<Tile, stage_bytes>(steps, fetch, store, multiply);
  ptx::griddepcontrol_launch_dependents();
  store_partial<Tile>(a, split, row_tile * Tile::rows, column_tile * Tile::columns, sums, bias, with_bias, at);
}

}  // namespace vggfast::cuda
