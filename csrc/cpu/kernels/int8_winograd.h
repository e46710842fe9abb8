// Convolution, stride 1, kernel 3, of u8 activations by s8 weights, by Winograd's F(4 x 4, 3 x 3) in whole numbers.
//
//   V [point][word block][tile][lanes]             the transformed inputs, a word being 2 channels of 16 bits
//   U [block][point][word][block_channels][2]      the transformed weights, 16 bits
//   M [point][tile][block_channels]                their products of one block, 32 bits
//
// The points are 0, 1, -1, 2, -2 and infinity, where Bt is whole. 24 G is so with its rows' common factors moved to At:
//
//   point   Bt                      G                At
//       0   4  0 -5  0  1  0     6   0   0     1   0   0   0
//       1   0 -4 -4  1  1  0    -4  -4  -4     1   1   1   1
//      -1   0  4 -4 -1  1  0    -4   4  -4     1  -1   1  -1
//       2   0 -2 -1  2  1  0     1   2   4     1   2   4   8
//      -2   0  2 -1 -2  1  0     1  -2   4     1  -2   4  -8
// infinity  0  4  0 -5  0  1     0   0  12     0   0   0   2
//
// Bits   In both directions Bt makes at most 50 * 255 of u8, and G at most 144 * 128 of s8: both fit 16 bits. All that
// follows is modulo 2^32, and ends in 24^2 = 64 * 9 times the sum. A product with the inverse of 9 and a shift by 6
// leave the sum itself, if it is within +-2^25, which weights tell (cpu/algorithms/winograd_int8.cpp).
//
// Cache  A task's V and M are meant to lie in L2, or V in L3; U of one block streams from L2. Planes of V, M and U are
// an odd number of vectors long, so that a tile's 36 stores fall into different cache sets.
//
// Source: Lavin & Gray, 2016.
#pragma once

#include "cpu/kernels/int8.h"
#include "cpu/kernels/winograd_tiles.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

// Unsigned, so that they wrap.
typedef uint16_t Halves __attribute__((vector_size(VGGFAST_VECTOR_BYTES)));
typedef uint32_t Wrapped __attribute__((vector_size(VGGFAST_VECTOR_BYTES)));

struct Int8Winograd {
  static constexpr int m = int8_winograd_m, n = m + 2, points = n * n, taps = 9;
  static constexpr int64_t channels = 2 * Int8::lanes;         // of a vector of V
  static constexpr int64_t word_weights = 2 * Int8::channels;  // of U, a word of inputs

  /// v = Bt d.
  static void input(const Halves (&d)[n], Halves (&v)[n]) {
    const Halves even = d[4] - d[2], odd = d[3] - d[1];
    const Halves even1 = d[4] - (d[2] << 2), odd1 = d[3] - (d[1] << 2), odd2 = odd + odd;
    v[0] = ((d[0] - d[2]) << 2) + even;
    v[1] = even1 + odd1;
    v[2] = even1 - odd1;
    v[3] = even + odd2;
    v[4] = even - odd2;
    v[5] = d[5] - d[3] - (odd << 2);
  }
  /// u = G g.
  static void weight(const Halves (&g)[3], Halves (&u)[n]) {
    const Halves even1 = g[0] + g[2], even2 = g[0] + (g[2] << 2), odd2 = g[1] + g[1], twice = g[0] + g[0];
    u[0] = (twice << 1) + twice;
    u[1] = -((even1 + g[1]) << 2);
    u[2] = (g[1] - even1) << 2;
    u[3] = even2 + odd2;
    u[4] = even2 - odd2;
    u[5] = (g[2] << 3) + (g[2] << 2);
  }
  /// y = At m.
  static void output(const Wrapped (&m)[n], Wrapped (&y)[4]) {
    const Wrapped even1 = m[1] + m[2], odd1 = m[1] - m[2], even2 = m[3] + m[4], odd2 = m[3] - m[4];
    y[0] = m[0] + even1 + even2;
    y[1] = odd1 + (odd2 << 1);
    y[2] = even1 + (even2 << 2);
    y[3] = odd1 + (odd2 << 3) + (m[5] << 1);
  }
  /// The sum of which `y` is 24^2 times, modulo 2^32.
  static Sums sum(Wrapped y) { return (Sums)(y * 954437177u) >> 6; }  // 9 * 954437177 = 2 * 2^32 + 1
};

