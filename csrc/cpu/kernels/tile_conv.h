// Direct convolution on tiles, 3x3 (pad 1) or 1x1, of bfloat16 with sums in float; and the layout that it reads.
//
// conv        The sums of 2 rows x 16 pixels x 32 output channels are four tiles. Each tap of 32 input channels is two
//             tiles of pixels, two of weights and four products. The order of the sums is that of the blocks of input
//             channels, then of the taps, whatever the tasks are. The tiles are stored to 4 KB of scratch; the epilogue
//             reads them there. Pixels past the right edge and rows past the lower one are computed and left out.
// dgrad       The same with weights that were transposed and flipped when they were packed.
// block_maps  NHWC, or what mask_scatter would make of the smaller tensor that is stored, to blocks.
// Cache       A task's weights (cpu/algorithms/tiles.cpp) are meant to stay in L2, 4 rows of its input too.
#pragma once

#include "cpu/isa/tiles.h"
#include "cpu/kernels/masked.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

constexpr int64_t block_channels = 32, tile_pixels = 16, half_channels = 16;
constexpr int64_t packed_tap = block_channels * block_channels;  // values

using TileSums = float[2][tile_pixels][block_channels];

/// Stores a pixel of a blocked map from its two vectors of channels. Denormal values become zeros, as by
/// vcvtne2ps2bf16.
inline __attribute__((always_inline)) void store_pixel(Bf16* to, Vf::Value first, Vf::Value second) {
#if defined(__AVX512BF16__)
  const __m512bh both = _mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  __builtin_memcpy(to, &both, sizeof both);
#else
  const Vf::Value both[] = {first, second};
  for (int half = 0; half < 2; ++half) {
    const Vf::Value v = both[half], sign = (Vf::Value)((Vf::Mask)v & ~0x7fffffff);
    const Vf::Value size = (Vf::Value)((Vf::Mask)v & 0x7fffffff);
    Vf::store(to + half * half_channels, Vf::select(size < __FLT_MIN__, sign, v));
  }
#endif
}

inline void zero_pixels(Bf16* to, int64_t pixels) {
  for (int64_t i = 0; i < pixels; ++i) store_pixel(to + i * block_channels, Vf::zero(), Vf::zero());
}

/// Channels [c, c + 16) of pixel (y, x) of the map that `in` stands for.
inline Vf::Value read_pixel(const ConvInput<Bf16>& in, int64_t n, int64_t y, int64_t x, int64_t c) {
  const Extent& e = in.extent;
  const int64_t pixel = (n * e.h + y) * e.w + x, count = e.c - c;
  if (in.mask) return in.pool ? read_unpooled(in, n, y, x, c, count) : read_rectified(in, pixel, c, count);
  const Bf16* p = in.data + pixel * e.c + c;
  return count >= Vf::lanes ? Vf::load(p) : Vf::load(p, count);
}

inline void block_maps(const ConvInput<Bf16>& in, const BlockedMap& to, int64_t row_begin, int64_t row_end) {
  const Extent& e = in.extent;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t n = row / (e.h + 2), y = row % (e.h + 2) - 1;
    for (int64_t block = 0; block < to.blocks; ++block) {
      Bf16* out = to.data + n * to.image + block * to.plane + (y + 1) * to.row;
      if (y < 0 || y == e.h) {
        zero_pixels(out, e.w + 2);
        continue;
      }
      zero_pixels(out, 1);
      for (int64_t x = 0; x < e.w; ++x) {
        const int64_t c = block * block_channels;
        const Vf::Value first = read_pixel(in, n, y, x, c);
        out += block_channels;
        store_pixel(out, first, c + half_channels < e.c ? read_pixel(in, n, y, x, c + half_channels) : Vf::zero());
      }
      zero_pixels(out + block_channels, 1);
    }
  }
}

template <class Tiles>
inline __attribute__((always_inline)) void zero_sums(Tiles& tiles) {
  tiles.template zero<0>();
  tiles.template zero<1>();
  tiles.template zero<2>();
  tiles.template zero<3>();
}

