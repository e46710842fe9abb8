// Direct convolution as an implicit GEMM over NHWC, stride 1, kernel 3 (pad 1) or 1.
//
// fprop   The sums of a tile of P pixels x a block of V vectors of output channels stay in registers during the loop
//         over taps and input channels. P pointers per tap say where each pixel's inputs lie; a tap outside the image
//         reads a row of zeros. A tile of a pooled output holds P / 4 windows of four consecutive pixels each, so
//         that the pool stays in registers too.
// dgrad   fprop with weights that were transposed and flipped when they were packed.
// wgrad   The sums of P input channels x V vectors of output channels stay in registers during the loop over pixels,
//         one tap after another over chunks of rows that fit the first caches. Each chunk is summed by itself, which
//         also bounds the rounding.
// Cache   A packed block (taps * cin * block_channels values) is meant to stay in L2, a tile's inputs in L1.
#pragma once

#include "cpu/kernels/epilogue.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

template <class T>
struct ConvTraits {
  static constexpr int pixels = VGGFAST_CONV_PIXELS;                         // P, a multiple of 4
  static constexpr int vectors = VGGFAST_CONV_VECTORS * (int)sizeof(T) / 4;  // V
  static constexpr int64_t lanes = Vec<T>::lanes;
  static constexpr int64_t channels = vectors * lanes;  // of a block
  static constexpr int max_taps = 9;
  static constexpr int64_t partial_terms = 128;  // so many are summed by themselves, which bounds the rounding
  static_assert(pixels % 4 == 0 && channels % 8 == 0);
};

template <class T>
using Accumulators = typename Vec<T>::Value[ConvTraits<T>::pixels][ConvTraits<T>::vectors];

template <class T>
void conv_pack(const WeightView<T>& w, int64_t block, T* packed) {
  constexpr int64_t channels = ConvTraits<T>::channels;
  const int64_t first = block * channels;
  for (int64_t row = 0; row < w.kernel; ++row) {
    for (int64_t column = 0; column < w.kernel; ++column) {
      const T* tap = w.data + row * w.stride_row + column * w.stride_column;
      for (int64_t in = 0; in < w.in; ++in) {
        for (int64_t i = 0; i < channels; ++i) {
          *packed++ = first + i < w.out ? tap[(first + i) * w.stride_out + in * w.stride_in] : T(0);
        }
      }
    }
  }
}

/// acc[p][v] += sum over k of a[p][k * a_step] * b[k * b_step + vector v]. Unless Whole, a row of b holds only
/// `width` values of the block.
template <class T, bool Whole = true>
inline __attribute__((always_inline)) void multiply_add(Accumulators<T>& acc, const T* const* a, int64_t a_step,
                                                        const T* b, int64_t b_step, int64_t count, int64_t width = 0) {
  using Traits = ConvTraits<T>;
  for (int64_t k = 0; k < count; ++k, b += b_step) {
    typename Vec<T>::Value column[Traits::vectors];
#pragma GCC unroll 16
    for (int v = 0; v < Traits::vectors; ++v) {
      const int64_t c = v * Traits::lanes;
      column[v] = Whole ? Vec<T>::load(b + c) : Vec<T>::load(b + c, min(max<int64_t>(width - c, 0), Traits::lanes));
    }
#pragma GCC unroll 16
    for (int p = 0; p < Traits::pixels; ++p) {
#pragma GCC unroll 16
      for (int v = 0; v < Traits::vectors; ++v) acc[p][v] = Vec<T>::fma(a[p][k * a_step], column[v], acc[p][v]);
    }
  }
}

/// total += acc; acc = 0.
template <class T>
inline __attribute__((always_inline)) void flush(Accumulators<T>& acc, Accumulators<T>& total) {
  using Traits = ConvTraits<T>;
#pragma GCC unroll 16
  for (int p = 0; p < Traits::pixels; ++p) {
#pragma GCC unroll 16
    for (int v = 0; v < Traits::vectors; ++v) {
      total[p][v] += acc[p][v];
      acc[p][v] = Vec<T>::zero();
    }
  }
}

/// Writes rows[tap * P + p]: where pixel p of the tile has its inputs for each tap.
template <class T>
void find_rows(const ConvArgs<T>& a, int64_t tile, const T** rows) {
  constexpr int P = ConvTraits<T>::pixels;
  const int64_t pad = a.kernel / 2;
  const int64_t group = a.out.pool ? 4 : 1;  // consecutive pixels of a tile that belong to one output
  const int64_t outputs = a.in.n * a.out.h * a.out.w;
  for (int p = 0; p < P; ++p) {
    const int64_t index = tile * (P / group) + p / group;
    const int64_t n = index / (a.out.h * a.out.w);
    int64_t y = index / a.out.w % a.out.h;
    int64_t x = index % a.out.w;
    if (a.out.pool) {
      y = 2 * y + p % 4 / 2;
      x = 2 * x + p % 2;
    }
    for (int64_t r = 0; r < a.kernel; ++r) {
      for (int64_t s = 0; s < a.kernel; ++s) {
        const int64_t yy = y + r - pad, xx = x + s - pad;
        const bool inside = index < outputs && yy >= 0 && yy < a.in.h && xx >= 0 && xx < a.in.w;
        rows[(r * a.kernel + s) * P + p] = inside ? a.x + ((n * a.in.h + yy) * a.in.w + xx) * a.in.c : a.zeros;
      }
    }
  }
}

