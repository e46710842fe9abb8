// The first layer's convolution, 3x3 over RGB, on the CPU: sizes, packing, and how threads divide the rows.
// Kernels: cpu/kernels/stem.h.
#pragma once

#include <algorithm>

#include "cpu/kernel_table.h"

namespace vggfast::cpu {

class Stem {
 public:
  static bool suits(int64_t cin, int64_t kernel) { return cin == channels && kernel == 3; }

  explicit Stem(int64_t cout);

  /// Floats of the packed weights with the padded bias, and of the scratch of `threads` threads.
  int64_t packed_values() const { return (values + 1) * padded_; }
  int64_t scratch_values(Extent in, int threads) const { return std::max(threads, 1) * scratch_of(in); }

  void pack(const WeightView<float>& weight, const float* bias, float* packed, int threads) const;
  template <class S>
  void fprop(const ConvInput<S>& in, const float* packed, const ConvOutput<S>& out, float* scratch, int threads) const;

  int64_t wgrad_values(Extent in, int threads) const;
  /// `gb` may be null; its stride is in elements. `workspace`: wgrad_values().
  void wgrad(const ConvInput<float>& x, const ConvInput<float>& gy, const WeightView<float>& shape, float* gw,
             float* gb, int64_t gb_stride, float* workspace, int threads) const;

 private:
  static constexpr int64_t channels = 3, values = 27;
  int64_t scratch_of(Extent in) const;

  const KernelTable& kernels_;
  int64_t cout_, padded_;
};

}  // namespace vggfast::cpu