template <class Tiles>
inline __attribute__((always_inline)) void store_sums(Tiles& tiles, TileSums& sums) {
  constexpr int64_t bytes = block_channels * sizeof(float);
  tiles.template store<0>(sums[0][0], bytes);
  tiles.template store<1>(sums[0][0] + half_channels, bytes);
  tiles.template store<2>(sums[1][0], bytes);
  tiles.template store<3>(sums[1][0] + half_channels, bytes);
}

/// The sums of one register block, from the first of its inputs and weights on.
template <class Tiles, int kernel>
inline __attribute__((always_inline)) void sum_taps(Tiles& tiles, const BlockedMap& x, const Bf16* in,
                                                    const Bf16* packed, TileSums& sums) {
  constexpr int64_t pixel_bytes = block_channels * sizeof(Bf16);
  const int64_t blocks = x.blocks, row = x.row, plane = x.plane;
  zero_sums(tiles);
  for (int64_t block = 0; block < blocks; ++block, in += plane) {
#pragma GCC unroll 9
    for (int tap = 0; tap < kernel * kernel; ++tap, packed += packed_tap) {
      const Bf16* pixels = in + tap / kernel * row + tap % kernel * block_channels;
      tiles.template load<4>(pixels, pixel_bytes);
      tiles.template load<6>(packed, tile_row_bytes);
      tiles.template dot_bf16<0, 4, 6>();
      tiles.template load<7>(packed + packed_tap / 2, tile_row_bytes);
      tiles.template dot_bf16<1, 4, 7>();
      tiles.template load<5>(pixels + row, pixel_bytes);
      tiles.template dot_bf16<2, 5, 6>();
      tiles.template dot_bf16<3, 5, 7>();
      if (tap % 5 == 4 || tap + 1 == kernel * kernel) tiles.keep_awake();
    }
  }
  store_sums(tiles, sums);
}

/// The register block of block `block` of the output channels whose first pixel is (y, x), and how many of its rows
/// are stored.
struct TilePlace {
  int64_t n, y, rows, x, block;
};

template <bool pool>
inline __attribute__((always_inline)) void load_window(const TileSums& sums, int64_t row, int64_t i, int64_t c,
                                                       Vf::Value (&window)[4]) {
  if constexpr (pool) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) window[k] = Vf::load(sums[k / 2][2 * i + k % 2] + c);
  } else {
    window[0] = Vf::load(sums[row][i] + c);
  }
}

/// Calls store(row of the register block, pixel of its output row) for each output that lies in the image.
template <bool pool, class Store>
inline __attribute__((always_inline)) void for_outputs(const TileConvArgs& a, const TilePlace& at, Store store) {
  constexpr int64_t step = pool ? 2 : 1;
  const int64_t pixels = min(tile_pixels / step, a.out.w - at.x / step);
  for (int64_t row = 0; row < at.rows; ++row) {
    for (int64_t i = 0; i < pixels; ++i) store(row, i);
  }
}

template <bool pool>
void store_nhwc(const TileConvArgs& a, const TilePlace& at, const TileSums& sums) {
  constexpr int64_t step = pool ? 2 : 1;
  for_outputs<pool>(a, at, [&](int64_t row, int64_t i) {
    const int64_t pixel = (at.n * a.out.h + at.y / step + row) * a.out.w + at.x / step + i;
    for (int64_t c = 0; c < block_channels && at.block * block_channels + c < a.out.c; c += half_channels) {
      Vf::Value window[4];
      load_window<pool>(sums, row, i, c, window);
      const int64_t channel = at.block * block_channels + c;
      store_output<pool, float>(a.out, pixel, channel, Vf::load(a.bias + channel), window);
    }
  });
}

