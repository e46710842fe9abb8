// Checks of arguments that the back ends share.
#pragma once

#include "vggfast/error.h"
#include "vggfast/images.h"
#include "vggfast/lrn.h"
#include "vggfast/tensor.h"

namespace vggfast {

/// Throws unless `t`, of any rank, is dense in the order of its axes.
void check_contiguous(const Tensor& t, const char* name);

void check_sum_pool(const Tensor& x, const Tensor& y);
/// `scores_name`: the name of `scores` in errors.
void check_mean_posteriors(const Tensor& maps, int64_t views, const Tensor& scores, const char* scores_name);
void check_lrn(const Tensor& x, LrnParams p, const Tensor& out, const char* out_name);
void check_prepare_images(const Tensor& images, const Crops& crops, const Tensor& y);

}  // namespace vggfast
