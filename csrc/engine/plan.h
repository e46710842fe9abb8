// What an engine does for one shape of input: fused steps, cut into stages, and where their activations lie.
#pragma once

#include <vector>

#include "engine/layer.h"

namespace vggfast::engine {

/// One step: a layer and those fused into it, for a whole batch.
struct Step {
  size_t first, last;  // layers [first, last] of the engine
  Shape in, out;
  bool relu = false, pool = false;
  bool rows_in = false, rows_out = false;  // whether it reads and writes rows, which are float, or activations
  int output = -1;                         // the caller's output that this step writes, or none
};

/// Steps that run for `images` images at a time: what passes between them takes no more memory than that.
struct Stage {
  size_t begin, end;  // steps
  int64_t images;
};

struct Plan {
  std::vector<Step> steps;
  std::vector<Stage> stages;
  // Bytes of the arena's parts: a stage reads one of `whole` and writes the other, which hold whole batches; its steps
  // pass their activations through `inner`, which hold one group of images; then the scratch of the kernels.
  size_t whole[2] = {0, 0}, inner[2] = {0, 0}, scratch = 0;
  size_t bytes() const { return whole[0] + whole[1] + inner[0] + inner[1] + scratch; }
};

/// The shape that a layer makes of its input's. Throws Error where it cannot take it.
Shape shape_after(const Layer& layer, const Shape& in, int64_t images);

/// `outputs`: the layers whose outputs the caller wants, ascending. `value_bytes`: of an activation between layers.
Plan make_plan(const std::vector<Layer>& layers, const Shape& in, const std::vector<int64_t>& outputs,
               size_t value_bytes, int threads);

}  // namespace vggfast::engine
