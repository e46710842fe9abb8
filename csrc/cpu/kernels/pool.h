// 2x2/2 max-pool, the two ops on masks, and sum-pool, over NHWC: vectors run along the channels.
// All are bound by memory; a row of outputs is the unit of work.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/epilogue.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

template <class S, class V = Vec<Computed<S>>>
typename V::Value load_channels(const S* p, int64_t c, int64_t channels) {
  return c + V::lanes <= channels ? V::load(p + c) : V::load(p + c, channels - c);
}
template <class S, class V = Vec<Computed<S>>>
void store_channels(S* p, int64_t c, int64_t channels, typename V::Value v) {
  c + V::lanes <= channels ? V::store(p + c, v) : V::store(p + c, v, channels - c);
}

/// The bytes of output pixel (row, x) in the first plane of a mask; rows are counted over (n, oh).
template <class T>
uint8_t* mask_at(const MaskArgs<T>& a, int64_t row, int64_t x, int64_t bytes) {
  const int64_t planes = (a.relu ? 1 : 0) + (a.pool ? 2 : 0), n = row / a.oh, y = row % a.oh;
  return a.mask + ((n * planes * a.oh + y) * a.ow + x) * bytes;
}

template <class T>
void max_pool(const MaskArgs<T>& a, int64_t row_begin, int64_t row_end) {
  using V = Vec<T>;
  const int64_t channels = a.big.c, bytes = (channels + 7) / 8, plane = a.oh * a.ow * bytes;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t top = row / a.oh * a.big.h + 2 * (row % a.oh);
    const int64_t height = min<int64_t>(2, a.big.h - 2 * (row % a.oh));
    for (int64_t x = 0; x < a.ow; ++x) {
      const int64_t width = min<int64_t>(2, a.big.w - 2 * x);
      const T* window = a.z + (top * a.big.w + 2 * x) * channels;
      uint8_t* bits = a.mask ? mask_at(a, row, x, bytes) : nullptr;
      for (int64_t c = 0; c < channels; c += V::lanes) {
        typename V::Value best = load_channels(window, c, channels);
        typename V::Mask column_bit{}, row_bit{};
        for (int64_t i = 1; i < 2 * height; ++i) {
          if (i % 2 >= width) continue;
          const auto v = load_channels(window + (i / 2 * a.big.w + i % 2) * channels, c, channels);
          const typename V::Mask better = replaces<T>(v, best);
          best = V::select(better, v, best);
          column_bit = better ? (typename V::Mask){} - (int)(i % 2) : column_bit;
          row_bit = better ? (typename V::Mask){} - (int)(i / 2) : row_bit;
        }
        store_channels(a.y + (row * a.ow + x) * channels, c, channels, best);
        if (bits) {
          store_bits<T>(bits, bytes, c, column_bit);
          store_bits<T>(bits + plane, bytes, c, row_bit);
        }
      }
    }
  }
}

/// Calls visit(y, z, c, inside, pass, column, below) for each vector of channels of each output. column and below say
/// which element of its window in z the output came from; they are all zeros without pool. pass says whether ReLU let
/// it pass; it is all ones without ReLU. inside(i) says whether the window has element i: a window that the image's
/// edge cuts lacks some, whatever the bits say.
template <class T, class Visit>
inline __attribute__((always_inline)) void for_each_masked(const MaskArgs<T>& a, int64_t row_begin, int64_t row_end,
                                                           Visit visit) {
  using V = Vec<T>;
  const int64_t channels = a.big.c, bytes = (channels + 7) / 8, plane = a.oh * a.ow * bytes;
  const int64_t stride = a.pool ? 2 : 1;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t z_row = row / a.oh * a.big.h + stride * (row % a.oh);
    const bool high = 2 * (row % a.oh) + 1 < a.big.h;
    for (int64_t x = 0; x < a.ow; ++x) {
      const bool wide = 2 * x + 1 < a.big.w;
      const auto inside = [&](int i) { return (wide || i % 2 == 0) && (high || i / 2 == 0); };
      T* y = a.y + (row * a.ow + x) * channels;
      T* z = a.z + (z_row * a.big.w + stride * x) * channels;
      const uint8_t* bits = mask_at(a, row, x, bytes);
      const uint8_t* pooled = bits + (a.relu ? plane : 0);
      for (int64_t c = 0; c < channels; c += V::lanes) {
        typename V::Mask pass = ~(typename V::Mask){}, column{}, below{};
        if (a.relu) pass = load_bits<T>(bits, bytes, c);
        if (a.pool) {
          column = load_bits<T>(pooled, bytes, c);
          below = load_bits<T>(pooled + plane, bytes, c);
        }
        visit(y, z, c, inside, pass, column, below);
      }
    }
  }
}

/// The lanes whose bits point to element number `i` (row-major) of the window.
template <class T, class Mask = typename Vec<T>::Mask>
Mask is_element(int i, Mask column, Mask below) {
  return (i & 1 ? column : ~column) & (i & 2 ? below : ~below);
}

template <class T>
void mask_gather(const MaskArgs<T>& a, int64_t row_begin, int64_t row_end) {
  using V = Vec<T>;
  const int64_t channels = a.big.c;
  for_each_masked(
      a, row_begin, row_end, [&](T* y, const T* z, int64_t c, auto inside, auto pass, auto column, auto below) {
        typename V::Value picked = load_channels(z, c, channels);
        for (int i = 1; i < (a.pool ? 4 : 1); ++i) {
          const typename V::Mask here = is_element<T>(i, column, below);
          if (!inside(i) || V::bits(here) == 0) continue;
          picked = V::select(here, load_channels(z + (i / 2 * a.big.w + i % 2) * channels, c, channels), picked);
        }
        store_channels(y, c, channels, V::select(pass, picked, V::zero()));
      });
}

template <class T>
void mask_scatter(const MaskArgs<T>& a, int64_t row_begin, int64_t row_end) {
  using V = Vec<T>;
  const int64_t channels = a.big.c;
  if (a.pool) {  // an odd last row or column belongs to no window
    const int64_t row_values = a.big.w * channels;
    for (int64_t row = row_begin; row < row_end; ++row) {
      const int64_t y = row % a.oh, last = y + 1 == a.oh ? a.big.h : 2 * y + 2;
      T* top = a.z + (row / a.oh * a.big.h + 2 * y) * row_values;
      __builtin_memset(top, 0, (size_t)((last - 2 * y) * row_values) * sizeof(T));
    }
  }
  for_each_masked(
      a, row_begin, row_end, [&](const T* y, T* z, int64_t c, auto inside, auto pass, auto column, auto below) {
        const typename V::Value g = V::select(pass, load_channels(y, c, channels), V::zero());
        for (int i = 0; i < (a.pool ? 4 : 1); ++i) {
          const typename V::Mask here = is_element<T>(i, column, below);
          if (!inside(i) || V::bits(here) == 0) continue;
          store_channels(z + (i / 2 * a.big.w + i % 2) * channels, c, channels, V::select(here, g, V::zero()));
        }
      });
}

/// Each channel is summed in double, in the order of the pixels.
template <class T>
void sum_pool(const T* x, int64_t pixels, int64_t channels, T scale, T* y) {
  constexpr int64_t width = 64;
  for (int64_t begin = 0; begin < channels; begin += width) {
    const int64_t count = min(width, channels - begin);
    double sums[width] = {};
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      for (int64_t c = 0; c < count; ++c) sums[c] += x[pixel * channels + begin + c];
    }
    for (int64_t c = 0; c < count; ++c) y[begin + c] = (T)(sums[c] * scale);
  }
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
