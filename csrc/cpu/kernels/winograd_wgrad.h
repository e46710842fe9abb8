// The weights' gradient by the same Winograd algorithm: dg = Gt [sum over tiles of (Bt d B) * (A dy At)] G.
//
//   V  [point][cin block][tile][lanes]         transformed inputs, of a chunk of tiles
//   Z  [point][cout block][tile][lanes]        transformed gradients of the outputs
//   dU [point][cout block][cin, padded][lanes] their products, summed over the chunks
//
// Three steps: transform a chunk of tiles, multiply it point by point into dU, and, after the last chunk, transform dU
// back. cpu/algorithms/winograd_wgrad.cpp divides them among threads. The order of the sums depends on the shape alone.
#pragma once

#include "cpu/kernels/winograd.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

/// Writes A dy At of every channel of tiles [begin, end), as planes of `tiles` tiles from `z` on. Adds the sums of dy
/// itself to bias[channel], unless it is null.
template <int M, class S>
void transform_gradients(const ConvInput<S>& in, const TileGrid& grid, int64_t begin, int64_t end, int64_t tiles,
                         float* z, float* bias) {
  using W = Winograd<M>;
  constexpr int n = W::n;
  const int64_t blocks = blocks_of(in.extent.c), plane = plane_of(blocks * tiles);
  for (int64_t tile = begin; tile < end; ++tile) {
    const TilePlace place = TilePlace::of<M>(grid, tile);
    const Patch<M> patch(grid, in.extent, place.n, place.y, place.x);
    for (int64_t block = 0; block < blocks; ++block) {
      float* out = z + (block * tiles + tile - begin) * Vf::lanes;
      with_reader(in, patch, place.n, place.y, place.x, block * Vf::lanes, [&](auto read) {
        Vf::Value half[n][M], column[M], line[n], sum = Vf::zero();
        for (int j = 0; j < M; ++j) {
#pragma GCC unroll 8
          for (int i = 0; i < M; ++i) {
            column[i] = read(i, j);
            sum += column[i];
          }
          W::gradient(column, line);
#pragma GCC unroll 8
          for (int i = 0; i < n; ++i) half[i][j] = line[i];
        }
        for (int i = 0; i < n; ++i) {
          W::gradient(half[i], line);
#pragma GCC unroll 8
          for (int j = 0; j < n; ++j) Vf::store(out + (i * n + j) * plane, line[j]);
        }
        float* b = bias + block * Vf::lanes;
        if (bias) Vf::store(b, Vf::load(b) + sum);
      });
    }
  }
}

/// Computes one point's products, summed over p.tiles tiles, of the `vectors` cout blocks from p.z and p.du on.
template <bool Accumulate>
void multiply_chunk(const WgradPoint& p, int64_t vectors) {
  constexpr int rows = VGGFAST_WGRAD_ROWS, lanes = Vf::lanes;
  const int64_t padded = blocks_of(p.cin) * lanes;
  const GemmShape shape{.outer = 1,
                        .inner = 0,
                        .last_inner = p.tiles,
                        .a_outer = 0,
                        .b_step = lanes,
                        .b_vector = p.plane_tiles * lanes,
                        .c_vector = padded * lanes};
  for (int64_t c = 0; c < p.cin; c += rows) {
    const int64_t count = min<int64_t>(rows, p.cin - c);
    const GemmTile<float> multiply = vectors == 3   ? tile_of<float, 3, 1, lanes, Accumulate, rows>(count)
                                     : vectors == 2 ? tile_of<float, 2, 1, lanes, Accumulate, rows>(count)
                                                    : tile_of<float, 1, 1, lanes, Accumulate, rows>(count);
    multiply(shape, p.v + c / lanes * p.plane_tiles * lanes + c % lanes, p.z, p.du + c * lanes);
  }
}

void multiply_gradients(const WgradPoint& p, int64_t vectors, bool add) {
  add ? multiply_chunk<true>(p, vectors) : multiply_chunk<false>(p, vectors);
}

/// Writes Gt dU G of one cout block to weights of any strides.
template <int M>
void winograd_unpack(const float* du, int64_t block, const WeightView<float>& w, float* gw) {
  using W = Winograd<M>;
  constexpr int n = W::n, K = W::taps;
  const int64_t padded = blocks_of(w.in) * Vf::lanes, plane = blocks_of(w.out) * padded * Vf::lanes;
  const int64_t first = block * Vf::lanes, count = min<int64_t>(Vf::lanes, w.out - first);
  for (int64_t in = 0; in < w.in; ++in) {
    const float* p = du + (block * padded + in) * Vf::lanes;
    Vf::Value half[K][n] = {};
    for (int j = 0; j < n; ++j) {
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i) {
        const Vf::Value u = Vf::load(p + (i * n + j) * plane);
#pragma GCC unroll 3
        for (int r = 0; r < K; ++r) half[r][j] += (float)W::weight(i, r) * u;
      }
    }
    float taps[K * K][Vf::lanes];
    for (int r = 0; r < K; ++r) {
#pragma GCC unroll 3
      for (int s = 0; s < K; ++s) {
        Vf::Value sum = Vf::zero();
#pragma GCC unroll 8
        for (int j = 0; j < n; ++j) sum += (float)W::weight(j, s) * half[r][j];
        Vf::store(taps[r * K + s], sum);
      }
    }
    for (int64_t out = 0; out < count; ++out) {
      float* g = gw + (first + out) * w.stride_out + in * w.stride_in;
#pragma GCC unroll 9
      for (int tap = 0; tap < K * K; ++tap) g[tap / K * w.stride_row + tap % K * w.stride_column] = taps[tap][out];
    }
  }
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
