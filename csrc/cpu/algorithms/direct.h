// Direct convolution on the CPU: sizes, packing, and the sharing of tiles among threads. Kernels: cpu/kernels/conv.h.
#pragma once

#include "cpu/kernel_table.h"

namespace vggfast::cpu {

/// One layer's direct convolution, 3x3 or 1x1, by the instruction set in use.
template <class T>
class Direct {
 public:
  Direct(int64_t cin, int64_t cout, int64_t kernel);

  /// Values of the packed weights with the padded bias, and what else fprop reads.
  int64_t packed_values() const { return blocks_ * (block_values_ + kernels_.block_channels) + cin_; }
  void pack(const WeightView<T>& weight, const T* bias, T* packed, int threads) const;
  void fprop(const ConvInput<T>& in, const T* packed, const ConvOutput<T>& out, int threads) const;

 private:
  const Kernels<T>& kernels_;
  int64_t cin_, cout_, kernel_, blocks_, block_values_;
};

}  // namespace vggfast::cpu
