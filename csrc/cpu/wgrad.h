// The weights' gradient on the CPU, direct and by Winograd: sizes, and the sharing of the sums among threads.
#pragma once

#include "cpu/kernel_table.h"

namespace vggfast::cpu {

/// Direct: each task sums one block of weights over its own rows of pixels; groups of rows are added up at the end.
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

/// By F(m x m, 3 x 3)'s transpose, or for m = 1 the 1x1 case. Kernels: cpu/kernels/winograd_wgrad.h.
class WinogradWgrad {
 public:
  WinogradWgrad(int m, Extent in, int64_t cout);
  int64_t workspace_values() const;
  void run(const ConvInput<float>& x, const ConvInput<float>& gy, const WeightView<float>& shape, float* gw, float* gb,
           int64_t gb_stride, float* workspace, int threads) const;

 private:
  const KernelTable& kernels_;
  const WinogradTable& table_;
  Extent in_;
  int64_t cout_, points_, in_blocks_, out_blocks_;
  TileGrid grid_;
  int64_t tiles_, chunk_, parts_;
};

}  // namespace vggfast::cpu
