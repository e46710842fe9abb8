// What becomes of an fprop tile's sums: bias, ReLU, 2 x 2 max-pool, the mask's bits, and 16-byte stores.
// A thread holds two neighbouring channels of whole windows; the four lanes of a group exchange theirs (transpose_quad)
// so that each ends with eight neighbouring channels: a byte of a mask, 16 bytes or more of y.
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda/conv/common/math.h"
#include "cuda/conv/common/windows.h"
#include "cuda/ptx/warp.h"
#include "cuda/vectors.h"
#include "vggfast/conv.h"

namespace vggfast::cuda {

template <class T>
struct Output {
  T* data;
  const T* bias;             // or null
  uint8_t* mask;             // or null
  const uint8_t* x_mask;     // of a dgrad, or null: what a ReLU left of the outputs' own layer
  int h, w, c;               // before the pool
  bool relu, pool, vectors;  // vectors: whether eight channels are whole, aligned chunks
};

/// y is what the epilogue makes of h x w sums.
template <class T>
Output<T> output_of(const Tensor& y, int64_t h, int64_t w, Epilogue e = {}, const Tensor* bias = nullptr,
                    const Tensor* mask = nullptr, const Tensor* x_mask = nullptr) {
  return {.data = y.as<T>(),
          .bias = bias ? bias->as<T>() : nullptr,
          .mask = mask ? mask->as<uint8_t>() : nullptr,
          .x_mask = x_mask ? x_mask->as<uint8_t>() : nullptr,
          .h = static_cast<int>(h),
          .w = static_cast<int>(w),
          .c = static_cast<int>(y.size(1)),
          .relu = e.relu,
          .pool = e.pool,
          .vectors = y.size(1) % 8 == 0 && reinterpret_cast<uintptr_t>(y.data) % chunk_bytes == 0};
}

/// Two channels of one pixel, as they lie in memory.
template <class T>
struct Pair {
  static constexpr int words = 2 * static_cast<int>(sizeof(T)) / 4;
  uint32_t word[words];

  template <class Sum>
  __device__ __forceinline__ static Pair of(Sum first, Sum second) {
    const T values[2] = {narrow<T>(first), narrow<T>(second)};
    Pair pair;
    std::memcpy(&pair, values, sizeof(pair));
    return pair;
  }
};

/// pairs[i] is this lane's pair of column block i; becomes lane i's pair of this lane's block.
template <class T>
__device__ __forceinline__ void transpose_quad(Pair<T> (&pairs)[4], int within) {
#pragma unroll
  for (int distance = 2; distance > 0; distance /= 2) {
    const bool upper = within & distance;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & distance) continue;
      Pair<T>&low = pairs[i], &high = pairs[i + distance];
#pragma unroll
      for (int k = 0; k < Pair<T>::words; ++k) {
        const uint32_t other = ptx::shfl_xor(upper ? low.word[k] : high.word[k], distance);
        low.word[k] = upper ? other : low.word[k];
        high.word[k] = upper ? high.word[k] : other;
      }
    }
  }
}

/// Writes 0 to those of eight channels that the bits do not let pass.
template <class T>
__device__ __forceinline__ void apply_mask(unsigned bits, Pair<T> (&pairs)[4]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const uint32_t keep = 0u - (bits >> i & 1);
    constexpr int words = Pair<T>::words;
    if constexpr (words == 1) {
      pairs[i / 2].word[0] &= keep | (i % 2 ? 0x0000ffff : 0xffff0000);
    } else {
#pragma unroll
      for (int k = 0; k < words / 2; ++k) pairs[i / 2].word[i % 2 * (words / 2) + k] &= keep;
    }
  }
}

/// Eight channels from c on of pixel `pixel`; what lies beyond the last channel is left out.
template <class T>
__device__ __forceinline__ void store_channels(const Output<T>& y, int64_t pixel, int c, Pair<T> (&pairs)[4]) {
  if (c >= y.c) return;
  if (y.x_mask) apply_mask(y.x_mask[pixel * ((y.c + 7) / 8) + c / 8], pairs);
  T* to = y.data + pixel * y.c + c;
  if (y.vectors) {
    Chunk<T> chunks[8 / chunk_of<T>];
    std::memcpy(chunks, pairs, sizeof(chunks));
#pragma unroll
    for (int i = 0; i < 8 / chunk_of<T>; ++i) reinterpret_cast<Chunk<T>*>(to)[i] = chunks[i];
  } else {
    T values[8];
    std::memcpy(values, pairs, sizeof(values));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (c + i < y.c) to[i] = values[i];
    }
  }
}

