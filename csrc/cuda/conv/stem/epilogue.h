// What becomes of the stem's sums. Channels are assigned to the columns of the products so that a lane ends with eight
// neighbouring channels of whole windows: a byte of a mask and at least 16 bytes of y, without an exchange.
#pragma once

#include <cmath>

#include "cuda/conv/common/epilogue.h"
#include "cuda/ptx/ld_st.h"
#include "cuda/ptx/max.h"

namespace vggfast::cuda {

constexpr int lane_channels = 8;

/// A lane's channels of the four pixels of a window.
using WindowSums = float[4][lane_channels];

/// Where a window's outputs lie: the four pixels', or that of the pool.
template <class T>
class WindowOutputs {
 public:
  /// (row, column): the window's first pixel, before the pool; `c`: the lane's first channel.
  __device__ __forceinline__ WindowOutputs(const Output<T>& y, int image, int row, int column, int c)
      : y_(y),
        row_(y.pool ? row / 2 : row),
        column_(y.pool ? column / 2 : column),
        h_(y.pool ? y.h / 2 : y.h),
        w_(y.pool ? y.w / 2 : y.w) {
    const int64_t area = int64_t(h_) * w_, pixel = image * area + row_ * w_ + column_;
    const int planes = (y.relu ? 1 : 0) + (y.pool ? 2 : 0);
    plane_ = area * (y.c / 8);
    to_ = y.data + pixel * y.c + c;
    bits_ = y.mask + (image * (planes - 1) * plane_ + pixel * (y.c / 8) + c / 8);
  }

  /// Channels `further` ... from the lane's first on; `sums` are not needed any more.
  __device__ __forceinline__ void store(WindowSums& sums, int further) const {
    if (y_.pool) {
      unsigned right = 0, below = 0;
      pool(sums, right, below);
      if (row_ < h_ && column_ < w_) store_pixel(0, further, sums[0], right, below);
      return;
    }
#pragma unroll
    for (int pixel = 0; pixel < 4; ++pixel) {
      const int down = pixel / 2, right = pixel % 2;
      if (row_ + down < h_ && column_ + right < w_) store_pixel(int64_t(down) * w_ + right, further, sums[pixel], 0, 0);
    }
  }

 private:
  /// Leaves the best of a window in sums[0]: the first maximum wins, NaN passes. Sets a bit for each channel whose best
  /// lies in the right column, and in the row below.
  __device__ __forceinline__ static void pool(WindowSums& sums, unsigned& right, unsigned& below) {
#pragma unroll
    for (int e = 0; e < lane_channels; ++e) {
      int chosen = 0;
#pragma unroll
      for (int pixel = 1; pixel < 4; ++pixel) {
        const float next = sums[pixel][e];
        if (!(next > sums[0][e]) && next == next) continue;
        sums[0][e] = next;
        chosen = pixel;
      }
      right |= static_cast<unsigned>(chosen & 1) << e;
      below |= static_cast<unsigned>(chosen >> 1) << e;
    }
  }

  /// Of the pixel that is so many further than the first.
  __device__ __forceinline__ void store_pixel(int64_t pixels, int further, float (&values)[lane_channels],
                                              unsigned right, unsigned below) const {
    // What ReLU leaves is 0 or, as NaN is too, a positive number of bits, whose negative has its sign set: store_bits.
    const float least = y_.relu ? 0.0f : -INFINITY;
    T* const to = to_ + pixels * y_.c + further;
    Pair<T> pairs[lane_channels / 2];
#pragma unroll
    for (int e = 0; e < lane_channels; ++e) {
      values[e] = ptx::max_nan(values[e], least);
      if (e % 2) pairs[e / 2] = Pair<T>::of(values[e - 1], values[e]);
    }
    if (y_.vectors) {
      constexpr int chunks = lane_channels / chunk_of<T>;
      Words4 words[chunks];
      std::memcpy(words, pairs, sizeof(pairs));
#pragma unroll
      for (int i = 0; i < chunks; ++i) {
        ptx::st_global_v4(to + i * chunk_of<T>, words[i]);
      }
    } else {
      T narrow[lane_channels];
      std::memcpy(narrow, pairs, sizeof(pairs));
#pragma unroll
      for (int e = 0; e < lane_channels; ++e) to[e] = narrow[e];
    }
    if (y_.mask) store_bits(bits_ + (pixels * (y_.c / 8) + further / 8), values, right, below);
  }
  __device__ __forceinline__ void store_bits(uint8_t* to, const float (&values)[lane_channels], unsigned right,
                                             unsigned below) const {
    if (y_.relu) {
      unsigned pass = 0;
#pragma unroll
      for (int e = lane_channels - 1; e >= 0; --e) pass = pass << 1 | (0u - ptx::as_bits(values[e])) >> 31;
      *to = static_cast<uint8_t>(pass);
      to += plane_;
    }
    if (y_.pool) {
      to[0] = static_cast<uint8_t>(right);
      to[plane_] = static_cast<uint8_t>(below);
    }
  }

  const Output<T>& y_;
  int row_, column_, h_, w_;
  int64_t plane_;
  T* to_;
  uint8_t* bits_;
};

}  // namespace vggfast::cuda
