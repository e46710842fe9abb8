// Masks: what ReLU and 2x2/2 max-pool remember for their backward.
//
// A mask is a uint8 tensor (N, planes, OH, OW, ceil(C / 8)). Bit c % 8 of byte c / 8 belongs to channel c.
//   ReLU only    1 plane:  1 where the gradient passes
//   pool only    2 planes: column, then row of the maximum within its window
//   both         3 planes: passes, column, row
// Both ops below are linear and each is the other's transpose, so that gradients of any order stay within them.
#pragma once

#include "vggfast/tensor.h"

namespace vggfast {

/// What a convolution does to its sums before it stores them.
struct Epilogue {
  bool relu = false;
  bool pool = false;
};

constexpr int64_t mask_planes(Epilogue e) { return (e.relu ? 1 : 0) + (e.pool ? 2 : 0); }

/// Throws unless `mask` is a contiguous mask for outputs like `y`.
void check_mask(const Tensor& mask, Epilogue e, const Tensor& y);
/// Throws unless `y` is of the shape that the epilogue makes of `z`, and `mask` (or null) goes with it.
/// A pooled y may count the windows that the edge cuts (ceil_mode) or leave them out.
void check_pool_outputs(const Tensor& z, const Tensor& y, const Tensor* mask, Epilogue e);

/// y (N, C, OH, OW) from z (N, C, H, W): the elements that were masked, 0 where ReLU cut.
void mask_gather(const Tensor& z, const Tensor& mask, Epilogue e, const Tensor& y, Context context);
/// The transpose: z from y, 0 in every place that was not masked.
void mask_scatter(const Tensor& y, const Tensor& mask, Epilogue e, const Tensor& z, Context context);

}  // namespace vggfast
