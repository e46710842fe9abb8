// The first 3x3 layer: direct convolution of RGB images. Its 27 products per output are too few for a transform.
//
// The rows of the image that one row of outputs needs are copied into lines with a zero pixel at either end, so that
// the 9 values of one kernel row lie side by side for every pixel: [kernel row][pixel][3 taps x 3 channels].
// fprop   The sums of P pixels x 2 vectors of output channels stay in registers. They are stored from there, or go
//         through memory to an epilogue with a pool or a mask.
// wgrad   The sums of 9 or 27 weights of one vector of output channels stay in registers during the loop over the
//         pixels of a segment.
// Cache   Lines, weights (27 x cout) and a segment's gradients of one vector are meant to stay in L1.
#pragma once

#include "cpu/kernels/winograd.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

struct Stem {
  static constexpr int64_t channels = 3, taps = 9, row_values = 9;  // of one kernel row
  static constexpr int64_t values = 27;
  static constexpr int64_t segment = 4 * VGGFAST_GEMM_ROWS;  // pixels whose products are kept at a time; even
  static_assert(segment % 2 == 0);
};

/// Floats of a line of `w` pixels.
inline int64_t line_values(int64_t w) { return (w + 2) * Stem::channels; }

/// Copies row `y` of image `n` to `line`, with zeros outside the image.
template <class S>
void load_line(const ConvInput<S>& in, int64_t n, int64_t y, float* line) {
  const Extent e = in.extent;
  const int64_t count = e.w * Stem::channels;
  for (int64_t i = 0; i < Stem::channels; ++i) line[i] = line[count + Stem::channels + i] = 0;
  float* to = line + Stem::channels;
  if (y < 0 || y >= e.h) {
    __builtin_memset(to, 0, (size_t)count * sizeof(float));
    return;
  }
  const S* from = in.data + (n * e.h + y) * count;
  int64_t i = 0;
  for (; i + Vf::lanes <= count; i += Vf::lanes) Vf::store(to + i, Vf::load(from + i));
  if (i < count) Vf::store(to + i, Vf::load(from + i, count - i), count - i);
}

/// Prefetches the cache lines of `count` values, to be written where Write is 1, else to be read.
template <int Write, class S>
void prefetch_lines(const S* values, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / (int64_t)sizeof(S)) __builtin_prefetch(values + i, Write, 2);
}

/// Channels [c, c + lanes) of the gradients of pixels [begin, end) of a row, with `step` values from pixel to pixel:
/// where they are stored, if they can be read as they are, else copied to `gz`.
template <class S>
const float* gradients_of(const ConvInput<S>& in, int64_t n, int64_t y, int64_t begin, int64_t end, int64_t c,
                          float* gz, int64_t& step) {
  const Extent e = in.extent;
  const S* from = in.data + ((n * e.h + y) * e.w + begin) * e.c + c;
  if (!in.mask && e.c - c >= Vf::lanes) {
    step = e.c;
    return from;
  }
  step = Vf::lanes;
  for (int64_t x = begin; x < end; ++x, from += e.c) {
    const int64_t pixel = (n * e.h + y) * e.w + x;
    Vf::store(gz + (x - begin) * step, in.pool   ? read_unpooled(in, n, y, x, c, e.c - c)
                                       : in.mask ? read_rectified(in, pixel, c, e.c - c)
                                                 : Vf::load(from, e.c - c));
  }
  return gz;
}

/// Adds the products of `pixels` gradients with the values of `Rows` kernel rows to sums[value], and the gradients
/// themselves to `bias`, unless it is null.
template <int Rows>
void add_products(const float* g, int64_t step, int64_t pixels, const float* lines, int64_t line, float* sums,
                  int64_t sum_step, float* bias) {
  constexpr int count = Rows * (int)Stem::row_values;
  Vf::Value acc[count] = {}, total = Vf::zero();
  for (int64_t x = 0; x < pixels; ++x, g += step, lines += Stem::channels) {
    const Vf::Value gradient = Vf::load(g);
    total += gradient;
#pragma GCC unroll 27
    for (int i = 0; i < count; ++i) {
      acc[i] = Vf::fma(lines[i / Stem::row_values * line + i % Stem::row_values], gradient, acc[i]);
    }
  }
#pragma GCC unroll 27
  for (int i = 0; i < count; ++i) Vf::store(sums + i * sum_step, Vf::load(sums + i * sum_step) + acc[i]);
  if (bias) Vf::store(bias, Vf::load(bias) + total);
}

