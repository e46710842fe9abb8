// A register tile of a matrix product: Rows x Vecs accumulators, each the sum over k of a scalar of a times a vector of
// b. They are stored to c or added to it. With Streams there are as many such tiles, side by side in c, of the same
// rows of a and of as many matrices b.
//
// Matrices are stored in blocks of `lanes` columns, [block][row][lanes], so that no vector crosses a cache line and the
// scalars of a tile are close together. RowStep and KStep are the steps in a from one row and from one k to the next:
//   fprop   a's blocks are along k:    RowStep = lanes, KStep = 1, `outer` blocks of `inner` columns
//   wgrad   a's blocks are along rows: RowStep = 1, KStep = lanes, one block of k, `last_inner` long
// b may be bfloat16 in memory.
// Cache   b's vectors are read from L2 or beyond, once per tile; a's scalars are in L1 after the first touch.
#pragma once

#include "cpu/isa/simd.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

struct GemmShape {
  int64_t outer, inner, last_inner;  // blocks of k; the last one may be narrower
  int64_t a_outer;                   // elements from one block of a to the next
  int64_t b_step, b_vector;          // of b: elements from one row to the next, from one block of columns to the next
  int64_t c_vector;                  // of c: elements from one block of columns to the next
  int64_t b_stream = 0;              // from one b to the next
};

// How many rows ahead of use b is prefetched: a few into L1, and as many as a whole call reads into L2. The hardware's
// own prefetcher comes too late. Of four other distances none made a difference. Several streams keep memory busy by
// themselves, and prefetching took time from them.
constexpr int64_t rows_to_l1 = 16, rows_to_l2 = 128;

template <class T, class U, int Rows, int Vecs, int RowStep, int KStep, bool Accumulate, int Streams = 1>
void gemm_tile(const GemmShape& g, const T* a, const U* b, T* c) {
  using V = Vec<T>;
  typename V::Value acc[Streams][Rows][Vecs];
#pragma GCC unroll 4
  for (int s = 0; s < Streams; ++s) {
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < Vecs; ++v) acc[s][r][v] = V::zero();
    }
  }
  for (int64_t o = 0; o < g.outer; ++o, a += g.a_outer) {
    const T* scalars = a;
    const int64_t inner = o + 1 < g.outer ? g.inner : g.last_inner;
#pragma GCC unroll 2
    for (int64_t k = 0; k < inner; ++k, b += g.b_step, scalars += KStep) {
#pragma GCC unroll 4
      for (int s = 0; s < Streams; ++s) {
        typename V::Value column[Vecs];
#pragma GCC unroll 4
        for (int v = 0; v < Vecs; ++v) {
          const U* vector = b + s * g.b_stream + v * g.b_vector;
          column[v] = V::load(vector);
          if constexpr (Streams == 1) {
            __builtin_prefetch(vector + rows_to_l1 * g.b_step);
            __builtin_prefetch(vector + rows_to_l2 * g.b_step, 0, 2);
          }
        }
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
          for (int v = 0; v < Vecs; ++v) acc[s][r][v] = V::fma(scalars[r * RowStep], column[v], acc[s][r][v]);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int s = 0; s < Streams; ++s) {
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < Vecs; ++v) {
        T* sum = c + (s * Vecs + v) * g.c_vector + r * V::lanes;
        V::store(sum, Accumulate ? V::load(sum) + acc[s][r][v] : acc[s][r][v]);
      }
    }
  }
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
