// What every back end's convolutions check of their arguments.
#pragma once

#include "vggfast/conv.h"

namespace vggfast {

/// `channels` of `input` must be weight's along `channel_axis`.
void check_kernel(const Tensor& weight, int64_t channels, int channel_axis, const char* input);
/// gy must be the gradient of an h x w map, or of what the mask's epilogue made of it.
void check_gradient(const Tensor& gy, const Masked& masked, int64_t h, int64_t w);
void check_workspace(Workspace workspace, size_t wanted);

void check_fprop(const Tensor& x, const Tensor& weight, const Tensor* bias, Epilogue e, const Tensor& y,
                 const Tensor* mask);
void check_dgrad(const Tensor& gy, const Masked& masked, const Tensor& weight, const Tensor& gx);
void check_wgrad(const Tensor& x, const Tensor& gy, const Masked& masked, const Tensor& gw, const Tensor* gb);

}  // namespace vggfast
