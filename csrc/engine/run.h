// Running a plan: the steps' kernels on the parts of the arena.
#pragma once

#include <utility>

#include "engine/plan.h"
#include "vggfast/engine.h"

namespace vggfast::engine {

/// Packs a conv or FC layer's weights for `algorithm` (FC: 1), unless they are.
void pack_layer(Layer& layer, int algorithm, bool bf16_weights, int threads);

void run_plan(const std::vector<Layer>& layers, const Plan& plan, EngineOptions options, const Buffer& arena,
              const Tensor& x, const std::vector<std::pair<int64_t, Tensor>>& outputs, int threads);

}  // namespace vggfast::engine
