// Running a plan: the steps' kernels on the parts of the arena.
#pragma once

#include <utility>

#include "engine/plan.h"
#include "vggfast/tensor.h"

namespace vggfast::engine {

/// Packs a conv or FC layer's weights, (Cout, Cin, K, K) or (Cout, Cin), and bias (or null) as the layer says.
void pack_layer(Layer& layer, const Tensor& weight, const Tensor* bias, int threads);

void run_plan(const std::vector<Layer>& layers, const Plan& plan, bool bf16, const Buffer& arena, const Tensor& x,
              const std::vector<std::pair<int64_t, Tensor>>& outputs, int threads);

}  // namespace vggfast::engine
