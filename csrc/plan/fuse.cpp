#include <algorithm>
#include <iterator>

#include "plan/plan.h"

namespace vggfast::plan {
namespace {

/// Whether the network begins with the layers of block 1, and the caller asks for no output within it.
bool begins_with_block1(const std::vector<Layer>& layers, const std::vector<int64_t>& outputs) {
  constexpr Kind block[] = {Kind::conv, Kind::relu, Kind::conv, Kind::relu, Kind::max_pool};
  const auto same = [](Kind kind, const Layer& layer) { return kind == layer.kind; };
  return layers.size() >= std::size(block) && outputs.front() + 1 >= static_cast<int64_t>(std::size(block)) &&
         std::equal(std::begin(block), std::end(block), layers.begin(), same) && !layers[4].ceil_mode;
}

}  // namespace

std::vector<Step> fuse(const std::vector<Layer>& layers, const std::vector<int64_t>& outputs, bool block1) {
  check_outputs(layers, outputs);
  std::vector<Step> steps;
  const size_t count = static_cast<size_t>(outputs.back()) + 1;
  size_t first = 0;
  if (block1 && begins_with_block1(layers, outputs)) {
    steps.push_back({.first = 0, .last = 4, .relu = true, .pool = true, .block1 = true});
    first = 5;
  }
  for (; first < count; first = steps.back().last + 1) {
    Step step{.first = first, .last = first};
    const auto takes = [&](Kind kind) {
      const size_t next = step.last + 1;
      return next < count && layers[next].kind == kind && !layers[next].ceil_mode &&
             !std::binary_search(outputs.begin(), outputs.end(), static_cast<int64_t>(step.last));
    };
    const Layer& layer = layers[first];
    step.relu = (layer.kind == Kind::conv || layer.kind == Kind::linear) && takes(Kind::relu);
    step.last += step.relu;
    step.pool = layer.kind == Kind::conv && layer.fuses_pool && takes(Kind::max_pool);
    step.last += step.pool;
    steps.push_back(step);
  }
  return steps;
}

}  // namespace vggfast::plan
