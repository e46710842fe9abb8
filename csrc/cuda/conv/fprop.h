// Convolution as an implicit GEMM: fprop, and dgrad as fprop of the gradient with mirrored weights (pack.h).
//
//   y (pixels x cout) = x (pixels x taps * cin, read where it lies) * weights (cout x taps * cin, packed)
//
// The taps of a tile read the same pixels nine times over, through L1; the weights pass it by. A tile's rows are
// pixels, in the order of the 2 x 2 windows that they form (Windows), so that a thread holds whole windows and pools in
// registers. Shared memory: Tile::stages stages of rows + columns rows of 64 bytes, 64 KB at most. Each step waits for
// its stage, then for all threads (who are then done with the stage before), refills that one, and multiplies.
#pragma once

#include "cuda/conv/epilogue.h"
#include "cuda/conv/math.h"
#include "cuda/conv/source.h"
#include "cuda/conv/windows.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/sync.h"

namespace vggfast::cuda {

template <class T>
struct FpropArgs {
  Source<T> x;
  Windows windows;
  const T* weights;  // (cout, rounded up to 128) x (taps * cin, rounded up to whole stages)
  int depth;         // the latter
  int kernel;        // 1 or 3
  int column_tiles;
  Output<T> y;
};

/// Rows of a tile of x that a thread brings: chunk threadIdx % 4 of every 32nd row.
template <class T, class Tile, Reads How>
class PixelRows {
 public:
  static constexpr int count = Tile::rows * row_chunks / Tile::threads;

  __device__ __forceinline__ PixelRows(const FpropArgs<T>& a, int tile) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int row = row_of(i);
      const Window window = a.windows.at(tile * (Tile::rows / 4) + row / 32 * 8 + row % 8);
      const int y = 2 * window.y + row / 16 % 2, x = 2 * window.x + row / 8 % 2;
      const bool real = window.real && a.x.inside(y, x);
      if constexpr (How == Reads::async) {
        center_[i] = a.x.data + ((int64_t(window.image) * a.x.h + y) * a.x.w + x) * a.x.c;
        inside_[i] = 0;
        for (int tap = 0; tap < a.kernel * a.kernel; ++tap) {
          const int dy = tap / a.kernel - a.kernel / 2, dx = tap % a.kernel - a.kernel / 2;
          inside_[i] |= unsigned(real && a.x.inside(y + dy, x + dx)) << tap;
        }
      } else {
        place_[i] = {window.image, real ? y : far_away, x};
      }
    }
    k_ = static_cast<int>(threadIdx.x) % row_chunks * chunk_of<T>;
    normalise(a);
  }

  /// Begins to bring the next stage's chunks; store() ends it, once the stage is free.
  __device__ __forceinline__ void fetch(const FpropArgs<T>& a, char* stage) {
    const int dy = tap_ / a.kernel - a.kernel / 2, dx = tap_ % a.kernel - a.kernel / 2;
    if constexpr (How == Reads::async) {
      const int64_t offset = int64_t(dy * a.x.w + dx) * a.x.c + k_;
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const bool valid = inside_[i] >> tap_ & 1;
        ptx::cp_async_ca_16(stage + target(i), valid ? center_[i] + offset : a.x.data, valid);
      }
    } else if constexpr (How == Reads::selected) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const int y = tap_ < a.kernel * a.kernel ? place_[i].y + dy : far_away;
        held_[i] = a.x.selected_chunk(place_[i].image, y, place_[i].x + dx, k_);
      }
    } else {
#pragma unroll
      for (int e = 0; e < chunk_of<T>; ++e) {
        int tap = tap_, k = k_ + e;
        while (k >= a.x.c) k -= a.x.c, ++tap;
        const int ey = tap / a.kernel - a.kernel / 2, ex = tap % a.kernel - a.kernel / 2;
#pragma unroll
        for (int i = 0; i < count; ++i) {
          const int y = tap < a.kernel * a.kernel ? place_[i].y + ey : far_away;
          held_[i].values[e] = a.x.element(place_[i].image, y, place_[i].x + ex, k);
        }
      }
    }
    k_ += depth_of<T>;
    normalise(a);
  }

  __device__ __forceinline__ void store(char* stage) const {
    if constexpr (How != Reads::async) {
#pragma unroll
      for (int i = 0; i < count; ++i) *reinterpret_cast<Chunk<T>*>(stage + target(i)) = held_[i];
    }
  }

 private:
  static constexpr int far_away = -4;  // a row that no tap brings back into the image
  struct Place {
    int image, y, x;
  };

  __device__ __forceinline__ static int row_of(int i) { return static_cast<int>(threadIdx.x) / row_chunks + 32 * i; }
  __device__ __forceinline__ static int target(int i) {
    return chunk_offset(row_of(i), static_cast<int>(threadIdx.x) % row_chunks);
  }
  /// Carries whole pixels over from the channel to the tap.
  __device__ __forceinline__ void normalise(const FpropArgs<T>& a) {
    while (k_ >= a.x.c) k_ -= a.x.c, ++tap_;
  }

  int tap_ = 0, k_;
  const T* center_[How == Reads::async ? count : 1];
  unsigned inside_[How == Reads::async ? count : 1];
  Place place_[How == Reads::async ? 1 : count];
  Chunk<T> held_[How == Reads::async ? 1 : count];
};