template <bool pool>
void store_blocked(const TileConvArgs& a, const TilePlace& at, const TileSums& sums) {
  constexpr int64_t step = pool ? 2 : 1;
  const int64_t channel = at.block * block_channels, channels = a.out.c - channel;  // those past them stay 0
  Bf16* first = a.y.data + at.n * a.y.image + at.block * a.y.plane + (at.y / step - a.y_top + 1) * a.y.row +
                (at.x / step + 1) * block_channels;
  for_outputs<pool>(a, at, [&](int64_t row, int64_t i) {
    Vf::Value both[2];
    for (int half = 0; half < 2; ++half) {
      const int64_t c = half * half_channels;
      Vf::Value window[4];
      load_window<pool>(sums, row, i, c, window);
      Vf::Value best = window[0];
      for (int k = 1; pool && k < 4; ++k) best = Vf::select(replaces<float>(window[k], best), window[k], best);
      best += Vf::load(a.bias + channel + c);
      if (a.out.relu) best = Vf::select(passes<float>(best), best, Vf::zero());
      if (channels < block_channels) {
        const int64_t kept = max<int64_t>(min(channels - c, half_channels), 0);
        best = Vf::select(Vf::from_bits((1u << kept) - 1), best, Vf::zero());
      }
      both[half] = best;
    }
    store_pixel(first + row * a.y.row + i * block_channels, both[0], both[1]);
  });
}

template <bool pool>
inline __attribute__((always_inline)) void store_outputs(const TileConvArgs& a, const TilePlace& at,
                                                         const TileSums& sums) {
  a.y.data ? store_blocked<pool>(a, at, sums) : store_nhwc<pool>(a, at, sums);
}

/// The ring around rows [row, row + rows) of a block of y.
inline void store_ring(const TileConvArgs& a, int64_t n, int64_t block, int64_t row, int64_t rows) {
  Bf16* line = a.y.data + n * a.y.image + block * a.y.plane + (row - a.y_top + 1) * a.y.row;
  if (row == 0) zero_pixels(line - a.y.row, a.out.w + 2);
  for (int64_t r = 0; r < rows; ++r, line += a.y.row) {
    zero_pixels(line, 1);
    zero_pixels(line + (a.out.w + 1) * block_channels, 1);
  }
  if (row + rows == a.out.h) zero_pixels(line, a.out.w + 2);
}

template <class Tiles, int kernel, bool pool>
void conv_of(const TileConvArgs& a, int64_t n, int64_t pair_begin, int64_t pair_end, int64_t block_begin,
             int64_t block_end) {
  constexpr int64_t taps = kernel * kernel, ring = kernel == 1 ? 1 : 0;
  alignas(64) TileSums sums;
  Tiles tiles;
  for (int64_t pair = pair_begin; pair < pair_end; ++pair) {
    const int64_t y = 2 * pair, rows = pool ? 1 : min<int64_t>(2, a.h - y);
    for (int64_t block = block_begin; block < block_end; ++block) {
      const Bf16* packed = a.packed + block * a.x.blocks * taps * packed_tap;
      const Bf16* row = a.x.data + n * a.x.image + (y - a.x_top + ring) * a.x.row + ring * block_channels;
      for (int64_t x = 0; x < (pool ? 2 * a.out.w : a.w); x += tile_pixels) {
        sum_taps<Tiles, kernel>(tiles, a.x, row + x * block_channels, packed, sums);
        store_outputs<pool>(a, {n, y, rows, x, block}, sums);
      }
      if (a.y.data) store_ring(a, n, block, pool ? pair : y, rows);
    }
  }
}

template <class Tiles>
void conv_tiles(const TileConvArgs& a, int64_t n, int64_t pair_begin, int64_t pair_end, int64_t block_begin,
                int64_t block_end) {
  const auto conv = a.kernel == 1 ? a.out.pool ? conv_of<Tiles, 1, true> : conv_of<Tiles, 1, false>
                    : a.out.pool  ? conv_of<Tiles, 3, true>
                                  : conv_of<Tiles, 3, false>;
  conv(a, n, pair_begin, pair_end, block_begin, block_end);
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