/// Applies the epilogue to one block of one tile, and stores it.
template <class T>
void store_tile(const ConvArgs<T>& a, int64_t tile, int64_t block, const Accumulators<T>& acc) {
  using Traits = ConvTraits<T>;
  using V = Vec<T>;
  const int group = a.out.pool ? 4 : 1;
  const int64_t outputs = a.in.n * a.out.h * a.out.w;
  for (int p = 0; p < Traits::pixels; p += group) {
    const int64_t pixel = tile * (Traits::pixels / group) + p / group;
    if (pixel >= outputs) return;
    for (int v = 0; v < Traits::vectors; ++v) {
      const int64_t c = block * Traits::channels + v * Traits::lanes;
      if (c >= a.out.c) break;
      const typename V::Value bias = V::load(a.bias + c);
      if (a.out.pool) {
        const typename V::Value sums[4] = {acc[p][v], acc[p + 1][v], acc[p + 2][v], acc[p + 3][v]};
        store_output<true, T>(a.out, pixel, c, bias, sums);
      } else {
        store_output<false, T>(a.out, pixel, c, bias, &acc[p][v]);
      }
    }
  }
}

template <class T>
void conv_fprop(const ConvArgs<T>& a, int64_t tile_begin, int64_t tile_end, int64_t block_begin, int64_t block_end) {
  using Traits = ConvTraits<T>;
  const int64_t taps = a.kernel * a.kernel;
  const T* rows[Traits::max_taps * Traits::pixels];
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    find_rows(a, tile, rows);
    for (int64_t block = block_begin; block < block_end; ++block) {
      const T* packed = a.packed + block * taps * a.in.c * Traits::channels;
      Accumulators<T> total{}, acc{};
      int64_t terms = 0;  // summed in acc
      for (int64_t tap = 0; tap < taps; ++tap) {
        multiply_add<T>(acc, rows + tap * Traits::pixels, 1, packed + tap * a.in.c * Traits::channels, Traits::channels,
                        a.in.c);
        terms += a.in.c;
        if (terms >= Traits::partial_terms || tap + 1 == taps) {
          flush<T>(acc, total);
          terms = 0;
        }
      }
      store_tile(a, tile, block, total);
    }
  }
}

/// Adds the sums of one tap over rows [row_begin, row_end) to partial[input][channel of the block].
template <class T, bool Whole>
void wgrad_tap(const WgradArgs<T>& a, int64_t row_begin, int64_t row_end, int64_t tap, int64_t input, int64_t block,
               T* partial) {
  using Traits = ConvTraits<T>;
  const int64_t dy = tap / a.kernel - a.kernel / 2, dx = tap % a.kernel - a.kernel / 2;
  const int64_t x_begin = max<int64_t>(0, -dx), x_end = min(a.in.w, a.in.w - dx);
  const int64_t channel = block * Traits::channels;
  Accumulators<T> acc{};
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t y = row % a.in.h + dy;
    if (y < 0 || y >= a.in.h) continue;
    const T* pixel = a.x + ((row + dy) * a.in.w + x_begin + dx) * a.in.c;
    const T* inputs[Traits::pixels];  // past the last input channel, that one is read again and not stored
    for (int p = 0; p < Traits::pixels; ++p) inputs[p] = pixel + min(input + p, a.in.c - 1);
    multiply_add<T, Whole>(acc, inputs, a.in.c, a.gy + (row * a.in.w + x_begin) * a.cout + channel, a.cout,
                           x_end - x_begin, a.cout - channel);
  }
  for (int p = 0; p < Traits::pixels && input + p < a.in.c; ++p) {
    for (int v = 0; v < Traits::vectors; ++v) {
      T* sum = partial + (input + p) * Traits::channels + v * Traits::lanes;
      Vec<T>::store(sum, Vec<T>::load(sum) + acc[p][v]);
    }
  }
}

/// Adds the sums of gy over the pixels of rows [row_begin, row_end) to a.partial_bias.
template <class T>
void wgrad_bias(const WgradArgs<T>& a, int64_t row_begin, int64_t row_end, int64_t block) {
  using Traits = ConvTraits<T>;
  const int64_t begin = block * Traits::channels, end = min(begin + Traits::channels, a.cout);
  T sums[Traits::channels] = {};
  for (int64_t pixel = row_begin * a.in.w; pixel < row_end * a.in.w; ++pixel) {
    for (int64_t c = begin; c < end; ++c) sums[c - begin] += a.gy[pixel * a.cout + c];
  }
  for (int64_t c = begin; c < end; ++c) a.partial_bias[c] += sums[c - begin];
}

template <class T>
void conv_wgrad(const WgradArgs<T>& a, int64_t input_unit, int64_t block) {
  using Traits = ConvTraits<T>;
  constexpr int64_t chunk_pixels = 256;
  const int64_t taps = a.kernel * a.kernel, chunk = max<int64_t>(1, chunk_pixels / a.in.w);
  const bool whole = (block + 1) * Traits::channels <= a.cout;
  for (int64_t row = a.row_begin; row < a.row_end; row += chunk) {
    const int64_t end = min(row + chunk, a.row_end);
    for (int64_t tap = 0; tap < taps; ++tap) {
      T* partial = a.partial + (block * taps + tap) * a.in.c * Traits::channels;
      const int64_t input = input_unit * Traits::pixels;
      whole ? wgrad_tap<T, true>(a, row, end, tap, input, block, partial)
            : wgrad_tap<T, false>(a, row, end, tap, input, block, partial);
    }
    if (a.partial_bias && input_unit == 0) wgrad_bias(a, row, end, block);
  }
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