/// Computes Rows pixels x Vecs vectors of outputs, with bias and ReLU, and stores them straight from registers.
template <int Rows, int Vecs, bool Stream, class S>
void stem_tile(const float* lines, int64_t line, const float* packed, const float* bias, bool relu, S* y,
               int64_t y_step) {
  Vf::Value acc[Rows][Vecs];
#pragma GCC unroll 16
  for (int p = 0; p < Rows; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < Vecs; ++v) acc[p][v] = Vf::load(bias + v * Vf::lanes);
  }
  for (int64_t r = 0; r < 3; ++r, lines += line) {
#pragma GCC unroll 3
    for (int64_t k = 0; k < Stem::row_values; ++k, packed += Vf::lanes) {
      Vf::Value column[Vecs];
#pragma GCC unroll 2
      for (int v = 0; v < Vecs; ++v) column[v] = Vf::load(packed + v * Stem::values * Vf::lanes);
#pragma GCC unroll 16
      for (int p = 0; p < Rows; ++p) {
#pragma GCC unroll 2
        for (int v = 0; v < Vecs; ++v) acc[p][v] = Vf::fma(lines[p * Stem::channels + k], column[v], acc[p][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < Rows; ++p) {
#pragma GCC unroll 2
    for (int v = 0; v < Vecs; ++v) {
      const Vf::Value out = relu ? Vf::select(passes<float>(acc[p][v]), acc[p][v], Vf::zero()) : acc[p][v];
      S* to = y + p * y_step + v * Vf::lanes;
      if constexpr (Stream) {
        Vf::stream(to, out);
      } else {
        Vf::store(to, out);
      }
    }
  }
}

/// The stem_tile that streams its stores, or not, as `stream` says; only float is streamed.
template <int Rows, class S>
auto stem_tile_of(bool stream) {
  if constexpr (sizeof(S) == sizeof(float)) {
    if (stream) return stem_tile<Rows, 2, true, S>;
  }
  return stem_tile<Rows, 2, false, S>;
}

/// The general case, for one pair of blocks: writes the sums of `pixels` pixels to `products`, then applies the
/// epilogue.
template <class S>
void stem_segment(const StemArgs<S>& a, const float* lines, int64_t line, int64_t pixels, int64_t first, int64_t block,
                  float* products) {
  constexpr int64_t lanes = Vf::lanes;
  constexpr int rows = VGGFAST_GEMM_ROWS;
  const GemmShape shape{.outer = 3,
                        .inner = Stem::row_values,
                        .last_inner = Stem::row_values,
                        .a_outer = line,
                        .b_step = lanes,
                        .b_vector = Stem::values * lanes,
                        .c_vector = 2 * Stem::segment * lanes};
  const bool pair = block + 1 < blocks_of(a.out.c);
  const int64_t window = a.out.pool ? 2 : 1;
  for (int64_t i = 0; i < window; ++i) {
    for (int64_t p = 0; p < pixels; p += rows) {
      const int64_t count = min<int64_t>(rows, pixels - p);
      const GemmTile<float> multiply =
          pair ? tile_of<float, 2, 3, 1, false, rows>(count) : tile_of<float, 1, 3, 1, false, rows>(count);
      multiply(shape, lines + i * line + p * Stem::channels, a.packed + block * Stem::values * lanes,
               products + (i * Stem::segment + p) * lanes);
    }
  }
  for (int64_t p = 0; p < pixels / window; ++p) {
    for (int64_t b = 0; b < (pair ? 2 : 1); ++b) {
      const float* sums = products + (2 * b * Stem::segment + p * window) * lanes;
      const float* below = sums + Stem::segment * lanes;
      const int64_t c = (block + b) * lanes;
      const Vf::Value bias = Vf::load(a.bias + c);
      if (a.out.pool) {
        const Vf::Value four[4] = {Vf::load(sums), Vf::load(sums + lanes), Vf::load(below), Vf::load(below + lanes)};
        store_output<true, float>(a.out, first + p, c, bias, four);
      } else {
        const Vf::Value one = Vf::load(sums);
        store_output<false, float>(a.out, first + p, c, bias, &one);
      }
    }
  }
}

/// Units: rows of the output. `scratch` holds 4 lines, then 2 rows of products of a segment.
template <class S>
void stem_fprop(const StemArgs<S>& a, int64_t row_begin, int64_t row_end, float* scratch) {
  constexpr int64_t lanes = Vf::lanes;
  constexpr int rows = VGGFAST_GEMM_ROWS;
  const int64_t line = line_values(a.in.extent.w), window = a.out.pool ? 2 : 1;
  const bool plain = !a.out.pool && !a.out.mask;
  const auto tile = stem_tile_of<rows, S>(a.out.stream);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t n = row / a.out.h, y = row % a.out.h * window;
    for (int64_t i = 0; i < window + 2; ++i) load_line(a.in, n, y + i - 1, scratch + i * line);
    for (int64_t x = 0; x < a.out.w * window; x += Stem::segment) {
      const int64_t pixels = min(Stem::segment, a.out.w * window - x), first = (row - a.y_row) * a.out.w + x / window;
      if (!a.out.stream) prefetch_lines<1>(a.out.y + first * a.out.c, pixels / window * a.out.c);
      for (int64_t c = 0; c < a.out.c; c += 2 * lanes) {
        const float* values = scratch + x * Stem::channels;
        int64_t done = 0;
        if (plain && c + 2 * lanes <= a.out.c) {
          for (; done + rows <= pixels; done += rows) {
            tile(values + done * Stem::channels, line, a.packed + c * Stem::values, a.bias + c, a.out.relu,
                 a.out.y + (first + done) * a.out.c + c, a.out.c);
          }
        }
        if (done < pixels) {
          stem_segment(a, values + done * Stem::channels, line, pixels - done, first + done, c / lanes,
                       scratch + 4 * line);
        }
      }
    }
  }
  if (a.out.stream) Vf::end_stream();
}

/// Units: rows of the flattened (n, h). Adds to partial[value][cout, padded] and, unless it is null, to bias[cout,
/// padded]. `scratch` holds 3 lines, then a segment's gradients of one vector.
template <class S>
void stem_wgrad(const ConvInput<S>& in, const ConvInput<S>& gradient, int64_t row_begin, int64_t row_end,
                float* partial, float* bias, float* scratch) {
  constexpr int64_t lanes = Vf::lanes;
  constexpr int rows = VGGFAST_STEM_ROWS;  // kernel rows whose sums fit registers
  const int64_t h = in.extent.h, w = in.extent.w, line = line_values(w), padded = blocks_of(gradient.extent.c) * lanes;
  float* gz = scratch + 3 * line;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t n = row / h, y = row % h;
    for (int64_t i = 0; i < 3; ++i) load_line(in, n, y + i - 1, scratch + i * line);
    for (int64_t begin = 0; begin < w; begin += Stem::segment) {
      const int64_t end = min(begin + Stem::segment, w), next = min(end + Stem::segment, w);
      if (!gradient.mask) {
        const int64_t channels = gradient.extent.c;
        prefetch_lines<0>(gradient.data + (row * w + end) * channels, (next - end) * channels);
      }
      for (int64_t c = 0; c < padded; c += lanes) {
        int64_t step;
        const float* g = gradients_of(gradient, n, y, begin, end, c, gz, step);
        for (int first = 0; first < 3; first += rows) {
          add_products<rows>(g, step, end - begin, scratch + first * line + begin * Stem::channels, line,
                             partial + first * Stem::row_values * padded + c, padded,
                             bias && first == 0 ? bias + c : nullptr);
        }
      }
    }
  }
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
