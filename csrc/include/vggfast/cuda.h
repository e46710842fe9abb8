// The CUDA back end's ops. They launch on context.stream and return at once; all tensors lie on the current device.
#pragma once

#include "vggfast/selection.h"
#include "vggfast/tensor.h"

namespace vggfast::cuda {

/// As vggfast::max_pool2x2 (vggfast/pool.h).
void max_pool2x2(const Tensor& x, const Tensor& y, const Tensor* selection, Context context);

}  // namespace vggfast::cuda
