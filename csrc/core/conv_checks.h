// Checks of the arguments of convolutions, which every back end shares.
#pragma once

#include "vggfast/conv.h"

namespace vggfast {

/// Throws unless `weight` is a 3x3 or 1x1 kernel with `channels` on axis `channel_axis`, as many as `input` has.
void check_kernel(const Tensor& weight, int64_t channels, int channel_axis, const char* input);
/// Throws unless gy has the extents of an h x w map, or of what the mask's epilogue makes of such a map.
void check_gradient(const Tensor& gy, const Masked& masked, int64_t h, int64_t w);
void check_workspace(Workspace workspace, size_t expected);

void check_fprop(const Tensor& x, const Tensor& weight, const Tensor* bias, Epilogue e, const Tensor& y,
                 const Tensor* mask);
void check_dgrad(const Tensor& gy, const Masked& masked, const Tensor& weight, const Tensor& gx, const Tensor* x_mask);
/// `sums` is what gw and gb are to be of.
void check_wgrad(const Tensor& x, const Tensor& gy, const Masked& masked, const Tensor& gw, const Tensor* gb,
                 DType sums);

}  // namespace vggfast
