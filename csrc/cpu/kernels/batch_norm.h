// Batch norm over NHWC, with ReLU and 2x2/2 max-pool: vectors run along the channels. All is bound by memory: forward
// is one pass for the statistics and one for the outputs, backward one for its two sums and one for gx.
// Maps lie as S and are computed in T; sums are of T over a few pixels, and of double beyond that.
#pragma once

#include "cpu/kernel_table.h"
#include "cpu/kernels/epilogue.h"
#include "cpu/kernels/pool.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

constexpr int64_t norm_block = 16;  // pixels whose sums are kept in T

/// The squares are taken about the block's own mean, which costs a second look at what the cache still holds: nothing
/// cancels, however far the values are from 0.
template <class S, class T = Computed<S>>
void batch_norm_moments(const S* x, const T* origin, int64_t channels, int64_t pixel_begin, int64_t pixel_end,
                        T* scratch, double* sums) {
  using V = Vec<T>;
  const int64_t padded = (channels + V::lanes - 1) / V::lanes * V::lanes;
  T *centre = scratch, *linear = scratch + padded, *square = scratch + 2 * padded;
  for (int64_t begin = pixel_begin; begin < pixel_end; begin += norm_block) {
    const S* first = x + begin * channels;
    const int64_t count = min(norm_block, pixel_end - begin);
    for (int64_t c = 0; c < channels; c += V::lanes) {
      const auto start = load_channels(first, c, channels);
      typename V::Value sum = V::zero(), off = V::zero(), squares = V::zero();
      for (int64_t i = 1; i < count; ++i) sum += load_channels(first + i * channels, c, channels) - start;
      const auto middle = start + sum / V::set1((T)count);
      for (int64_t i = 0; i < count; ++i) {
        const auto d = load_channels(first + i * channels, c, channels) - middle;
        off += d;
        squares += d * d;
      }
      V::store(centre + c, middle);
      V::store(linear + c, off);
      V::store(square + c, squares);
    }
    const double n = (double)count;
    for (int64_t c = 0; c < channels; ++c) {
      const double shift = (double)centre[c] - (double)origin[c];
      sums[c] += linear[c] + n * shift;
      sums[channels + c] += square[c] + shift * (2 * (double)linear[c] + n * shift);
    }
  }
}

template <bool Pool, class S, class T = Computed<S>>
inline __attribute__((always_inline)) void normalise(const BatchNormArgs<S>& a, int64_t row_begin, int64_t row_end) {
  using V = Vec<T>;
  constexpr int64_t step = Pool ? 2 : 1;
  const int64_t channels = a.in.c;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const S* x = a.x + (row / a.out.h * a.in.h + step * (row % a.out.h)) * a.in.w * channels;
    for (int64_t i = 0; i < a.out.w; ++i, x += step * channels) {
      for (int64_t c = 0; c < channels; c += V::lanes) {
        const auto mean = V::load(a.mean + c), scale = V::load(a.scale + c), bias = V::load(a.bias + c);
        typename V::Value values[step * step];
        for (int64_t k = 0; k < step * step; ++k) {
          values[k] = (load_channels(x + (k / 2 * a.in.w + k % 2) * channels, c, channels) - mean) * scale;
        }
        store_output<Pool, T>(a.out, row * a.out.w + i, c, bias, values);
      }
    }
  }
  if (a.out.stream) V::end_stream();
}

template <class S>
void batch_norm_fprop(const BatchNormArgs<S>& a, int64_t row_begin, int64_t row_end) {
  a.out.pool ? normalise<true>(a, row_begin, row_end) : normalise<false>(a, row_begin, row_end);
}

/// What reaches an element of x of the gradient of one vector of outputs, and for a pool which one it reaches.
template <class T>
struct Reaching {
  typename Vec<T>::Value g;
  typename Vec<T>::Mask column, below;
};

template <bool Pool, class S, class T = Computed<S>>
inline __attribute__((always_inline)) Reaching<T> reaching(const MaskArgs<S>& a, int64_t row, int64_t x, int64_t c) {
  const int64_t bytes = (a.big.c + 7) / 8, plane = a.oh * a.ow * bytes;
  Reaching<T> r{load_channels(a.y + (row * a.ow + x) * a.big.c, c, a.big.c), {}, {}};
  if (!a.relu && !Pool) return r;
  const uint8_t* bits = mask_at(a, row, x, bytes);
  if (a.relu) {
    r.g = Vec<T>::select(load_bits<T>(bits, bytes, c), r.g, Vec<T>::zero());
    bits += plane;
  }
  if constexpr (Pool) {
    r.column = load_bits<T>(bits, bytes, c);
    r.below = load_bits<T>(bits + plane, bytes, c);
  }
  return r;
}

