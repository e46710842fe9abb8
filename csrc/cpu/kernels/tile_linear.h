// Linear layers of bfloat16 on tiles, with sums in float. W (outputs, inputs) exceeds the caches; for up to a few
// hundred rows it is read, or its gradient written, once and as it lies.
//
// fprop  yt = W xt: rows of W are rows of tiles, and x alone is packed. A chunk of 1024 columns of W is multiplied with
//        those of all rows of x, which stay in L2 meanwhile, as do the sums of a task.
// dgrad  gx = gy W: a panel of W is made into tiles in L2. Of each two rows, pairs of the even columns are words of one
//        tile, those of the odd columns of another; so two sums, one of each, are a word of gx.
// wgrad  gW = gyt x: the same of x, made into tiles once.
// One row of x is multiplied without tiles, which would have 15 of 16 rows idle: prototypes read W at 94 % of what
// memory gives, and with tiles at 86 % (2 cores of a Xeon of the 4th generation).
//
// Each sum is that of its products of 32 terms, in their order, whatever the tasks are. That of one row alone is
// another function: it keeps denormals, which tiles take for zeros, and adds the chains of its 16 lanes at the end. The
// compiler makes fma of such a chain for amx and not for amx-emulated, which agree while products are exact and in
// range.
#pragma once

#include "cpu/isa/tiles.h"
#include "cpu/kernels/masked.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

constexpr int64_t chunk_steps = 32;  // of 32 columns of W that fprop multiplies at a time
constexpr int64_t steps_ahead = 8;   // that W is prefetched where one row is multiplied

typedef uint32_t Words __attribute__((vector_size(VGGFAST_VECTOR_BYTES)));  // pairs of bfloat16, the first one below

using BlockSums = float[2][2][tile_rows][tile_rows];

inline int64_t ceil_div(int64_t count, int64_t each) { return (count + each - 1) / each; }

inline Words load_words(const Bf16* from) {
  Words words;
  __builtin_memcpy(&words, from, sizeof words);
  return words;
}
/// Of `count` values; zeros follow them.
inline Words load_words(const Bf16* from, int64_t count) {
  if (count >= tile_terms) return load_words(from);
  Bf16 line[tile_terms] = {};
  if (count > 0) __builtin_memcpy(line, from, (size_t)count * sizeof(Bf16));
  return load_words(line);
}
inline void store_words(Bf16* to, Words words) { __builtin_memcpy(to, &words, sizeof words); }

/// A bfloat16 in the upper half of each word, rounded to the nearest, ties to even; the lower half is of no use.
inline Words narrowed(Vf::Value v) {
  const Words bits = (Words)v;
  return (v != v) ? bits | 0x400000 : bits + 0x7fff + ((bits >> 16) & 1);
}

/// Stores `count` values, at most 32, of which `even` and `odd` are every other one.
inline void store_pairs(Bf16* to, const float* even, const float* odd, int64_t count, bool stream) {
  const Words words = (narrowed(Vf::load(even)) >> 16) | (narrowed(Vf::load(odd)) & 0xffff0000);
  if (count < tile_terms) {
    __builtin_memcpy(to, &words, (size_t)count * sizeof(Bf16));
  } else if (stream) {
    Vf::stream((float*)to, (Vf::Value)words);
  } else {
    store_words(to, words);
  }
}

/// Rows of x as fprop's second factor: [16 rows][32 columns][pair of columns][row][2], with zeros past the last row and
/// column. Units: 16 rows of 32 columns.
template <class S>
void pack_rows(const S* x, int64_t rows, int64_t columns, int64_t begin, int64_t end, Bf16* packed) {
  const int64_t steps = ceil_div(columns, tile_terms);
  for (int64_t unit = begin; unit < end; ++unit) {
    Bf16* to = packed + unit * tile_values;
    const int64_t first = unit % steps * tile_terms, column_end = min(columns, first + tile_terms);
    for (int64_t r = 0; r < tile_rows; ++r) {
      const int64_t row = unit / steps * tile_rows + r;
      Bf16 line[tile_terms] = {};
      for (int64_t c = first; row < rows && c < column_end; c += Vf::lanes) {
        const S* from = x + row * columns + c;
        Vf::store(line + c - first, columns - c >= Vf::lanes ? Vf::load(from) : Vf::load(from, columns - c));
      }
      for (int64_t pair = 0; pair < tile_rows; ++pair) {
        __builtin_memcpy(to + (pair * tile_rows + r) * 2, line + pair * 2, 2 * sizeof(Bf16));
      }
    }
  }
}

