// Convolution, 3x3 (pad 1) or 1x1, stride 1, with bias, ReLU and 2x2/2 max-pool in its epilogue.
//
// x, y and their gradients lie as NHWC; weights are (Cout, Cin, K, K) with any strides, K = 1 or 3.
// Sums are accumulated in the tensors' own dtype; results do not depend on the number of threads.
#pragma once

#include "vggfast/mask.h"
#include "vggfast/tensor.h"

namespace vggfast {

/// Uses `name` for float32 convolutions from now on: "auto", "direct", or "winograd2", "winograd4", "winograd6" for 3x3
/// ones by F(m x m, 3 x 3). float64 is always direct. Throws Error for another name.
void set_conv_algorithm(const std::string& name);
std::string conv_algorithm();

/// What a float32 convolution of x (n, cin, h, w) to `cout` channels runs by now, and what that costs.
struct ConvCost {
  std::string algorithm;  // "direct" (the first layer's own kernel too), "1x1", "winograd2", "winograd4" or "winograd6"
  int64_t multiply_adds;  // of the products; transforms come on top
};
/// `pass`: "fprop", "dgrad" or "wgrad"; for dgrad, cin is gy's channels and cout is x's.
ConvCost conv_cost(const std::string& pass, int64_t n, int64_t cin, int64_t h, int64_t w, int64_t cout, int64_t kernel);

/// The gradient of an epilogue's output, and what the epilogue selected: together the gradient of its input. Without a
/// mask, the gradient itself.
struct Masked {
  const Tensor* mask = nullptr;
  Epilogue epilogue = {};

  bool pooled() const { return mask && epilogue.pool; }
};

size_t conv_fprop_workspace(const Tensor& x, const Tensor& weight, Epilogue e, Context context);
size_t conv_dgrad_workspace(const Tensor& gy, const Masked& masked, const Tensor& weight, int64_t h, int64_t w,
                            Context context);
size_t conv_wgrad_workspace(const Tensor& x, const Tensor& gy, const Masked& masked, int64_t kernel, Context context);

/// y = epilogue(conv(x, weight) + bias). `bias` (Cout) and `mask` may be null.
void conv_fprop(const Tensor& x, const Tensor& weight, const Tensor* bias, Epilogue e, const Tensor& y,
                const Tensor* mask, Workspace workspace, Context context);
/// gx: the gradient with respect to x.
void conv_dgrad(const Tensor& gy, const Masked& masked, const Tensor& weight, const Tensor& gx, Workspace workspace,
                Context context);
/// gw, and gb (Cout) unless null: the gradients with respect to weight and bias.
void conv_wgrad(const Tensor& x, const Tensor& gy, const Masked& masked, const Tensor& gw, const Tensor* gb,
                Workspace workspace, Context context);

}  // namespace vggfast
