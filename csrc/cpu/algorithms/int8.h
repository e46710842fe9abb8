// One layer of 8 bits, a convolution or a linear layer, on the CPU: sizes, packing, and how threads divide the work.
// Kernels: cpu/kernels/int8.h.
#pragma once

#include <cstddef>

#include "cpu/int8_kernels.h"

namespace vggfast::cpu {

class Int8Layer {
 public:
  /// Inputs of an output, kernel * kernel * cin, whose sum cannot leave int32.
  static constexpr int64_t most_terms = (int64_t{1} << 31) / (255 * 128);

  /// By the instruction set in use.
  Int8Layer(int64_t cin, int64_t cout, int64_t kernel);

  /// Of the weights with unit and bias.
  size_t packed_bytes() const;
  /// `unit`: positive, of each output channel; `bias` may be null. Both dense.
  void pack(const WeightView<int8_t>& weight, const float* unit, const float* bias, void* packed, int threads) const;

  size_t conv_workspace(const Extent& in, bool pool, int threads) const;
  void conv(const uint8_t* x, const Extent& in, const void* packed, const Int8Output& out, void* workspace,
            int threads) const;

  size_t linear_workspace(int64_t rows, int threads) const;
  /// x: (rows, cin).
  void linear(const uint8_t* x, int64_t rows, const void* packed, const Int8Output& out, void* workspace,
              int threads) const;

 private:
  /// How a map is cut into tasks: no result depends on it.
  struct Tasks {
    int64_t rows;    // of the output, in a task
    int64_t blocks;  // of output channels
  };
  Tasks tasks_of(const Extent& in, bool pool, int threads) const;
  /// A thread's, in words, for whole cache lines.
  int64_t scratch_of(const Extent& in, bool pool, const Tasks& tasks) const;
  int64_t row_words() const { return (cin_ + kernels_.terms - 1) / kernels_.terms; }
  int64_t block_bytes() const { return kernel_ * kernel_ * row_words() * kernels_.terms * kernels_.block_channels; }
  Int8Args args(const void* packed, const Int8Output& out) const;

  const Int8Kernels& kernels_;
  int64_t cin_, cout_, kernel_, blocks_;
};

}  // namespace vggfast::cpu