inline int64_t word_blocks(int64_t channels) {
  return (channels + Int8Winograd::channels - 1) / Int8Winograd::channels;
}
inline int64_t u_plane(int64_t words) { return int8_winograd_plane(words * Int8::channels, Int8::lanes) * 2; }

/// Weights of one block as they lie until a call: [word][tap][block_channels][2], zero-padded.
void winograd_pack(const WeightView<int8_t>& w, int64_t block, int8_t* packed) {
  for (int64_t word = 0; word < word_blocks(w.in) * Int8::lanes; ++word) {
    for (int64_t tap = 0; tap < Int8Winograd::taps; ++tap) {
      const int8_t* from = w.data + tap / 3 * w.stride_row + tap % 3 * w.stride_column;
      for (int64_t out = block * Int8::channels; out < (block + 1) * Int8::channels; ++out) {
        for (int64_t in = 2 * word; in < 2 * word + 2; ++in) {
          *packed++ = out < w.out && in < w.in ? from[out * w.stride_out + in * w.stride_in] : (int8_t)0;
        }
      }
    }
  }
}

inline Sums load_words(const int16_t* p) {
  Sums words;
  __builtin_memcpy(&words, p, sizeof words);
  return words;
}

typedef uint8_t HalfBytes __attribute__((vector_size(VGGFAST_VECTOR_BYTES / 2)));

// Widened to 16 bits. GCC 12 converts vectors of 64 bytes in two parts.
inline Halves widened(HalfBytes bytes) {
#if VGGFAST_VECTOR_BYTES == 64
  return (Halves)_mm512_cvtepu8_epi16((__m256i)bytes);
#else
  return __builtin_convertvector(bytes, Halves);
#endif
}
inline Halves load_signed(const int8_t* p) {
  HalfBytes bytes;
  __builtin_memcpy(&bytes, p, sizeof bytes);
  typedef int16_t Signed __attribute__((vector_size(VGGFAST_VECTOR_BYTES)));
  return (Halves)((Signed)(widened(bytes) << 8) >> 8);
}

/// U of one block.
void winograd_weights(const int8_t* packed, int64_t cin, int16_t* u) {
  using W = Int8Winograd;
  const int64_t words = word_blocks(cin) * Int8::lanes, plane = u_plane(words);
  for (int64_t word = 0; word < words; ++word, packed += W::taps * W::word_weights, u += W::word_weights) {
    for (int v = 0; v < Int8::vectors; ++v) {
      Halves half[3][W::n], g[3], column[W::n];
      for (int s = 0; s < 3; ++s) {
#pragma GCC unroll 3
        for (int r = 0; r < 3; ++r) {
          g[r] = load_signed(packed + (r * 3 + s) * W::word_weights + v * W::channels);
        }
        W::weight(g, half[s]);
      }
      for (int i = 0; i < W::n; ++i) {
#pragma GCC unroll 3
        for (int s = 0; s < 3; ++s) g[s] = half[s][i];
        W::weight(g, column);
#pragma GCC unroll 6
        for (int j = 0; j < W::n; ++j) {
          __builtin_memcpy(u + (i * W::n + j) * plane + v * W::channels, &column[j], sizeof column[j]);
        }
      }
    }
  }
}

/// The first `count` of a vector's channels; the others are 0.
inline Halves load_channels(const uint8_t* p, int64_t count) {
  HalfBytes bytes{};
  if (count >= Int8Winograd::channels) {
    __builtin_memcpy(&bytes, p, sizeof bytes);
  } else {
    __builtin_memcpy(&bytes, p, (size_t)count);
  }
  return widened(bytes);
}

