// Linear layers over few rows on the CPU: float32, and where conv_takes(bf16) bfloat16, whose sums are float32 and are
// rounded once. Their time goes into reading (or writing) the weights once. In bfloat16, the y of a row that is
// multiplied alone (the only one, or of 65281 and more perhaps the last) has its sums in another order than that of
// other rows, and keeps denormals, which are zeros for the others.
#pragma once

#include "vggfast/tensor.h"

namespace vggfast {

/// Bytes of workspace that the functions below need.
size_t linear_fprop_workspace(const Tensor& x, const Tensor& weight, Context context);
size_t linear_dgrad_workspace(const Tensor& gy, const Tensor& weight, Context context);
size_t linear_wgrad_workspace(const Tensor& x, const Tensor& gy, Context context);

/// y (N, O) = x (N, I) weight (O, I)^T + bias (O). All are contiguous and of one dtype; `bias` may be null.
void linear_fprop(const Tensor& x, const Tensor& weight, const Tensor* bias, const Tensor& y, Workspace workspace,
                  Context context);
/// gx (N, I) = gy (N, O) weight.
void linear_dgrad(const Tensor& gy, const Tensor& weight, const Tensor& gx, Workspace workspace, Context context);
/// gw (O, I) = gy^T x.
void linear_wgrad(const Tensor& x, const Tensor& gy, const Tensor& gw, Workspace workspace, Context context);

}  // namespace vggfast
