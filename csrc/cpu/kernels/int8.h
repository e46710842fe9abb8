// Convolution, stride 1, kernel 3 (pad 1) or 1, and linear layers, of u8 activations by s8 weights.
//
// The sums of a tile of up to P pixels of one row x 2 vectors of output channels stay in registers during the loop over
// taps and input channels, a word (VGGFAST_INT8_TERMS values) at a time: a pixel's word is broadcast and multiplied
// with a vector of words of weights. A task copies the rows that it reads into `scratch`, as words, within a ring of
// zeros, so that a kernel row of 3 pixels is one run of words. A tile's sums go through memory (in L1) to the epilogue,
// which takes two rows of them where there is a pool.
// Cache  A block's weights stream from L2 (at most 16 bytes a cycle); a tile's inputs stay in L1.
#pragma once

#include "cpu/kernels/int8_sums.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

struct Int8 {
  static constexpr int pixels = VGGFAST_INT8_PIXELS;  // P, even
  static constexpr int vectors = 2;
  static constexpr int terms = VGGFAST_INT8_TERMS;
  static constexpr int64_t lanes = Vec<float>::lanes;
  static constexpr int64_t channels = vectors * lanes;  // of a block
  static constexpr int64_t step = channels * terms;     // weights of one word of inputs
  static constexpr int64_t linear_words = 8192 / step;  // whose weights stay in L1, for the next tiles of rows
  static_assert(pixels % 2 == 0);
};

constexpr int64_t words_of(int64_t channels) { return (channels + Int8::terms - 1) / Int8::terms; }

/// What a tile multiplies: `outer` runs of `inner` words, the inputs' runs `line` words apart.
struct Int8Runs {
  int64_t outer, inner, line;
  int64_t pixel;  // words from one pixel to the next
};

