// A pixel's patch, the 3 x 3 pixels around it, as one row of a product's operand: three runs of 3 * c values, each
// contiguous in memory, cut into words. Word i of a lane is number 4 * i + lane % 4 of the patch. Half a word beyond a
// run's end, and words beyond the patch, are masked, so that no NaN or infinity there meets a weight of zero. The last
// word is 1, so that the bias comes with the weights; so is the last but one of float32, for the part of the bias that
// TF32 loses.
#pragma once

#include "cuda/conv/common/epilogue.h"
#include "cuda/conv/common/pack.h"
#include "cuda/conv/stem/words.h"

namespace vggfast::cuda {

/// Of patches of up to `Channels` channels.
template <class T, int Channels>
struct PatchShape {
  static constexpr int words_of_run = (3 * Channels + values_of_word<T> - 1) / values_of_word<T>;
  static constexpr int steps = (3 * words_of_run + 7) / 8;  // products that take the sum
  static constexpr int words = 2 * steps;                   // of a lane
  static constexpr int words_of_bias = values_of_word<T> == 1 ? 2 : 1;
  static_assert(3 * words_of_run + words_of_bias <= 4 * words);
};

/// One word of a patch: value i is channel (first + i) % c of column (first + i) / c of row `row`; or the bias' share.
template <class T, int Channels>
class PatchWord {
 public:
  using Shape = PatchShape<T, Channels>;

  __device__ __forceinline__ PatchWord(int c, int number) : run_(3 * c), share_(number - 4 * Shape::words + 1) {
    const int words = (run_ + values_of_word<T> - 1) / values_of_word<T>;
    row_ = number / words;
    first_ = (number - row_ * words) * values_of_word<T>;
  }
  /// Where it lies, in rows of `row_values`.
  __device__ __forceinline__ int offset(int row_values) const { return row_ < 3 ? row_ * row_values + first_ : 0; }
  __device__ __forceinline__ uint32_t mask() const {
    uint32_t mask = 0;
#pragma unroll
    for (int i = 0; i < values_of_word<T>; ++i) {
      if (real(i)) mask |= (sizeof(T) == 2 ? 0xffffu : 0xffffffffu) << (16 * i);
    }
    return mask;
  }
  /// What is there besides.
  __device__ __forceinline__ uint32_t one() const {
    T values[values_of_word<T>] = {};
    if (of_bias()) values[0] = narrow<T>(1.0f);
    return word_of<T>(values);
  }
  /// The word of output channel `out`'s weights, or its share of the bias; 0 where there is no such channel.
  __device__ __forceinline__ uint32_t of_weights(const WeightView<T>& w, const T* bias, int out) const {
    T values[values_of_word<T>] = {};
    if (out >= w.out) return 0;
    if (of_bias() && bias) values[0] = share_of(bias[out]);
#pragma unroll
    for (int i = 0; i < values_of_word<T>; ++i) {
      const int column = (first_ + i) / w.in, channel = first_ + i - column * w.in;
      if (!real(i)) continue;
      values[i] = w.data[out * w.out_stride + channel * w.in_stride + row_ * w.row_stride + column * w.column_stride];
    }
    return word_of<T>(values);
  }

 private:
  __device__ __forceinline__ bool real(int i) const { return row_ < 3 && first_ + i < run_; }
  __device__ __forceinline__ bool of_bias() const { return share_ > -Shape::words_of_bias; }
  __device__ __forceinline__ T share_of(T bias) const {
    if constexpr (values_of_word<T> == 1) {
      const float most = ptx::as_float(ptx::cvt_rna_tf32(bias)), rest = bias - most;
      return share_ == 0 ? most : rest == rest ? rest : 0.0f;  // an infinity is all in the first
    } else {
      return bias;
    }
  }

  int run_, row_, first_;
  int share_;  // 0, -1: of the bias
};

}  // namespace vggfast::cuda
