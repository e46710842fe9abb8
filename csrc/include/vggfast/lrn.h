// Local response normalisation across channels (Krizhevsky et al. 2012), with alpha as torch defines it:
// y = x * s^-beta, s = k + alpha / size * (sum of x^2 over channels c - size / 2 ... c + (size - 1) / 2).
#pragma once

#include "vggfast/tensor.h"

namespace vggfast {

struct LrnParams {
  int64_t size = 5;
  double alpha = 1e-4;
  double beta = 0.75;
  double k = 2.0;
};

void lrn_fprop(const Tensor& x, LrnParams p, const Tensor& y, Context context);

size_t lrn_dgrad_workspace(const Tensor& x, Context context);
/// Writes gx from gy and the input x; s is computed again rather than kept.
void lrn_dgrad(const Tensor& gy, const Tensor& x, LrnParams p, const Tensor& gx, Workspace workspace, Context context);

}  // namespace vggfast