template <bool Pool, class S, class T = Computed<S>>
inline __attribute__((always_inline)) void gradient_sums(const BatchNormGradient<S>& a, int64_t row_begin,
                                                         int64_t row_end, T* scratch, double* sums) {
  using V = Vec<T>;
  constexpr int64_t step = Pool ? 2 : 1;
  const MaskArgs<S>& m = a.maps;
  const int64_t channels = m.big.c;
  T* plain = scratch;
  T* product = scratch + (channels + V::lanes - 1) / V::lanes * V::lanes;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const S* x = m.z + (row / m.oh * m.big.h + step * (row % m.oh)) * m.big.w * channels;
    for (int64_t begin = 0; begin < m.ow; begin += norm_block) {
      for (int64_t c = 0; c < channels; c += V::lanes) {
        V::store(plain + c, V::zero());
        V::store(product + c, V::zero());
      }
      for (int64_t i = begin; i < min(m.ow, begin + norm_block); ++i, x += step * channels) {
        for (int64_t c = 0; c < channels; c += V::lanes) {
          const Reaching<T> r = reaching<Pool>(m, row, i, c);
          typename V::Value v = load_channels(x, c, channels);
          for (int k = 1; k < step * step; ++k) {
            const S* other = x + (k / 2 * m.big.w + k % 2) * channels;
            v = V::select(is_element<T>(k, r.column, r.below), load_channels(other, c, channels), v);
          }
          V::store(plain + c, V::load(plain + c) + r.g);
          V::store(product + c, V::load(product + c) + r.g * (v - V::load(a.mean + c)));
        }
      }
      for (int64_t c = 0; c < channels; ++c) {
        sums[c] += plain[c];
        sums[channels + c] += product[c];
      }
    }
  }
}

template <class S>
void batch_norm_sums(const BatchNormGradient<S>& a, int64_t row_begin, int64_t row_end, Computed<S>* scratch,
                     double* sums) {
  a.maps.pool ? gradient_sums<true>(a, row_begin, row_end, scratch, sums)
              : gradient_sums<false>(a, row_begin, row_end, scratch, sums);
}

template <bool Pool, class S, class T = Computed<S>>
inline __attribute__((always_inline)) void spread(const BatchNormGradient<S>& a, int64_t row_begin, int64_t row_end) {
  using V = Vec<T>;
  constexpr int64_t step = Pool ? 2 : 1;
  const MaskArgs<S>& m = a.maps;
  const int64_t channels = m.big.c;
  const auto write = [&](int64_t pixel, int64_t c, typename V::Value g) {
    const int64_t at = pixel * channels;
    typename V::Value gx = V::load(a.scale + c) * g;
    if (a.training) {
      const auto d = load_channels(m.z + at, c, channels) - V::load(a.mean + c);
      gx += V::load(a.slope + c) * d + V::load(a.offset + c);
    }
    if constexpr (sizeof(S) == sizeof(T)) {
      if (a.stream) return V::stream(a.gx + at + c, gx);
    }
    store_channels(a.gx + at, c, channels, gx);
  };
  const auto outside = [&](int64_t begin, int64_t end) {  // pixels of no window
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      for (int64_t c = 0; c < channels; c += V::lanes) write(pixel, c, V::zero());
    }
  };
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t top = row / m.oh * m.big.h + step * (row % m.oh), first = top * m.big.w;
    for (int64_t i = 0; i < m.ow; ++i) {
      for (int64_t c = 0; c < channels; c += V::lanes) {
        const Reaching<T> r = reaching<Pool>(m, row, i, c);
        for (int k = 0; k < step * step; ++k) {
          const auto g = Pool ? V::select(is_element<T>(k, r.column, r.below), r.g, V::zero()) : r.g;
          write(first + step * i + k / 2 * m.big.w + k % 2, c, g);
        }
      }
    }
    if constexpr (Pool) {
      for (int64_t line = 1; line <= 2; ++line)
        outside(first + (line - 1) * m.big.w + 2 * m.ow, first + line * m.big.w);
      if (row % m.oh + 1 == m.oh) outside(first + 2 * m.big.w, first + (m.big.h - 2 * m.oh + 2) * m.big.w);
    }
  }
  if (a.stream) V::end_stream();
}

template <class S>
void batch_norm_dgrad(const BatchNormGradient<S>& a, int64_t row_begin, int64_t row_end) {
  a.maps.pool ? spread<true>(a, row_begin, row_end) : spread<false>(a, row_begin, row_end);
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
