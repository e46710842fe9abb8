// Masks: what ReLU and 2x2/2 max-pool remember for their backward pass.
//
// A mask is a uint8 tensor (N, planes, OH, OW, ceil(C / 8)). Bit c % 8 of byte c / 8 belongs to channel c.
//   ReLU only    1 plane:  1 where the gradient passes
//   pool only    2 planes: column, then row of the maximum within its window
//   both         3 planes: passes, column, row
// A window's maximum is the first of equals in row-major order, and the last NaN where there are any; ReLU's gradient
// passes everywhere but where the value is 0 or less: through NaN too. mask_gather and mask_scatter are linear and each
// is the other's transpose: gradients of any order need no other op.
#pragma once

#include "vggfast/tensor.h"

namespace vggfast {

/// What a convolution does to its sums before it stores them.
struct Epilogue {
  bool relu = false;
  bool pool = false;
};

constexpr int64_t mask_planes(Epilogue e) { return (e.relu ? 1 : 0) + (e.pool ? 2 : 0); }

/// Throws unless `mask`, of this name, is a contiguous mask of the epilogue `e` for outputs of y's shape.
void check_mask(const Tensor& mask, Epilogue e, const Tensor& y, const char* name = "mask");
/// Throws unless `y` has the shape that the epilogue makes of `z`, and `mask`, unless null, is a mask for `y`.
/// A pooled y may count the windows that the edge cuts (ceil_mode) or leave them out.
void check_pool_outputs(const Tensor& z, const Tensor& y, const Tensor* mask, Epilogue e);

/// Writes y (N, C, OH, OW) from z (N, C, H, W): the elements that the mask points to, 0 where ReLU lets nothing pass.
void mask_gather(const Tensor& z, const Tensor& mask, Epilogue e, const Tensor& y, Context context);
/// The transpose: writes z from y, each element to the place that the mask points to, and 0 to all other places.
void mask_scatter(const Tensor& y, const Tensor& mask, Epilogue e, const Tensor& z, Context context);

}  // namespace vggfast