/// One bit of a mask for each of a lane's eight channels-to-be: bit 8 i + 2 within + e for channel e of block i.
/// All lanes of a group come to hold all 32.
__device__ __forceinline__ uint32_t spread_bits(uint32_t mine) {
  mine |= ptx::shfl_xor(mine, 1);
  return mine | ptx::shfl_xor(mine, 2);
}

/// The outputs of one window, 32 channels from `c` on: `pass`, `column` and `below` are bits as spread_bits has them.
template <class T>
struct Mask {
  uint32_t pass = 0, column = 0, below = 0;

  /// Writes this lane's byte of each plane; the planes follow each other. Every lane of the warp takes part.
  __device__ __forceinline__ void store(const Output<T>& y, int image, int pixel, int64_t pixels, int c, int within,
                                        bool real) const {
    const uint32_t bits[3] = {y.relu ? spread_bits(pass) : 0, y.pool ? spread_bits(column) : 0,
                              y.pool ? spread_bits(below) : 0};
    if (!real || c >= y.c) return;
    const int64_t bytes = (y.c + 7) / 8;
    const int planes = (y.relu ? 1 : 0) + (y.pool ? 2 : 0);
    uint8_t* plane = y.mask + (image * planes * pixels + pixel) * bytes + c / 8;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      if (i == 0 ? !y.relu : !y.pool) continue;
      *plane = static_cast<uint8_t>(bits[i] >> (8 * within));
      plane += pixels * bytes;
    }
  }
};

/// Stores one pixel of every window of the warp, 32 channels: values[i][e] is channel e of this lane in block i.
template <class T, class Sum>
__device__ __forceinline__ void store_pixel(const Output<T>& y, int image, int pixel, int64_t pixels, int c, int within,
                                            bool real, Sum (&values)[4][2], Mask<T> mask) {
  Pair<T> pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const bool pass = !(values[i][e] <= Sum(0));  // NaN passes
      mask.pass |= uint32_t(pass) << (8 * i + 2 * within + e);
      if (y.relu && !pass) values[i][e] = Sum(0);
    }
    pairs[i] = Pair<T>::of(values[i][0], values[i][1]);
  }
  transpose_quad(pairs, within);
  if (real) store_channels(y, image * pixels + pixel, c + 8 * within, pairs);
  if (y.mask) mask.store(y, image, pixel, pixels, c + 8 * within, within, real);
}

/// `first_window`, `first_channel`: of the tile.
template <class Tile, class T, class Sum>
__device__ __forceinline__ void store_outputs(const Output<T>& y, const Windows& windows, int first_window,
                                              int first_channel, const Sums<Sum, Tile>& sums, Lane at) {
  const int within = at.within;
#pragma unroll
  for (int j = 0; j < Tile::across; j += 4) {
    const int c = first_channel + at.warp_across * Tile::warp_columns + 8 * j;
    Sum bias[4][2] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int channel = c + i / 2 * 8 + 2 * within + i % 2;
      if (y.bias && channel < y.c) bias[i / 2][i % 2] = widen(y.bias[channel]);
    }
#pragma unroll
    for (int q = 0; q < Tile::down / 2; ++q) {
      const Window window = windows.at(first_window + at.warp_down * (Tile::warp_rows / 4) + 8 * q + at.group);
      const auto sum = [&](int pixel, int i, int e) {
        return sums[2 * q + pixel / 2][j + i][pixel % 2 * 2 + e] + bias[i][e];
      };
      if (y.pool) {
        Mask<T> mask;
        Sum best[4][2];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            int chosen = 0;
            best[i][e] = sum(0, i, e);
#pragma unroll
            for (int pixel = 1; pixel < 4; ++pixel) {
              const Sum next = sum(pixel, i, e);
              if (!(next > best[i][e]) && next == next) continue;  // the first maximum wins, NaN passes
              best[i][e] = next;
              chosen = pixel;
            }
            mask.column |= uint32_t(chosen & 1) << (8 * i + 2 * within + e);
            mask.below |= uint32_t(chosen >> 1) << (8 * i + 2 * within + e);
          }
        }
        const int h = y.h / 2, w = y.w / 2;
        store_pixel(y, window.image, window.y * w + window.x, int64_t(h) * w, c, within,
                    window.real && window.y < h && window.x < w, best, mask);
      } else {
#pragma unroll
        for (int pixel = 0; pixel < 4; ++pixel) {
          Sum values[4][2];
#pragma unroll
          for (int i = 0; i < 8; ++i) values[i / 2][i % 2] = sum(pixel, i / 2, i % 2);
          const int row = 2 * window.y + pixel / 2, column = 2 * window.x + pixel % 2;
          store_pixel(y, window.image, row * y.w + column, int64_t(y.h) * y.w, c, within,
                      window.real && row < y.h && column < y.w, values, {});
        }
      }
    }
  }
}

}  // namespace vggfast::cuda
