// Direct convolution on the CPU: sizes, packing, and how threads divide the tiles. Kernels: cpu/kernels/conv.h.
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

/// Its weights' gradient: each task sums one block of weights over its own rows of pixels; groups of rows are added up
/// at the end.
template <class T>
class DirectWgrad {
 public:
  DirectWgrad(Extent in, int64_t cout, int64_t kernel);
  int64_t workspace_values() const { return groups_ * (partial_values_ + bias_values_); }
  /// `gb` may be null; its stride is in elements.
  void run(const T* x, const T* gy, const WeightView<T>& shape, T* gw, T* gb, int64_t gb_stride, T* workspace,
           int threads) const;

 private:
  void add_up(const T* partial, const T* partial_bias, const WeightView<T>& shape, T* gw, T* gb, int64_t gb_stride,
              int threads) const;

  const Kernels<T>& kernels_;
  Extent in_;
  int64_t cout_, kernel_, blocks_, input_units_, rows_per_group_, groups_, bias_values_, partial_values_;
};

}  // namespace vggfast::cpu
