// 3x3 convolution by Winograd's F(m x m, 3 x 3), m = 2, 4, 6, over NHWC, and 1x1 convolution as its degenerate case
// m = 1. dgrad is fprop with the weights transposed and flipped; it reads gy through the mask of ReLU and pool.
//
//   V [point][channel block][tile][lanes]  the transformed inputs of one range of tiles
//   U [point][pair][cin][2][lanes]         the transformed weights, packed beforehand: pairs of cout blocks, side by
//                                          side so that a task reads them in one stream; an odd last block is alone
//   M [point][cout block][tile][lanes]     their products, point by point
//
// V is the scratch of one thread for its range of tiles, or is shared by threads that each compute some of the output
// channels (cpu/algorithms/winograd.cpp); M is the scratch of one thread. Both are meant to stay in L2 where channels
// are few, and in L3 where they are many; U is read once per range. Planes of V and M are an odd number of vectors
// long, so that a tile's n * n stores fall into different cache sets.
#pragma once

#include "cpu/kernels/epilogue.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/masked.h"
#include "cpu/kernels/winograd_tiles.h"
#include "cpu/kernels/winograd_transforms.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

constexpr int most_streams = 4;  // matrices of weights that are read at a time

inline int64_t blocks_of(int64_t channels) { return (channels + Vf::lanes - 1) / Vf::lanes; }
/// Elements of a plane with room for `vectors` vectors: an odd number of vectors.
inline int64_t plane_of(int64_t vectors) { return (vectors | 1) * Vf::lanes; }

/// Calls body(read), where read(i, j) loads channels [c, c + lanes) of pixel (i, j) of the `extent` x `extent` pixels
/// from (y, x) on, in the cheapest way that is right for all of them.
template <int extent, class S, class Body>
inline __attribute__((always_inline)) void with_reader(const ConvInput<S>& in, const Patch<extent>& patch, int64_t n,
                                                       int64_t y, int64_t x, int64_t c, Body body) {
  const Extent e = in.extent;
  const int64_t count = e.c - c;
  if (patch.inside && count >= Vf::lanes && !in.mask) {
    const S* first = in.data + (patch.row[0] + patch.column[0]) * e.c + c;
    const int64_t row = e.w * e.c;
    for (int64_t i = 0; i < extent; ++i) {
      for (int64_t j = 0; j < extent; ++j) __builtin_prefetch(first + i * row + (j + extent - 2) * e.c, 0, 2);
    }
    body([=](int64_t i, int64_t j) { return Vf::load(first + i * row + j * e.c); });
  } else if (in.pool) {
    body([&](int64_t i, int64_t j) {
      const int64_t yy = y + i, xx = x + j;
      if (yy < 0 || xx < 0 || yy >= e.h || xx >= e.w) return Vf::zero();
      return read_unpooled(in, n, yy, xx, c, count);
    });
  } else {
    body([&](int64_t i, int64_t j) {
      const int64_t pixel = patch.at(i, j);
      if (pixel < 0) return Vf::zero();
      if (in.mask) return read_rectified(in, pixel, c, count);
      const S* p = in.data + pixel * e.c + c;
      return count >= Vf::lanes ? Vf::load(p) : Vf::load(p, count);
    });
  }
}

/// Writes Bt d B of every channel of tiles [begin, end), as planes of `tiles` tiles from `v` on.
template <int M, class S>
void transform_inputs(const ConvInput<S>& in, const TileGrid& grid, int64_t begin, int64_t end, int64_t tiles,
                      float* v) {
  using W = Winograd<M>;
  constexpr int n = W::n;
  const int64_t blocks = blocks_of(in.extent.c), plane = plane_of(blocks * tiles);
  for (int64_t tile = begin; tile < end; ++tile) {
    const TilePlace place = TilePlace::of<M>(grid, tile);
    const int64_t y = place.y - W::taps / 2, x = place.x - W::taps / 2;
    const Patch<n> patch(grid, in.extent, place.n, y, x);
    for (int64_t block = 0; block < blocks; ++block) {
      float* out = v + (block * tiles + tile - begin) * Vf::lanes;
      with_reader(in, patch, place.n, y, x, block * Vf::lanes, [&](auto read) {
        Vf::Value half[n][n], line[n], column[n];
        for (int i = 0; i < n; ++i) {  // rows first: the pixels of a row are neighbours
#pragma GCC unroll 8
          for (int j = 0; j < n; ++j) line[j] = read(i, j);
          W::input(line, column);
#pragma GCC unroll 8
          for (int j = 0; j < n; ++j) half[j][i] = column[j];
        }
        for (int j = 0; j < n; ++j) {
          W::input(half[j], column);
#pragma GCC unroll 8
          for (int i = 0; i < n; ++i) Vf::store(out + (i * n + j) * plane, column[i]);
        }
      });
    }
  }
}