/// Brings a stage's rows of the packed weights.
template <class T, class Tile>
__device__ __forceinline__ void fetch_weights(const FpropArgs<T>& a, int tile, int step, char* stage) {
  const int chunk = static_cast<int>(threadIdx.x) % row_chunks;
  const T* from = a.weights + step * depth_of<T> + chunk * chunk_of<T>;
#pragma unroll
  for (int row = static_cast<int>(threadIdx.x) / row_chunks; row < Tile::columns; row += Tile::threads / row_chunks) {
    ptx::cp_async_cg_16(stage + chunk_offset(row, chunk), from + int64_t(tile * Tile::columns + row) * a.depth);
  }
}

template <class Math, class Tile, Reads How>
__global__ void __launch_bounds__(Tile::threads) conv_fprop_kernel(const FpropArgs<typename Math::Element> a) {
  using T = typename Math::Element;
  constexpr int stage_bytes = (Tile::rows + Tile::columns) * row_bytes;
  char* const shared = ptx::shared_memory();
  const auto pixels_of = [&](int step) { return shared + step % Tile::stages * stage_bytes; };
  const auto weights_of = [&](int step) { return pixels_of(step) + Tile::rows * row_bytes; };
  const int column_tile = static_cast<int>(blockIdx.x) % a.column_tiles;
  const int row_tile = static_cast<int>(blockIdx.x) / a.column_tiles;
  const int steps = a.depth / depth_of<T>;
  const Lane at;
  PixelRows<T, Tile, How> pixels(a, row_tile);
  Sums<typename Math::Sum, Tile> sums = {};

#pragma unroll 1
  for (int step = 0; step < Tile::stages - 1; ++step) {
    if (step < steps) {
      pixels.fetch(a, pixels_of(step));
      pixels.store(pixels_of(step));
      fetch_weights<T, Tile>(a, column_tile, step, weights_of(step));
    }
    ptx::cp_async_commit_group();
  }
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait_group<Tile::stages - 2>();
    ptx::sync_threads();
    const int next = step + Tile::stages - 1;
    if (next < steps) {
      pixels.fetch(a, pixels_of(next));
      fetch_weights<T, Tile>(a, column_tile, next, weights_of(next));
    }
    ptx::cp_async_commit_group();
    Math::template multiply<Tile>(sums, pixels_of(step), weights_of(step), at);
    if (next < steps) pixels.store(pixels_of(next));
  }
  store_outputs<Tile>(a.y, a.windows, row_tile * (Tile::rows / 4), column_tile * Tile::columns, sums, at);
}

}  // namespace vggfast::cuda