/// Rows of a matrix, `stride` values apart, as a second factor whose terms they are: [32 columns][32 rows][even, odd
/// columns][pair of rows][column][2], with zeros past the last row and column. What lies `ahead` values
/// on is prefetched, unless it is 0; after_pair() is called after each two rows.
template <class AfterPair>
void interleave_rows(const Bf16* from, int64_t stride, int64_t rows, int64_t columns, int64_t ahead, Bf16* packed,
                     AfterPair after_pair) {
  const int64_t steps = ceil_div(rows, tile_terms), blocks = ceil_div(columns, tile_terms);
  for (int64_t row = 0; row < steps * tile_terms; row += 2) {
    Bf16* to = packed + row / tile_terms * 2 * tile_values + row % tile_terms / 2 * tile_terms;
    for (int64_t block = 0; block < blocks; ++block, to += steps * 2 * tile_values) {
      Words both[2];
      for (int64_t r = 0; r < 2; ++r) {
        const Bf16* p = from + (row + r) * stride + block * tile_terms;
        both[r] = row + r < rows ? load_words(p, columns - block * tile_terms) : Words{};
        if (ahead > 0) __builtin_prefetch(p + ahead, 0, 2);
      }
      store_words(to, (both[0] & 0xffff) | (both[1] << 16));
      store_words(to + tile_values, (both[0] >> 16) | (both[1] & 0xffff0000));
    }
    after_pair();
  }
}

inline void interleave_all(const Bf16* from, int64_t stride, int64_t rows, int64_t columns, Bf16* packed) {
  interleave_rows(from, stride, rows, columns, 0, packed, [] {});
}

/// The sums of Down x Across tiles: of `steps` products each from a's and b's first tiles on, added to what is there
/// or, of the first ones, stored. What of a lies `ahead` values on is prefetched, unless it is 0.
template <class Tiles, int Down, int Across>
void multiply(Tiles& tiles, TileMatrix a, TileMatrix b, int64_t steps, bool first, int64_t ahead, BlockSums& sums) {
  const auto each = [](auto tile) {  // calls tile<number>(down, across)
    tile.template operator()<0>(0, 0);
    if constexpr (Across == 2) tile.template operator()<1>(0, 1);
    if constexpr (Down == 2) tile.template operator()<2>(1, 0);
    if constexpr (Down == 2 && Across == 2) tile.template operator()<3>(1, 1);
  };
  each([&]<int T>(int down, int across) {
    first ? tiles.template zero<T>() : tiles.template load<T>(sums[down][across], tile_row_bytes);
  });
  const int64_t a_bytes = a.row * (int64_t)sizeof(Bf16), b_bytes = b.row * (int64_t)sizeof(Bf16);
  for (int64_t step = 0; step < steps; ++step, a.data += a.step, b.data += b.step) {
    for (int tile = 0; ahead != 0 && tile < Down; ++tile) {
      const Bf16* later = a.data + ahead + tile * a.tile;
#pragma GCC unroll 16
      for (int64_t row = 0; row < tile_rows; ++row, later += a.row) __builtin_prefetch(later, 0, 2);
    }
    tiles.template load<4>(a.data, a_bytes);
    tiles.template load<6>(b.data, b_bytes);
    tiles.template dot_bf16<0, 4, 6>();
    if constexpr (Across == 2) {
      tiles.template load<7>(b.data + b.tile, b_bytes);
      tiles.template dot_bf16<1, 4, 7>();
    }
    if constexpr (Down == 2) {
      tiles.template load<5>(a.data + a.tile, a_bytes);
      tiles.template dot_bf16<2, 5, 6>();
      if constexpr (Across == 2) tiles.template dot_bf16<3, 5, 7>();
    }
    tiles.keep_awake();
  }
  each([&]<int T>(int down, int across) { tiles.template store<T>(sums[down][across], tile_row_bytes); });
}

/// fprop of Outs outputs of one row, whose weights begin at `weight` and are w.row values apart.
template <int64_t Outs>
void row_dots(const TileLinearArgs& a, const TileMatrix& w, const Bf16* weight, int64_t out) {
  Vf::Value sums[Outs] = {};
  const auto add = [&](auto load, const Bf16* x, const Bf16* row) {
    const Words values = load(x);
    const Vf::Value even = (Vf::Value)(values << 16), odd = (Vf::Value)(values & 0xffff0000);
#pragma GCC unroll 16
    for (int64_t o = 0; o < Outs; ++o, row += w.row) {
      const Words weights = load(row);
      __builtin_prefetch(row + steps_ahead * w.step);
      sums[o] += even * (Vf::Value)(weights << 16);
      sums[o] += odd * (Vf::Value)(weights & 0xffff0000);
    }
  };
  int64_t i = 0;
  for (; i + tile_terms <= a.inputs; i += tile_terms, weight += w.step) {
    add([](const Bf16* p) { return load_words(p); }, a.x + i, weight);
  }
  if (i < a.inputs) add([&](const Bf16* p) { return load_words(p, a.inputs - i); }, a.x + i, weight);
  for (int64_t o = 0; o < Outs; ++o) {
    float sum = 0;
    for (int64_t lane = 0; lane < Vf::lanes; ++lane) sum += sums[o][lane];
    if (a.bias) sum += a.bias[out + o];
    a.y[out + o] = a.relu && sum <= 0 ? 0 : sum;
  }
}

