// Convolution, stride 1, kernel 3 (pad 1) or 1, and linear layers on tiles, of u8 activations by s8 weights.
//
// conv    Register blocks as in tile_sums.h, of maps in blocks of 64 channels.
// linear  The sums of 16 rows x 64 outputs are four tiles. Where there are more rows, the weights are taken a part at a
//         time, which stays in L2 for the rows to come, and the sums wait in memory: whatever their number, a block's
//         weights are read once for int8_linear_rows rows, as one stream. One row alone is multiplied by vectors.
#pragma once

#include "cpu/kernels/int8_sums.h"
#include "cpu/kernels/tile_sums.h"
#include "cpu/tile_int8_kernels.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

constexpr int64_t quarter = tile_int8_outputs / 4;  // of a block's outputs: of a tile
constexpr int64_t linear_part = 16;                 // steps, whose weights are 64 KB
static_assert(int8_linear_rows % tile_rows == 0 && Vec<float>::lanes == half_channels);

/// Stores a register block. With a pool each output is the largest of 2 x 2 sums: units are positive, so that the order
/// of the sums is that of the values.
template <bool pool>
void store_outputs(const TileInt8ConvArgs& a, const TilePlace& at, const TileSums<int32_t>& sums) {
  using V = Vec<float>;
  constexpr int64_t step = pool ? 2 : 1;
  const Int8Output& out = a.out;
  const int64_t first_pixel = (at.n * out.h + at.y / step) * out.w + at.x / step;
  const int64_t pixel_step = out.blocked ? a.y.channels : out.c, row_step = out.blocked ? a.y.row : out.w * out.c;
  for (int64_t half = 0; half < block_channels; half += half_channels) {
    const int64_t c = at.block * block_channels + half;
    if (c >= out.c) return;
    const int64_t count = out.blocked ? half_channels : min(out.c - c, half_channels);
    const int64_t first = out.blocked ? first_output<pool>(a, at, c) - a.y.data : first_pixel * out.c + c;
    const V::Value unit = V::load(a.unit + c), bias = V::load(a.bias + c);
    for_outputs<pool>(a, at, [&](int64_t row, int64_t i) {
      Sums sum = load_sums(sums[row][step * i] + half);
      if constexpr (pool) {
        sum = larger(larger(sum, load_sums(sums[0][2 * i + 1] + half)),
                     larger(load_sums(sums[1][2 * i] + half), load_sums(sums[1][2 * i + 1] + half)));
      }
      store_values(out, first + row * row_step + i * pixel_step, count, sum, unit, bias);
    });
  }
}

template <class Tiles, int kernel, bool pool>
void int8_conv_of(const TileInt8ConvArgs& a, int64_t n, int64_t pair_begin, int64_t pair_end, int64_t block_begin,
                  int64_t block_end) {
  for_register_blocks<Tiles, kernel, pool, int32_t>(
      a, n, pair_begin, pair_end, block_begin, block_end,
      [&](const TilePlace& at, const TileSums<int32_t>& sums) { store_outputs<pool>(a, at, sums); });
}

template <class Tiles>
void int8_conv(const TileInt8ConvArgs& a, int64_t n, int64_t pair_begin, int64_t pair_end, int64_t block_begin,
               int64_t block_end) {
  const auto conv = a.kernel == 1 ? a.out.pool ? int8_conv_of<Tiles, 1, true> : int8_conv_of<Tiles, 1, false>
                    : a.out.pool  ? int8_conv_of<Tiles, 3, true>
                                  : int8_conv_of<Tiles, 3, false>;
  conv(a, n, pair_begin, pair_end, block_begin, block_end);
}