/// Computes At M A of output channels [block_begin, block_end) * lanes of tiles [begin, end), applies the epilogue and
/// stores.
template <int M, bool Pool, class S, class U>
void transform_outputs(const WinogradArgs<S, U>& a, int64_t begin, int64_t end, int64_t block_begin, int64_t block_end,
                       const float* products) {
  using W = Winograd<M>;
  constexpr int n = W::n, window = Pool ? 2 : 1;
  static_assert(M % window == 0);
  const int64_t tiles = end - begin, plane = plane_of((block_end - block_begin) * tiles);
  for (int64_t tile = begin; tile < end; ++tile) {
    const TilePlace place = TilePlace::of<M>(a.grid, tile);
    const Patch<M / window, window> patch(a.grid, {a.images, a.out.h, a.out.w, a.out.c}, place.n, place.y / window,
                                          place.x / window);
    for (int64_t block = block_begin; block < block_end && block * Vf::lanes < a.out.c; ++block) {
      const float* in = products + ((block - block_begin) * tiles + tile - begin) * Vf::lanes;
      for (int i = 0; i < M / window; ++i) {
        for (int j = 0; j < M / window; ++j) {
          const int64_t pixel = patch.at(i, j);
          if (pixel >= 0 && !a.out.stream) __builtin_prefetch(a.out.y + pixel * a.out.c + block * Vf::lanes, 1);
        }
      }
      const Vf::Value bias = Vf::load(a.bias + block * Vf::lanes);
      Vf::Value half[M][n], column[n], line[M], y[M][M];
      for (int j = 0; j < n; ++j) {
#pragma GCC unroll 8
        for (int i = 0; i < n; ++i) column[i] = Vf::load(in + (i * n + j) * plane);
        W::output(column, line);
#pragma GCC unroll 8
        for (int i = 0; i < M; ++i) half[i][j] = line[i];
      }
      for (int i = 0; i < M; ++i) W::output(half[i], y[i]);
      for (int i = 0; i < M / window; ++i) {
        for (int j = 0; j < M / window; ++j) {
          const int64_t pixel = patch.at(i, j);
          if (pixel < 0) continue;
          if constexpr (Pool) {
            const Vf::Value sums[4] = {y[2 * i][2 * j], y[2 * i][2 * j + 1], y[2 * i + 1][2 * j],
                                       y[2 * i + 1][2 * j + 1]};
            store_output<true, float>(a.out, pixel, block * Vf::lanes, bias, sums);
          } else {
            store_output<false, float>(a.out, pixel, block * Vf::lanes, bias, &y[i][j]);
          }
        }
      }
    }
  }
}

template <class U>
using GemmTile = void (*)(const GemmShape&, const float* a, const U* b, float* c);

/// The register tile for `rows` rows, at most Rows.
template <class U, int Vecs, int RowStep, int KStep, bool Accumulate, int Rows, int Streams = 1>
GemmTile<U> tile_of(int64_t rows) {
  if constexpr (Rows > 1) {
    if (rows < Rows) return tile_of<U, Vecs, RowStep, KStep, Accumulate, Rows - 1, Streams>(rows);
  }
  return gemm_tile<float, U, Rows, Vecs, RowStep, KStep, Accumulate, Streams>;
}

/// Pairs of blocks that are multiplied at a time: with few tiles as many as the registers hold, because memory gives a
/// core more over several streams than over one.
inline int64_t pairs_together(int64_t tiles) {
  return max<int64_t>(1, min<int64_t>(most_streams, VGGFAST_GEMM_ROWS / max<int64_t>(1, tiles)));
}

/// The register tile of fprop for `rows` tiles and so many pairs of blocks.
template <class U, bool Accumulate, int Streams = most_streams>
GemmTile<U> pairs_tile(int64_t rows, int64_t pairs) {
  if constexpr (Streams > 1) {
    if (pairs < Streams) return pairs_tile<U, Accumulate, Streams - 1>(rows, pairs);
  }
  return tile_of<U, 2, Vf::lanes, 1, Accumulate, VGGFAST_GEMM_ROWS / Streams, Streams>(rows);
}

/// The register tile of fprop for `rows` tiles and so many pairs of blocks, or 0 for one block. With `first` it stores
/// its sums, else it adds them.
template <class U>
GemmTile<U> fprop_tile(int64_t rows, int64_t pairs, bool first) {
  constexpr int most = VGGFAST_GEMM_ROWS, lanes = Vf::lanes;
  if (pairs > 0) return first ? pairs_tile<U, false>(rows, pairs) : pairs_tile<U, true>(rows, pairs);
  return first ? tile_of<U, 1, lanes, 1, false, most>(rows) : tile_of<U, 1, lanes, 1, true, most>(rows);
}

