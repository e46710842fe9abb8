// Pooling: 2x2/2 max-pool, and the sum-pool and the mean posteriors that end a dense evaluation.
#pragma once

#include "vggfast/mask.h"
#include "vggfast/tensor.h"

namespace vggfast {

/// Extent of a 2x2/2 max-pool's output. With `ceil_mode` a last odd row or column makes a window of its own.
constexpr int64_t pooled(int64_t extent, bool ceil_mode) { return (extent + (ceil_mode ? 1 : 0)) / 2; }

/// y (N, C, OH, OW), NHWC. `mask` (2 planes) may be null. Of equal maxima the first one wins; NaN passes through.
/// y's shape says whether the windows that the edge cuts count (ceil_mode).
void max_pool2x2(const Tensor& x, const Tensor& y, const Tensor* mask, Context context);

/// Writes y (N, C): the sum (or mean) of x (N, C, H, W), NHWC, over its pixels.
void sum_pool(const Tensor& x, bool mean, const Tensor& y, Context context);

/// Writes scores (N, C), contiguous: the mean over `views` of the softmax over classes of each view's mean score over
/// pixels. maps (views * N, C, H, W), NHWC, holds one view after another: with 2, all images, then all their mirror
/// images.
void mean_posteriors(const Tensor& maps, int64_t views, const Tensor& scores, Context context);
/// Writes gmaps, the gradient with respect to maps.
void mean_posteriors_dgrad(const Tensor& gscores, const Tensor& maps, int64_t views, const Tensor& gmaps,
                           Context context);

}  // namespace vggfast