/// sums[pixel][channel] (+)= the products of Count pixels and one block.
template <int Count>
void multiply(const Int8Runs& runs, const int32_t* inputs, const int8_t* weights, bool add, int32_t* sums) {
  Sums acc[Count][Int8::vectors];  // not by memset and memcpy, which have the compiler pass them through memory
#pragma GCC unroll 16
  for (int p = 0; p < Count; ++p) {
    for (int v = 0; v < Int8::vectors; ++v) {
      acc[p][v] = add ? load_sums(sums + (p * Int8::vectors + v) * Int8::lanes) : Sums{};
    }
  }
  const int64_t pixel = runs.pixel;
  for (int64_t outer = 0; outer < runs.outer; ++outer, inputs += runs.line) {
    const int32_t* word = inputs;
    for (int64_t i = 0; i < runs.inner; ++i, ++word, weights += Int8::step) {
      const Sums first = load_weights(weights), second = load_weights(weights + Int8::step / 2);
#pragma GCC unroll 16
      for (int p = 0; p < Count; ++p) {
        const Sums value = word[p * pixel] + Sums{};
        acc[p][0] = add_products(acc[p][0], value, first);
        acc[p][1] = add_products(acc[p][1], value, second);
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < Count; ++p) {
    for (int v = 0; v < Int8::vectors; ++v) store_sums(sums + (p * Int8::vectors + v) * Int8::lanes, acc[p][v]);
  }
}

using Multiply = void (*)(const Int8Runs&, const int32_t* inputs, const int8_t* weights, bool add, int32_t* sums);

template <int Most = Int8::pixels>
Multiply multiply_of(int64_t count) {
  if constexpr (Most > 1) {
    if (count < Most) return multiply_of<Most - 1>(count);
  }
  return multiply<Most>;
}

void int8_pack(const WeightView<int8_t>& w, int64_t block, int8_t* packed) {
  for (int64_t tap = 0; tap < w.kernel * w.kernel; ++tap) {
    const int8_t* from = w.data + tap / w.kernel * w.stride_row + tap % w.kernel * w.stride_column;
    for (int64_t word = 0; word < words_of(w.in); ++word) {
      for (int64_t out = block * Int8::channels; out < (block + 1) * Int8::channels; ++out) {
        for (int64_t in = word * Int8::terms; in < (word + 1) * Int8::terms; ++in) {
          *packed++ = out < w.out && in < w.in ? from[out * w.stride_out + in * w.stride_in] : (int8_t)0;
        }
      }
    }
  }
}

void int8_words(const uint8_t* from, int64_t pixels, int64_t channels, int32_t* to) {
  if (channels % Int8::terms == 0) {  // then pixels follow each other without a gap
    channels *= pixels;
    pixels = 1;
  }
#if VGGFAST_INT8_TERMS == 2
  typedef uint16_t Value;
#else
  typedef uint8_t Value;
#endif
  const int64_t pitch = words_of(channels) * Int8::terms;
  Value* values = (Value*)to;
  for (; pixels > 0; --pixels, from += channels, values += pitch) {
    for (int64_t i = 0; i < channels; ++i) values[i] = from[i];
    for (int64_t i = channels; i < pitch; ++i) values[i] = 0;
  }
}

void int8_quantise(const float* from, int64_t count, float inverse, uint8_t* to) {
  constexpr int64_t lanes = Int8::lanes;
  for (; count > 0; from += lanes, to += lanes, count -= lanes) {
    const Bytes bytes = quantised(count >= lanes ? Vec<float>::load(from) : Vec<float>::load(from, count), inverse);
    __builtin_memcpy(to, &bytes, (size_t)min(count, lanes));
  }
}

/// Stores a tile's `pixels` output pixels of one block. With a pool each is the largest of 2 x 2 sums: units are
/// positive, so that the order of the sums is that of the values.
void store_tile(const Int8Args& a, int64_t first, int64_t pixels, int64_t block, const int32_t* sums) {
  constexpr int64_t below = Int8::pixels * Int8::channels;
  for (int64_t v = 0; v < Int8::vectors; ++v) {
    const int64_t c = block * Int8::channels + v * Int8::lanes;
    if (c >= a.out.c) return;
    const Vec<float>::Value unit = Vec<float>::load(a.unit + c), bias = Vec<float>::load(a.bias + c);
    const int64_t count = min(a.out.c - c, Int8::lanes);
    const int32_t* from = sums + v * Int8::lanes;
    for (int64_t p = 0; p < pixels; ++p) {
      Sums sum;
      if (a.out.pool) {
        const int32_t *left = from + 2 * p * Int8::channels, *right = left + Int8::channels;
        sum = larger(larger(load_sums(left), load_sums(right)),
                     larger(load_sums(left + below), load_sums(right + below)));
      } else {
        sum = load_sums(from + p * Int8::channels);
      }
      store_values(a.out, (first + p) * a.out.c + c, count, sum, unit, bias);
    }
  }
}

/// Input rows [begin, end) as words, within a ring of `pad` zeros; those outside the image are zeros.
void load_rows(const Int8Args& a, int64_t image, int64_t begin, int64_t end, int64_t pad, int32_t* to) {
  const int64_t words = words_of(a.in.c), pitch = (a.in.w + 2 * pad) * words;
  for (int64_t row = begin; row < end; ++row, to += pitch) {
    const bool inside = row >= 0 && row < a.in.h;
    if (inside) {
      int8_words(a.x + (image * a.in.h + row) * a.in.w * a.in.c, a.in.w, a.in.c, to + pad * words);
    }
    for (int64_t i = 0; i < (inside ? pad * words : pitch); ++i) to[i] = to[pitch - 1 - i] = 0;
  }
}

void int8_conv(const Int8Args& a, int64_t image, int64_t row_begin, int64_t row_end, int64_t block_begin,
               int64_t block_end, int32_t* scratch) {
  const int64_t pad = a.kernel / 2, words = words_of(a.in.c), window = a.out.pool ? 2 : 1;
  const Int8Runs runs{a.kernel, a.kernel * words, (a.in.w + 2 * pad) * words, words};
  int32_t *sums = scratch, *rows = scratch + 2 * Int8::pixels * Int8::channels;
  load_rows(a, image, row_begin * window - pad, row_end * window + pad, pad, rows);
  const int64_t tiles = (a.out.w * window + Int8::pixels - 1) / Int8::pixels;  // of about as many pixels each
  for (int64_t block = block_begin; block < block_end; ++block) {
    const int8_t* weights = a.packed + block * runs.outer * runs.inner * Int8::step;
    for (int64_t row = row_begin; row < row_end; ++row) {
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t begin = a.out.w * tile / tiles, end = a.out.w * (tile + 1) / tiles;
        const Multiply product = multiply_of((end - begin) * window);
        for (int64_t i = 0; i < window; ++i) {
          product(runs, rows + ((row - row_begin) * window + i) * runs.line + begin * window * words, weights, false,
                  sums + i * Int8::pixels * Int8::channels);
        }
        store_tile(a, (image * a.out.h + row) * a.out.w + begin, end - begin, block, sums);
      }
    }
  }
}

/// Weights are read once for every int8_linear_rows rows, whatever their size: a part of a block at a time, in L1.
void int8_linear(const Int8Args& a, const int32_t* inputs, int64_t block_begin, int64_t block_end, int32_t* sums) {
  const int64_t words = words_of(a.in.c);
  for (int64_t first = 0; first < a.in.n; first += int8_linear_rows) {
    const int64_t rows = min(int8_linear_rows, a.in.n - first);
    const int64_t tiles = (rows + Int8::pixels - 1) / Int8::pixels, part = tiles == 1 ? words : Int8::linear_words;
    for (int64_t block = block_begin; block < block_end; ++block) {
      const int8_t* weights = a.packed + block * words * Int8::step;
      for (int64_t word = 0; word < words; word += part) {
        const Int8Runs runs{1, min(part, words - word), 0, words};
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t begin = rows * tile / tiles, end = rows * (tile + 1) / tiles;
          multiply_of(end - begin)(runs, inputs + (first + begin) * words + word, weights + word * Int8::step, word > 0,
                                   sums + begin * Int8::channels);
        }
      }
      store_tile(a, first, rows, block, sums);
    }
  }
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