/// Writes V of tiles [begin, end) into planes of `tiles` tiles.
void winograd_inputs(const uint8_t* x, const Extent& in, const TileGrid& grid, int64_t begin, int64_t end,
                     int64_t tiles, int32_t* v) {
  using W = Int8Winograd;
  static const uint8_t zeros[W::channels] = {};
  const int64_t blocks = word_blocks(in.c), plane = int8_winograd_plane(blocks * tiles * Int8::lanes, Int8::lanes);
  for (int64_t tile = begin; tile < end; ++tile) {
    const TilePlace place = TilePlace::of<W::m>(grid, tile);
    const Patch<W::n> patch(grid, in, place.n, place.y - 1, place.x - 1);
    const uint8_t* pixels[W::n][W::n];
    int64_t inside[W::n][W::n];  // all bits, or none of a pixel outside the images, which is zeros
    for (int i = 0; i < W::n; ++i) {
      for (int j = 0; j < W::n; ++j) {
        const int64_t pixel = patch.at(i, j);
        inside[i][j] = ~(pixel >> 63);
        pixels[i][j] = pixel < 0 ? zeros : x + pixel * in.c;
      }
    }
    for (int64_t block = 0; block < blocks; ++block) {
      int32_t* out = v + (block * tiles + tile - begin) * Int8::lanes;
      const int64_t first = block * W::channels, count = in.c - first;
#pragma GCC unroll 36
      for (int i = 0; i < W::points; ++i) __builtin_prefetch(out + i * plane, 1);
      Halves half[W::n][W::n], line[W::n], column[W::n];
      for (int i = 0; i < W::n; ++i) {
#pragma GCC unroll 6
        for (int j = 0; j < W::n; ++j) {
          const uint8_t* p = pixels[i][j] + (first & inside[i][j]);
          if (j >= W::n - W::m) __builtin_prefetch(p + W::m * in.c);  // what the next tile is the first to read
          line[j] = load_channels(p, count);
        }
        W::input(line, column);
#pragma GCC unroll 6
        for (int j = 0; j < W::n; ++j) half[j][i] = column[j];
      }
      for (int j = 0; j < W::n; ++j) {
        W::input(half[j], column);
#pragma GCC unroll 6
        for (int i = 0; i < W::n; ++i) __builtin_memcpy(out + (i * W::n + j) * plane, &column[i], sizeof column[i]);
      }
    }
  }
}

/// Of words of 2 values of 16 bits each: sums + the products of each word's terms, modulo 2^32.
inline __attribute__((always_inline)) Sums add_pairs(Sums sums, Sums inputs, Sums weights) {
#if VGGFAST_VECTOR_BYTES == 64 && defined(__AVX512VNNI__)
  return (Sums)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)inputs, (__m512i)weights);
#elif VGGFAST_VECTOR_BYTES == 64
  return (Sums)_mm512_add_epi32((__m512i)sums, _mm512_madd_epi16((__m512i)inputs, (__m512i)weights));
#elif VGGFAST_VECTOR_BYTES == 32
  return (Sums)_mm256_add_epi32((__m256i)sums, _mm256_madd_epi16((__m256i)inputs, (__m256i)weights));
#else
  typedef uint32_t Wrapped __attribute__((vector_size(VGGFAST_VECTOR_BYTES)));
  const Wrapped low = (Wrapped)(inputs << 16 >> 16) * (Wrapped)(weights << 16 >> 16);
  return (Sums)((Wrapped)sums + low + (Wrapped)(inputs >> 16) * (Wrapped)(weights >> 16));
#endif
}

constexpr int words_ahead = 16;  // of use, that weights are prefetched

