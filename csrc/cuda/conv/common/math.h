// How the products of a stage are computed: by tensor cores in bf16, f16 or TF32, or exactly, by fused multiply-adds in
// float32 or float64. All keep their sums as mma.sync lays them out (tile.h, Lane), so that mainloops and epilogues are
// the same for every dtype. `multiply` serves operands whose rows run along the sum (fprop, dgrad).
#pragma once

#include "cuda/conv/common/tile.h"
#include "cuda/ptx/cvt.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/mma.h"

namespace vggfast::cuda {

template <class Sum, class Tile>
using Sums = Sum[Tile::down][Tile::across][4];

struct MmaBf16 {
  using Element = bf16;
  __device__ __forceinline__ static void product(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_bf16(d, a, b);
  }
};
struct MmaF16 {
  using Element = f16;
  __device__ __forceinline__ static void product(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_f16(d, a, b);
  }
};
struct MmaTf32 {
  using Element = float;
  __device__ __forceinline__ static void product(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_tf32(d, a, b);
  }
};

/// What a fragment's register holds, rounded to what the product reads.
template <class Math>
__device__ __forceinline__ uint32_t rounded(uint32_t reg) {
  if constexpr (sizeof(typename Math::Element) == 4) {
    return ptx::cvt_rna_tf32(ptx::as_float(reg));
  } else {
    return reg;
  }
}

template <class Math>
struct TensorCore {
  using Element = typename Math::Element;
  using Sum = float;
  static constexpr bool rounds_to_tf32 = sizeof(Element) == 4;

  template <class Tile>
  __device__ __forceinline__ static void multiply(Sums<float, Tile>& sums, const char* a, const char* b, Lane at) {
    a += at.warp_down * Tile::warp_rows * row_bytes;
    b += at.warp_across * Tile::warp_columns * row_bytes;
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // of a row: 32 bytes are what a product takes
      uint32_t fb[Tile::across][2];
#pragma unroll
      for (int j = 0; j < Tile::across; j += 2) {
        uint32_t pair[4];
        ptx::ldmatrix_x4(pair, b + chunk_offset(8 * j + at.lane / 16 * 8 + at.lane % 8, 2 * half + at.lane / 8 % 2));
        fb[j][0] = pair[0], fb[j][1] = pair[1], fb[j + 1][0] = pair[2], fb[j + 1][1] = pair[3];
      }
#pragma unroll
      for (int i = 0; i < Tile::down; ++i) {
        uint32_t fa[4];
        ptx::ldmatrix_x4(fa, a + chunk_offset(16 * i + at.lane % 16, 2 * half + at.lane / 16));
#pragma unroll
        for (uint32_t& reg : fa) reg = rounded<Math>(reg);
#pragma unroll
        for (int j = 0; j < Tile::across; ++j) Math::product(sums[i][j], fa, fb[j]);
      }
    }
  }
};

template <class T>
struct alignas(chunk_bytes) Chunk {
  T values[chunk_of<T>];
};

template <class T>
struct Exact {
  using Element = T;
  using Sum = T;
  static constexpr bool rounds_to_tf32 = false;

  template <class Tile>
  __device__ __forceinline__ static void multiply(Sums<T, Tile>& sums, const char* a, const char* b, Lane at) {
    a += at.warp_down * Tile::warp_rows * row_bytes;
    b += at.warp_across * Tile::warp_columns * row_bytes;
    const auto chunk_at = [](const char* rows, int row, int chunk) {
      return *reinterpret_cast<const Chunk<T>*>(rows + chunk_offset(row, chunk));
    };
#pragma unroll 1
    for (int chunk = 0; chunk < row_chunks; ++chunk) {
      Chunk<T> va[Tile::down][2];
#pragma unroll
      for (int i = 0; i < 2 * Tile::down; ++i) va[i / 2][i % 2] = chunk_at(a, 8 * i + at.group, chunk);
#pragma unroll
      for (int j = 0; j < Tile::across; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const Chunk<T> vb = chunk_at(b, 8 * j + 2 * at.within + e, chunk);
#pragma unroll
          for (int i = 0; i < 2 * Tile::down; ++i) {
            T part = va[i / 2][i % 2].values[0] * vb.values[0];  // long sums err less by a chunk at a time
#pragma unroll
            for (int k = 1; k < chunk_of<T>; ++k) part += va[i / 2][i % 2].values[k] * vb.values[k];
            sums[i / 2][j][i % 2 * 2 + e] += part;
          }
        }
      }
    }
  }
};

}  // namespace vggfast::cuda
