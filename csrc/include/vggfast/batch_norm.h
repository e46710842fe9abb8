// Batch norm (Ioffe & Szegedy 2015) of NHWC maps, with ReLU and 2x2/2 max-pool in the same pass:
//   y = pool(relu((x - mean) / sqrt(var + eps) * weight + bias)), statistics a channel, over N, H and W.
// In training mean and var are x's own, var without Bessel's correction; else they are given, and constants to the
// gradient. Maps are float32, float64 or bfloat16, and what belongs to a channel has their dtype, or float32 beside
// bfloat16. Results do not depend on the number of threads. The CPU alone has kernels for it.
#pragma once

#include "vggfast/conv.h"

namespace vggfast {

struct BatchNorm {
  bool training = true;
  double eps = 1e-5;
};

size_t batch_norm_fprop_workspace(const Tensor& x, Context context);
/// Writes y, which a pool leaves without an odd last row or column, and `mask` unless null; in training mean and var
/// too: zeros where x has no pixel. weight, bias, mean and var are (C,), contiguous; weight and bias may be null.
void batch_norm_fprop(const Tensor& x, const Tensor* weight, const Tensor* bias, BatchNorm norm, Epilogue e,
                      const Tensor& mean, const Tensor& var, const Tensor& y, const Tensor* mask, Workspace workspace,
                      Context context);

size_t batch_norm_dgrad_workspace(const Tensor& x, Context context);
/// Writes gx, and unless null gw and gb, the gradients of weight and bias, from the gradient of y, through the mask.
void batch_norm_dgrad(const Tensor& gy, const Masked& masked, const Tensor& x, const Tensor* weight, BatchNorm norm,
                      const Tensor& mean, const Tensor& var, const Tensor& gx, const Tensor* gw, const Tensor* gb,
                      Workspace workspace, Context context);

}  // namespace vggfast
