// The Hopper wgrad (kernel.h) from the host: how it shares out the work, and its launch.
#pragma once

#include "vggfast/conv.h"

namespace vggfast::cuda::sm90 {

/// How steps walk over the pixels (walk.h), and how many blocks share those of a tile of gw.
struct WgradPlan {
  int rows, phases, abreast, images;  // of a step: rows x abreast x images pixels, `phases` columns apart
  int64_t steps;                      // over all
  int splits;
};
WgradPlan plan_wgrad(const Tensor& x, int64_t cout);

/// gz: the sums' gradient, a map like x. partial (splits x cout x 9 cin) and, unless null, partial_bias (splits x cout)
/// are left to reduce_wgrad. Where steps overhang an image, x at its edge meets zeros beyond it: a NaN or an
/// infinity there reaches taps, too, that do not see its pixel.
void run_wgrad(const Tensor& x, const Tensor& gz, const WgradPlan& plan, float* partial, float* partial_bias,
               const Context& context);

}  // namespace vggfast::cuda::sm90
