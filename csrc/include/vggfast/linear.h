// Linear layers over few rows, float32, on the CPU. Their time goes into reading (or writing) the weights once.
#pragma once

#include "vggfast/tensor.h"

namespace vggfast {

/// y (N, O) = x (N, I) weight (O, I)^T + bias (O). All are contiguous; `bias` may be null.
void linear_fprop(const Tensor& x, const Tensor& weight, const Tensor* bias, const Tensor& y, Context context);
/// gx (N, I) = gy (N, O) weight.
void linear_dgrad(const Tensor& gy, const Tensor& weight, const Tensor& gx, Context context);
/// gw (O, I) = gy^T x.
void linear_wgrad(const Tensor& x, const Tensor& gy, const Tensor& gw, Context context);

}  // namespace vggfast