inline void fprop_row(const TileLinearArgs& a, int64_t begin, int64_t end) {
  const TileMatrix& w = a.weight;
  int64_t out = begin;
  for (; out + tile_rows <= end; out += tile_rows) {
    row_dots<tile_rows>(a, w, w.data + out / tile_rows * w.tile, out);
  }
  for (; out < end; ++out) row_dots<1>(a, w, w.data + out / tile_rows * w.tile + out % tile_rows * w.row, out);
}

/// Adds to the sums of two tiles of outputs, or stores, the products of `steps` tiles from w's and x's first ones on
/// with all tiles of rows.
template <class Tiles>
void multiply_rows(Tiles& tiles, const TileMatrix& w, TileMatrix x, int64_t row_tiles, int64_t steps, bool first,
                   int64_t ahead, BlockSums* sums) {
  for (int64_t tile = 0; tile < row_tiles; tile += 2, x.data += 2 * x.tile, ahead = 0) {
    const auto product = tile + 1 < row_tiles ? multiply<Tiles, 2, 2> : multiply<Tiles, 2, 1>;
    product(tiles, w, x, steps, first, ahead, *sums++);
  }
}

/// Part (of 32 outputs, 32 inputs) of W as two tiles, with zeros past its ends.
inline void copy_edge(const TileLinearArgs& a, const Bf16* from, int64_t outputs, int64_t inputs,
                      Bf16 (&edge)[2][tile_values]) {
  for (int64_t o = 0; o < 2 * tile_rows; ++o) {
    const Bf16* row = from + o / tile_rows * a.weight.tile + o % tile_rows * a.weight.row;
    store_words(edge[o / tile_rows] + o % tile_rows * tile_terms, o < outputs ? load_words(row, inputs) : Words{});
  }
}

/// y of outputs [32 block, 32 block + 32).
inline void store_outputs(const TileLinearArgs& a, int64_t block, const BlockSums* sums) {
  const int64_t first = block * 2 * tile_rows, count = min(a.outputs - first, 2 * tile_rows);
  for (int64_t row = 0; row < a.rows; ++row) {
    const BlockSums& of_row = sums[row / (2 * tile_rows)];
    for (int64_t o = 0; o < count; ++o) {
      float sum = of_row[o / tile_rows][row / tile_rows % 2][o % tile_rows][row % tile_rows];
      if (a.bias) sum += a.bias[first + o];
      a.y[row * a.outputs + first + o] = a.relu && sum <= 0 ? 0 : sum;
    }
  }
}

template <class Tiles>
void fprop_rows(const TileLinearArgs& a, int64_t block_begin, int64_t block_end, BlockSums* sums) {
  const TileMatrix& w = a.weight;
  const int64_t steps = ceil_div(a.inputs, tile_terms), whole_steps = a.inputs / tile_terms;
  const int64_t row_tiles = ceil_div(a.rows, tile_rows), pairs = ceil_div(row_tiles, 2);
  const auto weights_at = [&](int64_t block, int64_t step) { return w.data + 2 * block * w.tile + step * w.step; };
  if (steps == 0) __builtin_memset(sums, 0, (size_t)((block_end - block_begin) * pairs) * sizeof(BlockSums));
  Tiles tiles;
  for (int64_t chunk = 0; chunk < steps; chunk += chunk_steps) {
    const int64_t chunk_end = min(chunk + chunk_steps, steps);
    for (int64_t block = block_begin; block < block_end; ++block) {
      const int64_t outputs = a.outputs - block * 2 * tile_rows;
      const int64_t edge_begin = outputs >= 2 * tile_rows ? min(chunk_end, whole_steps) : chunk;
      BlockSums* of_block = sums + (block - block_begin) * pairs;
      const auto multiply_steps = [&](const TileMatrix& weights, int64_t step, int64_t count, int64_t ahead) {
        const TileMatrix x{a.x + step * tile_values, tile_terms, tile_values, steps * tile_values};
        multiply_rows(tiles, weights, x, row_tiles, count, step == 0, ahead, of_block);
      };
      const Bf16* weights = weights_at(block, chunk);
      const Bf16* next = block + 1 < block_end ? weights_at(block + 1, chunk) : weights_at(block_begin, chunk_end);
      if (chunk < edge_begin) {
        multiply_steps({weights, w.row, w.step, w.tile}, chunk, edge_begin - chunk, next - weights);
      }
      for (int64_t step = edge_begin; step < chunk_end; ++step) {
        Bf16 edge[2][tile_values];
        copy_edge(a, weights_at(block, step), outputs, a.inputs - step * tile_terms, edge);
        multiply_steps({edge[0], tile_terms, 0, tile_values}, step, 1, 0);
      }
    }
  }
  for (int64_t block = block_begin; block < block_end; ++block) {
    store_outputs(a, block, sums + (block - block_begin) * pairs);
  }
}