/// Computes one point's product V [tile][cin] x U [cin][cout block] for `tiles` tiles and `blocks` blocks. Every
/// `partial_terms` channels are summed by themselves, for two reasons: the transforms that follow magnify the rounding
/// of long sums, and the weights of so few channels stay in L1 during the loop over tiles.
template <class U>
void multiply_point(int64_t tiles, int64_t cin, int64_t blocks, const float* v, const U* u, float* products) {
  constexpr int64_t lanes = Vf::lanes, partial_terms = 128;
  const int64_t parts = (tiles + VGGFAST_GEMM_ROWS - 1) / VGGFAST_GEMM_ROWS;
  for (int64_t block = 0; block < blocks;) {
    const int64_t pairs = min((blocks - block) / 2, pairs_together(tiles)), step = pairs > 0 ? 2 * lanes : lanes;
    for (int64_t k = 0; k < cin; k += partial_terms) {
      const int64_t terms = min(partial_terms, cin - k), k_blocks = (terms + lanes - 1) / lanes;
      const GemmShape shape{.outer = k_blocks,
                            .inner = lanes,
                            .last_inner = terms - (k_blocks - 1) * lanes,
                            .a_outer = tiles * lanes,
                            .b_step = step,
                            .b_vector = lanes,
                            .c_vector = tiles * lanes,
                            .b_stream = cin * step};
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t tile = part * tiles / parts, count = (part + 1) * tiles / parts - tile;
        fprop_tile<U>(count, pairs, k == 0)(shape, v + k * tiles + tile * lanes, u + block * cin * lanes + k * step,
                                            products + (block * tiles + tile) * lanes);
      }
    }
    block += max<int64_t>(1, 2 * pairs);
  }
}

/// Multiplies planes `v` of tiles [tile_begin, tile_end) with the weights and transforms the products to outputs.
template <int M, class S, class U>
void winograd_outputs(const WinogradArgs<S, U>& a, const float* v, int64_t tile_begin, int64_t tile_end,
                      int64_t block_begin, int64_t block_end, float* products) {
  const int64_t tiles = tile_end - tile_begin, v_plane = plane_of(blocks_of(a.cin) * tiles);
  for (int64_t block = block_begin; block < block_end; block += a.group) {
    const int64_t blocks = min<int64_t>(a.group, block_end - block), m_plane = plane_of(blocks * tiles);
    for (int64_t point = 0; point < Winograd<M>::points; ++point) {
      multiply_point(tiles, a.cin, blocks, v + point * v_plane,
                     a.packed + (point * a.packed_blocks + block - block_begin) * a.cin * Vf::lanes,
                     products + point * m_plane);
    }
    if constexpr (M % 2 == 0) {
      if (a.out.pool) {
        transform_outputs<M, true>(a, tile_begin, tile_end, block, block + blocks, products);
        continue;
      }
    }
    transform_outputs<M, false>(a, tile_begin, tile_end, block, block + blocks, products);
  }
  if (a.out.stream) Vf::end_stream();
}

/// Writes G g Gt of one input channel and `count` output channels to planes of U.
template <int M>
void transform_weights(const float* weight, const WeightView<float>& w, int64_t count, float* out, int64_t plane) {
  using W = Winograd<M>;
  constexpr int n = W::n, K = W::taps;
  float taps[K * K][Vf::lanes] = {};
  for (int64_t i = 0; i < count; ++i, weight += w.stride_out) {
#pragma GCC unroll 9
    for (int tap = 0; tap < K * K; ++tap) taps[tap][i] = weight[tap / K * w.stride_row + tap % K * w.stride_column];
  }
  Vf::Value half[n][K];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
#pragma GCC unroll 3
    for (int s = 0; s < K; ++s) {
      half[i][s] = Vf::zero();
#pragma GCC unroll 3
      for (int r = 0; r < K; ++r) half[i][s] += (float)W::weight(i, r) * Vf::load(taps[r * K + s]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < n; ++j) {
      Vf::Value u = Vf::zero();
#pragma GCC unroll 3
      for (int s = 0; s < K; ++s) u += (float)W::weight(j, s) * half[i][s];
      Vf::store(out + (i * n + j) * plane, u);
    }
  }
}

/// Writes U of one pair of blocks of output channels, for every input channel.
template <int M>
void winograd_pack(const WeightView<float>& w, int64_t pair, float* packed) {
  const int64_t blocks = blocks_of(w.out), count = min<int64_t>(2, blocks - 2 * pair),
                plane = blocks * w.in * Vf::lanes;
  float* out = packed + 2 * pair * w.in * Vf::lanes;
  for (int64_t in = 0; in < w.in; ++in) {
    for (int64_t block = 2 * pair; block < 2 * pair + count; ++block, out += Vf::lanes) {
      const int64_t first = block * Vf::lanes;
      transform_weights<M>(w.data + first * w.stride_out + in * w.stride_in, w, min<int64_t>(Vf::lanes, w.out - first),
                           out, plane);
    }
  }
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
