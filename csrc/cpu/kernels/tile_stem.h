// The first layer on tiles: 3x3 (pad 1) over up to 3 channels, of bfloat16 with sums in float.
//
// A line of an output row holds, for each of its pixels and for one at either end, the 9 values of that column of the
// window and two zeros. So the 32 values from a pixel's left neighbour on are the pixel's window, 27 values, and zeros
// alone: no value of another window, which could be NaN, meets a weight of 0. A tile of A is 16 pixels of a line, 22
// bytes apart, and one product sums whole windows. What is stored, and how, is as in tile_conv.h.
#pragma once

#include "cpu/kernels/tile_conv.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

constexpr int64_t stem_channels = 3, stem_column = 11;  // values

/// The line of output row `y`; rows outside the image are zeros.
inline void pack_line(const ConvInput<Bf16>& in, int64_t n, int64_t y, Bf16* line, int64_t values) {
  const Extent& e = in.extent;
  for (int64_t i = 0; i < values; ++i) line[i].bits = 0;
  for (int64_t r = 0; r < 3; ++r) {
    const int64_t from_y = y + r - 1;
    if (from_y < 0 || from_y >= e.h) continue;
    const Bf16* from = in.data + (n * e.h + from_y) * e.w * e.c;
    Bf16* to = line + stem_column + r * stem_channels;
    for (int64_t x = 0; x < e.w; ++x, from += e.c, to += stem_column) {
      if (e.c == stem_channels) {
        __builtin_memcpy(to, from, stem_channels * sizeof(Bf16));
      } else {
        for (int64_t c = 0; c < e.c; ++c) to[c] = from[c];
      }
    }
  }
}

template <class Tiles, bool pool>
void stem_of(const ConvInput<Bf16>& in, const TileConvArgs<Bf16>& a, int64_t n, int64_t row_begin, int64_t row_end,
             Bf16* lines, int64_t line_values) {
  constexpr int64_t step_bytes = stem_column * sizeof(Bf16), half_tap = tile_bytes / sizeof(Bf16);
  const int64_t blocks = (a.out.c + block_channels - 1) / block_channels;
  alignas(64) TileSums<float> sums;
  Tiles tiles;
  for (int64_t row = row_begin; row < row_end; row += 2) {
    const int64_t rows = pool ? 1 : min<int64_t>(2, row_end - row);
    pack_line(in, n, row, lines, line_values);
    pack_line(in, n, row + 1, lines + line_values, line_values);
    for (int64_t x = 0; x < (pool ? 2 * a.out.w : a.w); x += tile_pixels) {
      tiles.template load<4>(lines + x * stem_column, step_bytes);
      tiles.template load<5>(lines + line_values + x * stem_column, step_bytes);
      for (int64_t block = 0; block < blocks; ++block) {
        const Bf16* packed = a.packed + block * 2 * half_tap;
        zero_sums(tiles);
        tiles.template load<6>(packed, tile_row_bytes);
        tiles.template load<7>(packed + half_tap, tile_row_bytes);
        tiles.template dot_bf16<0, 4, 6>();
        tiles.template dot_bf16<1, 4, 7>();
        tiles.template dot_bf16<2, 5, 6>();
        tiles.template dot_bf16<3, 5, 7>();
        store_sums(tiles, sums);
        store_outputs<pool>(a, {n, row, rows, x, block}, sums);
      }
    }
    for (int64_t block = 0; a.y.data && block < blocks; ++block) store_ring(a, n, block, pool ? row / 2 : row, rows);
  }
}

template <class Tiles>
void stem_tiles(const ConvInput<Bf16>& in, const TileConvArgs<Bf16>& a, int64_t n, int64_t row_begin, int64_t row_end,
                Bf16* lines, int64_t line_values) {
  (a.out.pool ? stem_of<Tiles, true> : stem_of<Tiles, false>)(in, a, n, row_begin, row_end, lines, line_values);
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
