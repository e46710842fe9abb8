// Convolution as an implicit GEMM: fprop, and dgrad as fprop of the gradient with mirrored weights (pack.h).
//
//   y (pixels x cout) = x (pixels x taps * cin, read where it lies) * weights (cout x taps * cin, packed)
//
// The taps of a tile read the same pixels nine times over, through L1; the weights pass it by. A tile's rows are
// pixels, in the order of the 2 x 2 windows that they form (Windows), so that a thread holds whole windows and pools in
// registers. Shared memory: Tile::stages stages of rows + columns rows of 64 bytes, 64 KB at most. Who waits on whom:
// mainloop.h.
#pragma once

#include "cuda/conv/common/epilogue.h"
#include "cuda/conv/common/math.h"
#include "cuda/conv/common/source.h"
#include "cuda/conv/common/windows.h"
#include "cuda/conv/sm80/mainloop.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/griddepcontrol.h"

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

/// Rows of a tile of x that a thread brings: chunk threadIdx % 4 of every 32nd row, stage after stage.
template <class T, class Tile, Reads How>
class PixelRows {
 public:
  static constexpr int count = Tile::rows * row_chunks / Tile::threads;

  __device__ __forceinline__ PixelRows(const FpropArgs<T>& a, int tile)
      : k_(static_cast<int>(threadIdx.x) % row_chunks * chunk_of<T>),
        dy_(-(a.kernel / 2)),
        dx_(-(a.kernel / 2)),
        offset_(int64_t(dy_ * a.x.w + dx_) * a.x.c + k_) {
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
    carry(a);
  }

  /// Begins to bring the next stage's chunks; store() ends it, once the stage is free.
  __device__ __forceinline__ void fetch(const FpropArgs<T>& a, char* stage) {
    if constexpr (How == Reads::async) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        ptx::cp_async_ca_16(stage + target(i), center_[i] + offset_, inside_[i] >> tap_ & 1);
      }
    } else if constexpr (How == Reads::masked) {
#pragma unroll
      for (int i = 0; i < count; ++i) held_[i] = a.x.masked_chunk(stored_[i], k_);
    } else {
#pragma unroll
      for (int e = 0; e < chunk_of<T>; ++e) {
        int tap = tap_, k = k_ + e;
        while (k >= a.x.c) k -= a.x.c, ++tap;
        const int dy = tap / a.kernel - a.kernel / 2, dx = tap % a.kernel - a.kernel / 2;
#pragma unroll
        for (int i = 0; i < count; ++i) {
          const int y = tap < a.kernel * a.kernel ? place_[i].y + dy : far_away;
          held_[i].values[e] = a.x.element(place_[i].image, y, place_[i].x + dx, k);
        }
      }
    }
    k_ += depth_of<T>;
    offset_ += depth_of<T>;
    carry(a);
  }

  __device__ __forceinline__ void store(char* stage) const {
    if constexpr (How != Reads::async) {
#pragma unroll
      for (int i = 0; i < count; ++i) *reinterpret_cast<Held<T, How>*>(stage + target(i)) = held_[i];
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
  /// Carries whole pixels over from the channel to the tap. In memory, a tap's last channel is followed by the first of
  /// the tap to its right: the offset goes on by itself, but for the way to the next row of taps.
  __device__ __forceinline__ void carry(const FpropArgs<T>& a) {
    while (k_ >= a.x.c) {
      k_ -= a.x.c;
      ++tap_;
      if (++dx_ <= a.kernel / 2) continue;
      dx_ = -(a.kernel / 2);
      ++dy_;
      offset_ += int64_t(a.x.w - a.kernel) * a.x.c;
    }
    if constexpr (How == Reads::masked) {
      if (tap_ != stored_tap_) look_up(a);
    }
  }
  /// Where the tap's pixels lie, for all its channels.
  __device__ __forceinline__ void look_up(const FpropArgs<T>& a) {
    stored_tap_ = tap_;
    const bool real = tap_ < a.kernel * a.kernel;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      stored_[i] = a.x.stored(place_[i].image, real ? place_[i].y + dy_ : far_away, place_[i].x + dx_);
    }
  }

  int k_, tap_ = 0, dy_, dx_;  // of the next stage: the first channel of this thread's chunk, and its tap
  int64_t offset_;             // from a row's own pixel, in elements
  const T* center_[How == Reads::async ? count : 1];
  unsigned inside_[How == Reads::async ? count : 1];  // a bit for each tap
  Place place_[How == Reads::async ? 1 : count];
  int stored_tap_ = -1;
  typename Source<T>::Stored stored_[How == Reads::masked ? count : 1];
  Held<T, How> held_[How == Reads::async ? 1 : count];
};

/// Rows of the packed weights that a thread brings, likewise.
template <class T, class Tile>
class WeightRows {
 public:
  __device__ __forceinline__ WeightRows(const FpropArgs<T>& a, int tile)
      : next_(a.weights + int64_t(tile * Tile::columns + row_of(0)) * a.depth + chunk() * chunk_of<T>),
        apart_(32 * int64_t(a.depth)) {}

  __device__ __forceinline__ void fetch(char* stage) {
#pragma unroll
    for (int i = 0; i < Tile::columns / 32; ++i) {
      ptx::cp_async_cg_16(stage + chunk_offset(row_of(i), chunk()), next_ + i * apart_);
    }
    next_ += depth_of<T>;
  }

 private:
  __device__ __forceinline__ static int row_of(int i) { return static_cast<int>(threadIdx.x) / row_chunks + 32 * i; }
  __device__ __forceinline__ static int chunk() { return static_cast<int>(threadIdx.x) % row_chunks; }

  const T* next_;
  int64_t apart_;
};

template <class Math, class Tile, Reads How>
__global__ void __launch_bounds__(Tile::threads, Tile::least_blocks)
    conv_fprop_kernel(const FpropArgs<typename Math::Element> a) {
  using T = typename Math::Element;
  constexpr int pixel_bytes = Tile::rows * row_bytes, stage_bytes = pixel_bytes + Tile::columns * row_bytes;
  const int column_tile = static_cast<int>(blockIdx.x) % a.column_tiles;
  const int row_tile = static_cast<int>(blockIdx.x) / a.column_tiles;
  const int steps = a.depth / depth_of<T>;
  const Lane at;
  ptx::griddepcontrol_wait();
  PixelRows<T, Tile, How> pixels(a, row_tile);
  WeightRows<T, Tile> weights(a, column_tile);
  Sums<typename Math::Sum, Tile> sums = {};
  const auto fetch = [&](char* stage) {
    pixels.fetch(a, stage);
    weights.fetch(stage + pixel_bytes);
  };
  const auto multiply = [&](const char* stage) { Math::template multiply<Tile>(sums, stage, stage + pixel_bytes, at); };
  run_stages<Tile, stage_bytes>(steps, fetch, [&](char* stage) { pixels.store(stage); }, multiply);
  ptx::griddepcontrol_launch_dependents();
  store_outputs<Tile>(a.y, a.windows, row_tile * (Tile::rows / 4), column_tile * Tile::columns, sums, at);
}

}  // namespace vggfast::cuda
