// What direct convolutions on tiles share, 3x3 (pad 1) and 1x1, whatever their values are: the sums, and the ring of
// the map in blocks that is written.
//
// The sums of 2 rows x 16 pixels x 32 output channels, a register block, are four tiles. Each tap of a block of input
// channels, 64 bytes, is two tiles of pixels, two of weights and four products. The order of the sums is that of the
// blocks of input channels, then of the taps, whatever the tasks are. The tiles are stored to 4 KB of scratch, where
// the epilogue reads them. Pixels past the right edge and rows past the lower one are computed and left out. A task's
// weights (cpu/algorithms/tiles.cpp) are meant to stay in L2, and 4 rows of its input too.
//
// Of maps in pieces a sum has the products of those pieces of x and of the weights whose numbers, from 0 on, add up to
// less than `pieces`: of 2 pieces three products, of 3 six. The smallest come first, as sums over all channels of their
// own, so that only those of the first pieces are rounded as a sum of whole products is.
#pragma once

#include "cpu/isa/tiles.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

constexpr int64_t block_channels = block_outputs, half_channels = 16;  // of a register block, and of its tiles
constexpr int64_t pixel_bytes = tile_row_bytes;                        // of a block of a map

template <class Sum>
using TileSums = Sum[2][tile_pixels][block_channels];

/// The register block of block `block` of the output channels whose first pixel is (y, x), and how many of its rows
/// are stored.
struct TilePlace {
  int64_t n, y, rows, x, block;
};

template <class T>
void zero_pixels(T* to, int64_t pixels) {
  __builtin_memset(to, 0, (size_t)(pixels * pixel_bytes));
}

template <class Tiles>
inline __attribute__((always_inline)) void zero_sums(Tiles& tiles) {
  tiles.template zero<0>();
  tiles.template zero<1>();
  tiles.template zero<2>();
  tiles.template zero<3>();
}

template <class Tiles, class Sum>
inline __attribute__((always_inline)) void store_sums(Tiles& tiles, TileSums<Sum>& sums) {
  constexpr int64_t bytes = block_channels * sizeof(Sum);
  tiles.template store<0>(sums[0][0], bytes);
  tiles.template store<1>(sums[0][0] + half_channels, bytes);
  tiles.template store<2>(sums[1][0], bytes);
  tiles.template store<3>(sums[1][0] + half_channels, bytes);
}

/// The product of the values that T names: Bf16, or uint8_t by int8_t.
template <class T, int C, int A, int B, class Tiles>
inline __attribute__((always_inline)) void dot(Tiles& tiles) {
  if constexpr (sizeof(T) == 1) {
    tiles.template dot_u8s8<C, A, B>();
  } else {
    tiles.template dot_bf16<C, A, B>();
  }
}

/// Adds the products of one piece of a register block's inputs, from the first of them on, and of one of its weights.
template <class Tiles, int kernel, class T, class Weight>
inline __attribute__((always_inline)) void sum_taps(Tiles& tiles, const BlockedMap<T>& x, const T* in,
                                                    const Weight* packed) {
  constexpr int64_t half_tap = tile_bytes / sizeof(Weight);
  const int64_t blocks = x.blocks, row = x.row, plane = x.plane;
  for (int64_t block = 0; block < blocks; ++block, in += plane) {
#pragma GCC unroll 9
    for (int tap = 0; tap < kernel * kernel; ++tap, packed += 2 * half_tap) {
      const T* pixels = in + tap / kernel * row + tap % kernel * BlockedMap<T>::channels;
      tiles.template load<4>(pixels, pixel_bytes);
      tiles.template load<6>(packed, tile_row_bytes);
      dot<T, 0, 4, 6>(tiles);
      tiles.template load<7>(packed + half_tap, tile_row_bytes);
      dot<T, 1, 4, 7>(tiles);
      tiles.template load<5>(pixels + row, pixel_bytes);
      dot<T, 2, 5, 6>(tiles);
      dot<T, 3, 5, 7>(tiles);
      if (tap % 5 == 4 || tap + 1 == kernel * kernel) tiles.keep_awake();
    }
  }
}

