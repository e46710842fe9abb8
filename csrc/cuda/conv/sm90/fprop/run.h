// Starting the Hopper fprop, as sm90/conv.cu calls it. One source per dtype instantiates it (instances/).
#pragma once

#include <optional>

#include "cuda/conv/common/pack.h"
#include "cuda/conv/sm90/core/operand.h"
#include "cuda/conv/sm90/fprop/tiles.h"
#include "cuda/launch.h"

namespace vggfast::cuda::sm90 {

/// A convolution, 3x3 (pad 1) or 1x1, of bf16, f16, or float read as TF32; of e4m3, or from bf16 to it. x and y begin
/// at multiples of 16 bytes, and so does each pixel of x; cout is a multiple of 8; there is a pixel; no pool of 1x1. x:
/// NHWC; y: what the epilogue makes of n x h x w x cout sums.
template <class T, class U = T>
struct FpropProblem {
  const T* x;
  int n, h, w, cin;
  const T* weights;                   // (cout, taps, cin), cin contiguous
  int64_t weight_stride, tap_stride;  // in values: from one cout, one tap to the next
  int kernel, cout;
  const BiasOf<T, U>* bias;  // or null
  uint8_t* mask;             // or null
  const uint8_t* x_mask;     // or null: of dgrad, the mask that a ReLU left of what y is the gradient of
  U* y;
  bool relu, pool;
  float scale = 1;  // of quantised values' sums, before the bias
};

/// By the tile that is asked for where it fits, else by the one measured or estimated to be the fastest (choice.h).
template <class T, class U>
void run_fprop(const FpropProblem<T, U>& problem, std::optional<TileId> asked_for, const Context& context);

/// What the current device runs at once of these kernels.
template <class T, class U>
Residency residency();

/// Whether the weights may be read where they lie.
template <class T>
bool lie_as_packed(const WeightView<T>& w) {
  const auto whole = [](int64_t stride) { return stride > 0 && stride * int64_t(sizeof(T)) % 16 == 0; };
  return (w.in_stride == 1 || w.in == 1) && whole(w.column_stride) && w.row_stride == w.kernel * w.column_stride &&
         whole(w.out_stride) && reinterpret_cast<uintptr_t>(w.data) % 16 == 0;
}

}  // namespace vggfast::cuda::sm90
