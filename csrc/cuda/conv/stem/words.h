// What the stem's kernels share: the tensor cores' operands as 32-bit words, of two 16-bit values or one float32 value.
// Which value of the sum a word holds is free, as long as both operands agree. Each kernel assigns them so that the
// words of a lane lie side by side where it reads or writes them.
#pragma once

#include <cstring>

#include "cuda/conv/common/math.h"
#include "cuda/divider.h"

namespace vggfast::cuda {

/// The products of the stem's kernels: float32 is rounded to TF32.
template <class T>
struct StemMathOf;
template <>
struct StemMathOf<bf16> {
  using Type = MmaBf16;
};
template <>
struct StemMathOf<f16> {
  using Type = MmaF16;
};
template <>
struct StemMathOf<float> {
  using Type = MmaTf32;
};
template <class T>
using StemMath = typename StemMathOf<T>::Type;

template <class T>
constexpr int values_of_word = 4 / static_cast<int>(sizeof(T));

template <class T>
__device__ __forceinline__ uint32_t word_of(const T (&values)[values_of_word<T>]) {
  uint32_t word;
  std::memcpy(&word, values, sizeof(word));
  return rounded<StemMath<T>>(word);
}

/// Where a tile of `Rows` x `Columns` pixels begins; tiles follow each other along rows, images.
struct TilePlace {
  int image, y, x;

  template <int Rows, int Columns>
  __device__ __forceinline__ static TilePlace of(const Divider& tiles_across, const Divider& tiles_down, int tile) {
    const int row = tiles_across.quotient(tile), image = tiles_down.quotient(row);
    return {image, (row - image * static_cast<int>(tiles_down.divisor)) * Rows,
            (tile - row * static_cast<int>(tiles_across.divisor)) * Columns};
  }
};

}  // namespace vggfast::cuda