/// The sums of one register block, from the first of its inputs and weights on; a piece of these has `packed_piece`.
template <class Tiles, int kernel, class T, class Weight, class Sum>
inline __attribute__((always_inline)) void sum_pieces(Tiles& tiles, const BlockedMap<T>& x, const T* in,
                                                      const Weight* packed, int64_t packed_piece, TileSums<Sum>& sums) {
  zero_sums(tiles);
  for (int64_t both = x.pieces - 1; both >= 0; --both) {
    for (int64_t piece = 0; piece <= both; ++piece) {
      sum_taps<Tiles, kernel>(tiles, x, in + piece * x.blocks * x.plane, packed + (both - piece) * packed_piece);
    }
  }
  store_sums(tiles, sums);
}

/// Calls store(row of the register block, pixel of its output row) for each output that lies in the image.
template <bool pool, class Args, class Store>
inline __attribute__((always_inline)) void for_outputs(const Args& a, const TilePlace& at, Store store) {
  constexpr int64_t step = pool ? 2 : 1;
  const int64_t pixels = min(tile_pixels / step, a.out.w - at.x / step);
  for (int64_t row = 0; row < at.rows; ++row) {
    for (int64_t i = 0; i < pixels; ++i) store(row, i);
  }
}

/// The first value that a register block writes to a.y, of the channels from `channel` on.
template <bool pool, class Args>
auto first_output(const Args& a, const TilePlace& at, int64_t channel) {
  constexpr int64_t step = pool ? 2 : 1, channels = decltype(a.y)::channels;
  return a.y.data + at.n * a.y.image + channel / channels * a.y.plane + (at.y / step - a.y_top + 1) * a.y.row +
         (at.x / step + 1) * channels + channel % channels;
}

/// The ring around rows [row, row + rows) of block `block` of the output channels, with the first that shares it.
template <class Args>
void store_ring(const Args& a, int64_t n, int64_t block, int64_t row, int64_t rows) {
  constexpr int64_t channels = decltype(a.y)::channels;
  if (block * block_channels % channels != 0) return;
  auto* line = a.y.data + n * a.y.image + block * block_channels / channels * a.y.plane + (row - a.y_top + 1) * a.y.row;
  if (row == 0) zero_pixels(line - a.y.row, a.out.w + 2);
  for (int64_t r = 0; r < rows; ++r, line += a.y.row) {
    zero_pixels(line, 1);
    zero_pixels(line + (a.out.w + 1) * channels, 1);
  }
  if (row + rows == a.out.h) zero_pixels(line, a.out.w + 2);
}

/// Pairs of rows and blocks of output channels of image n: hands each register block to store(place, sums), and writes
/// the ring of a.y where that has data.
template <class Tiles, int kernel, bool pool, class Sum, class Args, class Store>
inline __attribute__((always_inline)) void for_register_blocks(const Args& a, int64_t n, int64_t pair_begin,
                                                               int64_t pair_end, int64_t block_begin, int64_t block_end,
                                                               Store store) {
  constexpr int64_t taps = kernel * kernel, ring = kernel == 1 ? 1 : 0, channels = decltype(a.x)::channels;
  const int64_t packed_piece = a.x.blocks * taps * channels * block_channels;
  alignas(64) TileSums<Sum> sums;
  Tiles tiles;
  for (int64_t pair = pair_begin; pair < pair_end; ++pair) {
    const int64_t y = 2 * pair, rows = pool ? 1 : min<int64_t>(2, a.h - y);
    for (int64_t block = block_begin; block < block_end; ++block) {
      const auto* packed = a.packed + block * a.x.pieces * packed_piece;
      const auto* row = a.x.data + n * a.x.image + (y - a.x_top + ring) * a.x.row + ring * channels;
      for (int64_t x = 0; x < (pool ? 2 * a.out.w : a.w); x += tile_pixels) {
        sum_pieces<Tiles, kernel>(tiles, a.x, row + x * channels, packed, packed_piece, sums);
        store(TilePlace{n, y, rows, x, block}, sums);
      }
      if (a.y.data) store_ring(a, n, block, pool ? pair : y, rows);
    }
  }
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
