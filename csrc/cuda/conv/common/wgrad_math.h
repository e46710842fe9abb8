// wgrad's operands lie with the sum across the rows: a stage has a row for each pixel, with channels along it.
// `multiply` adds a stage's products to the sums, laid out as in math.h, and, where asked, its gradients to the bias'.
#pragma once

#include "cuda/conv/common/epilogue.h"
#include "cuda/conv/common/math.h"

namespace vggfast::cuda {

/// Pixels of a stage: as many as fprop's rows have elements.
template <class T>
constexpr int pixels_of_a_stage = depth_of<T>;

/// A stage's rows of `Columns` elements. The chunks that a product reads at once fall into different banks.
template <class T, int Columns>
struct PixelStage {
  static constexpr int bytes_of_a_row = Columns * static_cast<int>(sizeof(T));
  static constexpr int chunks = bytes_of_a_row / chunk_bytes;
  static constexpr int bytes = pixels_of_a_stage<T> * bytes_of_a_row;

  __device__ __forceinline__ static int chunk_offset(int row, int chunk) {
    const int turn = sizeof(T) == 2 ? row & 7 : (row & 3) << 1;
    return row * bytes_of_a_row + (chunk ^ turn) * chunk_bytes;
  }
  __device__ __forceinline__ static const T& at(const char* stage, int row, int column) {
    return *reinterpret_cast<const T*>(stage + chunk_offset(row, column / chunk_of<T>) +
                                       column % chunk_of<T> * static_cast<int>(sizeof(T)));
  }
};

/// Sums over this lane's pixels of its rows of gradients; lanes of a group have their own pixels.
template <class Sum, class Tile>
using BiasSums = Sum[Tile::down][2];

template <class Element>
__device__ __forceinline__ float sum_of_register(uint32_t reg) {
  if constexpr (sizeof(Element) == 4) {
    return ptx::as_float(reg);
  } else {
    return widen(Element{static_cast<uint16_t>(reg)}) + widen(Element{static_cast<uint16_t>(reg >> 16)});
  }
}

/// A fragment of 16 rows (a) or of two blocks of 8 (b), pixels from `pixel` on.
template <class T, class Stage>
__device__ __forceinline__ void load_a(uint32_t (&fragment)[4], const char* stage, int pixel, int row, Lane at) {
  if constexpr (sizeof(T) == 2) {
    const int matrix = at.lane / 8;
    ptx::ldmatrix_x4_trans(fragment,
                           stage + Stage::chunk_offset(pixel + matrix / 2 * 8 + at.lane % 8, row / 8 + matrix % 2));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      fragment[i] = ptx::as_bits(Stage::at(stage, pixel + at.within + i / 2 * 4, row + at.group + i % 2 * 8));
    }
  }
}
template <class T, class Stage>
__device__ __forceinline__ void load_b(uint32_t (&fragment)[4], const char* stage, int pixel, int row, Lane at) {
  if constexpr (sizeof(T) == 2) {
    const int matrix = at.lane / 8;
    ptx::ldmatrix_x4_trans(fragment,
                           stage + Stage::chunk_offset(pixel + matrix % 2 * 8 + at.lane % 8, row / 8 + matrix / 2));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      fragment[i] = ptx::as_bits(Stage::at(stage, pixel + at.within + i % 2 * 4, row + at.group + i / 2 * 8));
    }
  }
}

template <class Tile, class Math>
__device__ __forceinline__ void multiply_pixels(TensorCore<Math>, Sums<float, Tile>& sums, BiasSums<float, Tile>& bias,
                                                bool with_bias, const char* gradients, const char* inputs, Lane at) {
  using T = typename Math::Element;
  using A = PixelStage<T, Tile::rows>;
  using B = PixelStage<T, Tile::columns>;
#pragma unroll(sizeof(T) == 2 ? 2 : 1)  // registers are short where fragments come element by element
  for (int half = 0; half < 2; ++half) {
    const int pixel = half * pixels_of_a_stage<T> / 2;
    uint32_t fb[Tile::across][2];
#pragma unroll
    for (int j = 0; j < Tile::across; j += 2) {
      uint32_t pair[4];
      load_b<T, B>(pair, inputs, pixel, at.warp_across * Tile::warp_columns + 8 * j, at);
#pragma unroll
      for (uint32_t& reg : pair) reg = rounded<Math>(reg);
      fb[j][0] = pair[0], fb[j][1] = pair[1], fb[j + 1][0] = pair[2], fb[j + 1][1] = pair[3];
    }
#pragma unroll
    for (int i = 0; i < Tile::down; ++i) {
      uint32_t fa[4];
      load_a<T, A>(fa, gradients, pixel, at.warp_down * Tile::warp_rows + 16 * i, at);
      if (with_bias) {
        bias[i][0] += sum_of_register<T>(fa[0]) + sum_of_register<T>(fa[2]);
        bias[i][1] += sum_of_register<T>(fa[1]) + sum_of_register<T>(fa[3]);
      }
#pragma unroll
      for (uint32_t& reg : fa) reg = rounded<Math>(reg);
#pragma unroll
      for (int j = 0; j < Tile::across; ++j) Math::product(sums[i][j], fa, fb[j]);
    }
  }
}

template <class Tile, class T>
__device__ __forceinline__ void multiply_pixels(Exact<T>, Sums<T, Tile>& sums, BiasSums<T, Tile>& bias, bool with_bias,
                                                const char* gradients, const char* inputs, Lane at) {
  using A = PixelStage<T, Tile::rows>;
  using B = PixelStage<T, Tile::columns>;
#pragma unroll 1
  for (int pixel = 0; pixel < pixels_of_a_stage<T>; ++pixel) {
    T va[Tile::down][2];
#pragma unroll
    for (int i = 0; i < 2 * Tile::down; ++i) {
      va[i / 2][i % 2] = A::at(gradients, pixel, at.warp_down * Tile::warp_rows + 8 * i + at.group);
      if (with_bias && at.within == 0) bias[i / 2][i % 2] += va[i / 2][i % 2];
    }
#pragma unroll
    for (int j = 0; j < Tile::across; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const T vb = B::at(inputs, pixel, at.warp_across * Tile::warp_columns + 8 * j + 2 * at.within + e);
#pragma unroll
        for (int i = 0; i < 2 * Tile::down; ++i) sums[i / 2][j][i % 2 * 2 + e] += va[i / 2][i % 2] * vb;
      }
    }
  }
}

}  // namespace vggfast::cuda