/// sums[row][output] (+)= the products of 16 rows and a block.
template <class Tiles>
void multiply_rows(Tiles& tiles, const uint8_t* x, const int8_t* weights, int64_t steps, bool add, int32_t* sums) {
  constexpr int64_t row_bytes = tile_int8_outputs * sizeof(int32_t);
  if (add) {
    tiles.template load<0>(sums, row_bytes);
    tiles.template load<1>(sums + quarter, row_bytes);
    tiles.template load<2>(sums + 2 * quarter, row_bytes);
    tiles.template load<3>(sums + 3 * quarter, row_bytes);
  } else {
    zero_sums(tiles);
  }
  for (; steps > 0; --steps, x += tile_bytes, weights += 4 * tile_bytes) {
    tiles.template load<4>(x, tile_row_bytes);
    tiles.template load<6>(weights, tile_row_bytes);
    tiles.template dot_u8s8<0, 4, 6>();
    tiles.template load<7>(weights + tile_bytes, tile_row_bytes);
    tiles.template dot_u8s8<1, 4, 7>();
    tiles.template load<6>(weights + 2 * tile_bytes, tile_row_bytes);
    tiles.template dot_u8s8<2, 4, 6>();
    tiles.template load<7>(weights + 3 * tile_bytes, tile_row_bytes);
    tiles.template dot_u8s8<3, 4, 7>();
    tiles.keep_awake();
  }
  tiles.template store<0>(sums, row_bytes);
  tiles.template store<1>(sums + quarter, row_bytes);
  tiles.template store<2>(sums + 2 * quarter, row_bytes);
  tiles.template store<3>(sums + 3 * quarter, row_bytes);
}

/// The same of one row alone, by vectors: a tile would be nearly empty.
inline void multiply_row(const uint8_t* x, const int8_t* weights, int64_t steps, int32_t* sums) {
  Sums acc[4] = {};
  for (; steps > 0; --steps, weights += 4 * tile_bytes) {
    for (int64_t word = 0; word < tile_rows; ++word, x += sizeof(int32_t)) {
      int32_t inputs;
      __builtin_memcpy(&inputs, x, sizeof inputs);
      const Sums value = inputs + Sums{};
#pragma GCC unroll 4
      for (int64_t i = 0; i < 4; ++i) {
        acc[i] = add_products(acc[i], value, load_weights(weights + i * tile_bytes + word * tile_row_bytes));
      }
    }
  }
  __builtin_memcpy(sums, acc, sizeof acc);
}

/// Stores rows [first, first + rows) of a block.
inline void store_rows(const TileInt8LinearArgs& a, int64_t first, int64_t rows, int64_t block, const int32_t* sums) {
  using V = Vec<float>;
  for (int64_t part = 0; part < tile_int8_outputs; part += quarter) {
    const int64_t c = block * tile_int8_outputs + part;
    if (c >= a.out.c) return;
    const V::Value unit = V::load(a.unit + c), bias = V::load(a.bias + c);
    for (int64_t row = 0; row < rows; ++row) {
      store_values(a.out, (first + row) * a.out.c + c, min(a.out.c - c, quarter),
                   load_sums(sums + row * tile_int8_outputs + part), unit, bias);
    }
  }
}

template <class Tiles>
void int8_linear(const TileInt8LinearArgs& a, int64_t block_begin, int64_t block_end, int32_t* sums) {
  Tiles tiles;
  for (int64_t first = 0; first < a.rows; first += int8_linear_rows) {
    const int64_t rows = min(int8_linear_rows, a.rows - first), groups = (rows + tile_rows - 1) / tile_rows;
    const int64_t part = groups == 1 ? a.steps : linear_part;
    for (int64_t block = block_begin; block < block_end; ++block) {
      const int8_t* weights = a.packed + block * a.steps * 4 * tile_bytes;
      if (a.rows == 1) {
        multiply_row(a.x, weights, a.steps, sums);
      } else {
        for (int64_t step = 0; step < a.steps; step += part) {
          for (int64_t group = 0; group < groups; ++group) {
            const uint8_t* x = a.x + ((first / tile_rows + group) * a.steps + step) * tile_bytes;
            multiply_rows(tiles, x, weights + step * 4 * tile_bytes, min(part, a.steps - step), step > 0,
                          sums + group * tile_rows * tile_int8_outputs);
          }
        }
      }
      store_rows(a, first, rows, block, sums);
    }
  }
}

template <class Tiles>
constexpr TileInt8Kernels tile_int8_kernels{.conv = int8_conv<Tiles>, .linear = int8_linear<Tiles>};

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