template <class Tiles>
void linear_fprop_tiles(const TileLinearArgs& a, int64_t block_begin, int64_t block_end, float* scratch) {
  if (a.rows == 1) return fprop_row(a, block_begin * 2 * tile_rows, min(block_end * 2 * tile_rows, a.outputs));
  fprop_rows<Tiles>(a, block_begin, block_end, (BlockSums*)scratch);
}

template <class Tiles>
void linear_dgrad_tiles(const TileLinearArgs& a, int64_t block_begin, int64_t block_end, float* scratch) {
  const int64_t steps = ceil_div(a.outputs, tile_terms), first = block_begin * tile_terms;
  const int64_t row_tiles = ceil_div(a.rows, tile_rows), pairs = ceil_div(row_tiles, 2);
  const int64_t blocks = block_end - block_begin, columns = min(blocks * tile_terms, a.inputs - first);
  BlockSums* sums = (BlockSums*)scratch;
  Bf16* panel = (Bf16*)(sums + blocks * pairs);
  if (steps == 0) __builtin_memset(sums, 0, (size_t)(blocks * pairs) * sizeof(BlockSums));
  Tiles tiles;
  for (int64_t step = 0; step < steps; step += linear_panel_steps) {
    const int64_t count = min(linear_panel_steps, steps - step), row = step * tile_terms;
    interleave_rows(a.weight.data + row * a.weight.row + first, a.weight.row, min(count * tile_terms, a.outputs - row),
                    columns, step + count < steps ? count * tile_terms * a.weight.row : 0, panel,
                    [&] { tiles.keep_awake(); });
    for (int64_t block = 0; block < blocks; ++block) {
      const TileMatrix weights{panel + block * count * 2 * tile_values, tile_terms, 2 * tile_values, tile_values};
      for (int64_t tile = 0; tile < row_tiles; tile += 2) {
        const TileMatrix gy{a.gy + (tile * steps + step) * tile_values, tile_terms, tile_values, steps * tile_values};
        const auto product = tile + 1 < row_tiles ? multiply<Tiles, 2, 2> : multiply<Tiles, 1, 2>;
        product(tiles, gy, weights, count, step == 0, 0, sums[block * pairs + tile / 2]);
      }
    }
  }
  for (int64_t row = 0; row < a.rows; ++row) {
    for (int64_t block = 0; block < blocks; ++block) {
      const auto& of_row = sums[block * pairs + row / (2 * tile_rows)][row / tile_rows % 2];
      store_pairs(a.gx + row * a.inputs + first + block * tile_terms, of_row[0][row % tile_rows],
                  of_row[1][row % tile_rows], min(tile_terms, columns - block * tile_terms), false);
    }
  }
}

template <class Tiles>
void linear_wgrad_tiles(const TileLinearArgs& a, int64_t output_begin, int64_t output_end, int64_t input_begin,
                        int64_t input_end) {
  const int64_t steps = ceil_div(a.rows, tile_terms);
  alignas(64) BlockSums sums;
  Tiles tiles;
  for (int64_t output = output_begin; output < output_end; ++output) {
    const int64_t outputs = min(2 * tile_rows, a.outputs - output * 2 * tile_rows);
    const TileMatrix gy{a.gy + 2 * output * steps * tile_values, tile_terms, tile_values, steps * tile_values};
    const auto product = outputs > tile_rows ? multiply<Tiles, 2, 2> : multiply<Tiles, 1, 2>;
    for (int64_t input = input_begin; input < input_end; ++input) {
      product(tiles, gy, {a.x + input * steps * 2 * tile_values, tile_terms, 2 * tile_values, tile_values}, steps, true,
              0, sums);
      Bf16* to = a.gw + output * 2 * tile_rows * a.inputs + input * tile_terms;
      for (int64_t o = 0; o < outputs; ++o, to += a.inputs) {
        const auto& of_output = sums[o / tile_rows];
        store_pairs(to, of_output[0][o % tile_rows], of_output[1][o % tile_rows],
                    min(tile_terms, a.inputs - input * tile_terms), a.stream);
      }
    }
  }
  if (a.stream) Vf::end_stream();
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