/// m[tile][channel] = the products of Count tiles and one block, of one point. `line`: words from one block of words of
/// V to the next. It prefetches the V of as many tiles as come next.
template <int Count>
void multiply_tiles(int64_t blocks, int64_t line, const int32_t* v, const int16_t* u, int32_t* m) {
  using W = Int8Winograd;
  Sums acc[Count][Int8::vectors];
#pragma GCC unroll 16
  for (int p = 0; p < Count; ++p) acc[p][0] = acc[p][1] = Sums{};
  for (int64_t block = 0; block < blocks; ++block, v += line) {
    for (int64_t i = 0; i < Int8::lanes; ++i, u += W::word_weights) {
      __builtin_prefetch(v + (Count + i) * Int8::lanes);
      __builtin_prefetch(u + words_ahead * W::word_weights);
      __builtin_prefetch(u + words_ahead * W::word_weights + W::channels);
      const Sums first = load_words(u), second = load_words(u + W::channels);
#pragma GCC unroll 16
      for (int p = 0; p < Count; ++p) {
        const Sums value = v[p * Int8::lanes + i] + Sums{};
        acc[p][0] = add_pairs(acc[p][0], value, first);
        acc[p][1] = add_pairs(acc[p][1], value, second);
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < Count; ++p) {
    store_sums(m + p * Int8::channels, acc[p][0]);
    store_sums(m + p * Int8::channels + Int8::lanes, acc[p][1]);
  }
}

using MultiplyTiles = void (*)(int64_t blocks, int64_t line, const int32_t* v, const int16_t* u, int32_t* m);

template <int Most = Int8::pixels>
MultiplyTiles multiply_tiles_of(int64_t count) {
  if constexpr (Most > 1) {
    if (count < Most) return multiply_tiles_of<Most - 1>(count);
  }
  return multiply_tiles<Most>;
}

/// The outputs of one block of tiles [begin, end), from their products.
template <bool Pool>
void transform_sums(const Int8WinogradArgs& a, int64_t begin, int64_t end, int64_t block, const int32_t* products) {
  using W = Int8Winograd;
  constexpr int window = Pool ? 2 : 1, outputs = W::m / window;
  const int64_t plane = int8_winograd_plane((end - begin) * Int8::channels, Int8::lanes);
  for (int64_t tile = begin; tile < end; ++tile) {
    const TilePlace place = TilePlace::of<W::m>(a.grid, tile);
    const Patch<outputs, window> patch(a.grid, {a.images, a.out.h, a.out.w, a.out.c}, place.n, place.y / window,
                                       place.x / window);
    for (int i = 0; i < outputs; ++i) {
      for (int j = 0; j < outputs; ++j) {
        const int64_t at = patch.at(i, j) * a.out.c + block * Int8::channels;
        if (patch.at(i, j) >= 0) __builtin_prefetch((const char*)a.out.y + (a.out.inverse == 0 ? 4 * at : at), 1);
      }
    }
    for (int64_t v = 0; v < Int8::vectors; ++v) {
      const int64_t c = block * Int8::channels + v * Int8::lanes;
      if (c >= a.out.c) break;
      const int32_t* from = products + (tile - begin) * Int8::channels + v * Int8::lanes;
      const Vec<float>::Value unit = Vec<float>::load(a.unit + c), bias = Vec<float>::load(a.bias + c);
      const int64_t count = min(a.out.c - c, Int8::lanes);
      Wrapped half[W::m][W::n], column[W::n], line[W::m], y[W::m][W::m];
      for (int j = 0; j < W::n; ++j) {
#pragma GCC unroll 6
        for (int i = 0; i < W::n; ++i) {
          const int32_t* at = from + (i * W::n + j) * plane;
          column[i] = (Wrapped)load_sums(at);
          __builtin_prefetch(at + Int8::channels);  // the next tile's
        }
        W::output(column, line);
#pragma GCC unroll 4
        for (int i = 0; i < W::m; ++i) half[i][j] = line[i];
      }
      for (int i = 0; i < W::m; ++i) W::output(half[i], y[i]);
      for (int i = 0; i < outputs; ++i) {
        for (int j = 0; j < outputs; ++j) {
          const int64_t pixel = patch.at(i, j);
          if (pixel < 0) continue;
          Sums sum = W::sum(y[i * window][j * window]);
          if constexpr (Pool) {
            sum = larger(larger(sum, W::sum(y[2 * i][2 * j + 1])),
                         larger(W::sum(y[2 * i + 1][2 * j]), W::sum(y[2 * i + 1][2 * j + 1])));
          }
          store_values(a.out, pixel * a.out.c + c, count, sum, unit, bias);
        }
      }
    }
  }
}

/// The outputs of one block of tiles [begin, end); `v` is of `tiles` tiles, the first of which is number `first`.
void winograd_outputs(const Int8WinogradArgs& a, const int32_t* v, int64_t first, int64_t tiles, int64_t begin,
                      int64_t end, const int16_t* u, int64_t block, int32_t* products) {
  using W = Int8Winograd;
  const int64_t blocks = word_blocks(a.cin), count = end - begin;
  const int64_t v_plane = int8_winograd_plane(blocks * tiles * Int8::lanes, Int8::lanes);
  const int64_t plane = int8_winograd_plane(count * Int8::channels, Int8::lanes);
  const int64_t parts = (count + Int8::pixels - 1) / Int8::pixels;
  for (int point = 0; point < W::points; ++point) {
    for (int64_t part = 0; part < parts; ++part) {  // of about as many tiles each
      const int64_t from = count * part / parts, to = count * (part + 1) / parts;
      multiply_tiles_of(to - from)(
          blocks, tiles * Int8::lanes, v + point * v_plane + (begin - first + from) * Int8::lanes,
          u + point * u_plane(blocks * Int8::lanes), products + point * plane + from * Int8::channels);
    }
  }
  a.out.pool ? transform_sums<true>(a, begin, end, block, products)
             : transform_sums<false>(a, begin, end, block, products);
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
