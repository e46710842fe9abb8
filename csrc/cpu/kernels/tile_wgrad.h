// Weight gradients on tiles, 3x3 (pad 1) or 1x1, of bfloat16 with sums in float; and the operands that they read
// (WgradStrips, cpu/tile_kernels.h).
//
// wgrad          The sums of 32 output x 32 input channels at one tap are four tiles, loaded from memory and stored
//                there after all pixels of some strips: for 32 pixels, two tiles of gy, two of x and four products. The
//                order of the sums is that of the pixels, whatever the tasks are.
// wgrad_gy       Puts gy into tiles of 16 channels x 32 pixels, through the mask where there is one, and sums it.
// wgrad_x        Interleaves pairs of pixels of x. The taps to the left and right read pairs that begin at odd columns,
//                the middle one such as begin at even columns: every tile of every tap is 1 KB of whole lines.
// wgrad_special  The zeros that fill up an operand meet values of the other, and must make no NaN of those that are not
//                finite. So operands have zeros in their place, and this adds their products, one by one.
// Cache          Each tap reads the pixels of 32 output and 32 input channels again, which are meant to stay in L2.
#pragma once

#include "cpu/kernels/tile_conv.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

constexpr int64_t square = 16;  // lanes of a vector

inline Vf::Mask not_finite(Vf::Value v) { return ((Vf::Mask)v & 0x7f800000) == 0x7f800000; }
inline bool any(Vf::Mask m) { return Vf::bits(m) != 0; }

/// Channels [c, c + 16) of pixel (y, x); 0 for a column, or channels, outside the map.
inline Vf::Value read_or_zero(const ConvInput<Bf16>& in, int64_t n, int64_t y, int64_t x, int64_t c) {
  return x >= 0 && x < in.extent.w && c < in.extent.c ? read_pixel(in, n, y, x, c) : Vf::zero();
}

/// v, or 0 where it is not finite, which `found` gathers.
inline Vf::Value finite(Vf::Value v, Vf::Mask& found) {
  const Vf::Mask special = not_finite(v);
  found |= special;
  return Vf::select(special, Vf::zero(), v);
}

/// Two pixels in bfloat16, side by side for each channel.
inline Vf::Mask pair_of(Vf::Value first, Vf::Value second) {
  return ((Vf::Mask)first >> 16 & 0xffff) | (Vf::Mask)second;
}

/// Swaps two blocks of `step` x `step`, those beside the diagonal, in each diagonal block of twice that size.
template <int step>
inline __attribute__((always_inline)) void swap_blocks(Vf::Mask (&rows)[square]) {
  Vf::Mask upper, lower;
  for (int lane = 0; lane < square; ++lane) {
    upper[lane] = lane & step ? square + lane - step : lane;
    lower[lane] = lane & step ? square + lane : lane + step;
  }
#pragma GCC unroll 16
  for (int i = 0; i < square; ++i) {
    if (i & step) continue;
    const Vf::Mask a = rows[i], b = rows[i + step];
    rows[i] = __builtin_shuffle(a, b, upper);
    rows[i + step] = __builtin_shuffle(a, b, lower);
  }
}

inline void transpose(Vf::Mask (&rows)[square]) {
  swap_blocks<1>(rows);
  swap_blocks<2>(rows);
  swap_blocks<4>(rows);
  swap_blocks<8>(rows);
}

inline bool wgrad_gy(const ConvInput<Bf16>& gy, const WgradStrips& s, int64_t first, int64_t rows, int64_t block_begin,
                     int64_t block_end, Bf16* to, float* bias) {
  Vf::Mask found{};
  for (int64_t block = block_begin; block < block_end; ++block) {
    const int64_t c = block * square;
    Vf::Value sum = Vf::zero();
    int64_t n = first / gy.extent.h, y = first % gy.extent.h, row = 0, x = 0;
    for (int64_t product = 0; product < s.products; ++product) {
      Vf::Mask pairs[square] = {};
      for (int64_t i = 0; i < square && row < rows; ++i) {
        const Vf::Value even = read_or_zero(gy, n, y, x, c), odd = read_or_zero(gy, n, y, x + 1, c);
        sum += even + odd;
        pairs[i] = pair_of(finite(even, found), finite(odd, found));
        if ((x += 2) < s.pitch) continue;
        x = 0;
        ++row;
        if (++y == gy.extent.h) y = 0, ++n;
      }
      transpose(pairs);
      __builtin_memcpy(to + block * s.gy_block + product * operand_tile, pairs, sizeof pairs);
    }
    Vf::store(bias + c, sum);
  }
  return any(found);
}

inline bool wgrad_x(const ConvInput<Bf16>& x, const WgradStrips& s, int64_t first, int64_t rows, int64_t block_begin,
                    int64_t block_end, Bf16* to) {
  constexpr int64_t pair_values = 2 * square;
  const int64_t ring = s.kernel / 2, h = x.extent.h;
  Vf::Mask found{};
  for (int64_t block = block_begin; block < block_end; ++block) {
    Bf16 *even_first = to + s.x + block * s.x_block, *end = even_first + s.x_copy;
    for (int64_t row = first - ring; row < first + rows + ring; ++row) {
      const int64_t n = row / h, y = row % h;
      const bool inside = ring == 0 || (row >= 0 && n == first / h);
      Vf::Value before = Vf::zero();
      for (int64_t i = 0; i < s.pitch; i += 2, even_first += pair_values) {
        Vf::Value even = Vf::zero(), odd = Vf::zero();
        if (inside) {
          even = finite(read_or_zero(x, n, y, i, block * square), found);
          odd = finite(read_or_zero(x, n, y, i + 1, block * square), found);
        }
        const Vf::Mask pair = pair_of(even, odd), odd_first = pair_of(before, even);
        __builtin_memcpy(even_first, &pair, sizeof pair);
        if (ring) __builtin_memcpy(even_first + s.x_copy, &odd_first, sizeof odd_first);
        before = odd;
      }
    }
    const size_t rest = (size_t)(end - even_first) * sizeof(Bf16);
    __builtin_memset(even_first, 0, rest);
    if (ring) __builtin_memset(even_first + s.x_copy, 0, rest);
  }
  return any(found);
}

/// The sums of two output blocks and `inputs`, 1 or 2, input blocks.
template <class Tiles, int inputs>
inline __attribute__((always_inline)) void load_blocks(Tiles& tiles, const float* sums) {
  tiles.template load<0>(sums, tile_row_bytes);
  tiles.template load<2>(sums + 2 * sums_tile, tile_row_bytes);
  if constexpr (inputs > 1) {
    tiles.template load<1>(sums + sums_tile, tile_row_bytes);
    tiles.template load<3>(sums + 3 * sums_tile, tile_row_bytes);
  }
}

template <class Tiles, int inputs>
inline __attribute__((always_inline)) void store_blocks(Tiles& tiles, float* sums) {
  tiles.template store<0>(sums, tile_row_bytes);
  tiles.template store<2>(sums + 2 * sums_tile, tile_row_bytes);
  if constexpr (inputs > 1) {
    tiles.template store<1>(sums + sums_tile, tile_row_bytes);
    tiles.template store<3>(sums + 3 * sums_tile, tile_row_bytes);
  }
}

/// One strip's pixels for one tap, from the first of its operands on.
template <class Tiles, int inputs>
inline __attribute__((always_inline)) void sum_pixels(Tiles& tiles, const WgradStrips& s, const Bf16* gy,
                                                      const Bf16* x) {
  for (int64_t product = 0; product < s.products; ++product, gy += operand_tile, x += operand_tile) {
    tiles.template load<4>(gy, tile_row_bytes);
    tiles.template load<6>(x, tile_row_bytes);
    tiles.template dot_bf16<0, 4, 6>();
    if constexpr (inputs > 1) {
      tiles.template load<7>(x + s.x_block, tile_row_bytes);
      tiles.template dot_bf16<1, 4, 7>();
    }
    tiles.template load<5>(gy + s.gy_block, tile_row_bytes);
    tiles.template dot_bf16<2, 5, 6>();
    if constexpr (inputs > 1) tiles.template dot_bf16<3, 5, 7>();
    tiles.keep_awake();
  }
}

/// Of two blocks of output channels and `inputs` of input channels.
template <class Tiles, int inputs>
void wgrad_of(const WgradStrips& s, const Bf16* strips, int64_t count, int64_t cout_pair, int64_t cin_pair, bool add,
              float* sums) {
  Tiles tiles;
  for (int64_t tap = 0; tap < s.kernel * s.kernel; ++tap, sums += sums_tap) {
    const int64_t row = tap / s.kernel, column = tap % s.kernel;
    const int64_t copy = s.kernel == 3 && column != 1, pair = row * s.pitch / 2 + column / 2;
    const Bf16* gy = strips + 2 * cout_pair * s.gy_block;
    const Bf16* x = strips + s.x + 2 * cin_pair * s.x_block + copy * s.x_copy + pair * 2 * square;
    if (add) {
      load_blocks<Tiles, inputs>(tiles, sums);
    } else {
      zero_sums(tiles);
    }
    for (int64_t strip = 0; strip < count; ++strip, gy += s.strip, x += s.strip) {
      sum_pixels<Tiles, inputs>(tiles, s, gy, x);
    }
    store_blocks<Tiles, inputs>(tiles, sums);
  }
}

template <class Tiles>
void wgrad_tiles(const WgradStrips& s, const Bf16* strips, int64_t count, int64_t cout_pair, int64_t cin_pair, bool add,
                 float* sums) {
  const auto wgrad = 2 * cin_pair + 1 < s.cin_blocks ? wgrad_of<Tiles, 2> : wgrad_of<Tiles, 1>;
  wgrad(s, strips, count, cout_pair, cin_pair, add, sums);
}

/// Adds gy's values of 16 couts times x's of 16 cins where either is not finite.
inline void add_special(Vf::Value gy, Vf::Value x, float* sums) {
  if (!any(not_finite(gy)) && !any(not_finite(x))) return;
  for (int64_t out = 0; out < square; ++out, sums += square) {
    const Vf::Value g = Vf::set1(gy[out]);
    Vf::store(sums, Vf::load(sums) + Vf::select(not_finite(g) | not_finite(x), g * x, Vf::zero()));
  }
}

inline void wgrad_special(const ConvInput<Bf16>& x, const ConvInput<Bf16>& gy, int64_t kernel, int64_t first,
                          int64_t rows, int64_t cout_pair, int64_t cin_pair, float* sums) {
  const Extent& e = x.extent;
  for (int64_t at = first * e.w; at < (first + rows) * e.w; ++at) {
    const int64_t n = at / (e.h * e.w), y = at / e.w % e.h, column = at % e.w;
    for (int64_t tap = 0; tap < kernel * kernel; ++tap) {
      const int64_t from_y = y + tap / kernel - kernel / 2, from_x = column + tap % kernel - kernel / 2;
      if (from_y < 0 || from_y >= e.h || from_x < 0 || from_x >= e.w) continue;
      for (int64_t block = 0; block < 4; ++block) {
        const int64_t out = (2 * cout_pair + block / 2) * square, in = (2 * cin_pair + block % 2) * square;
        add_special(read_or_zero(gy, n, y, column, out), read_or_zero(x, n, from_y, from_x, in),
                    sums + tap * sums_tap + block * sums_tile);
      }
    }
  }
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
