#include "engine/plan.h"

#include <algorithm>

#include "cpu/algorithms/choose.h"
#include "cpu/algorithms/stem.h"
#include "cpu/algorithms/winograd.h"
#include "cpu/parallel.h"
#include "vggfast/error.h"
#include "vggfast/pool.h"

namespace vggfast::engine {
namespace {

constexpr int64_t group_bytes = 60 << 20;  // of activations that a step may move before the next one begins
constexpr size_t alignment = 64;

size_t aligned(size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

bool makes_rows(Kind kind) { return kind == Kind::flatten || kind == Kind::windows; }

/// The longest run of layers from `first` on that one step computes; none but its last is an output.
Step fuse(const std::vector<Layer>& layers, size_t first, const std::vector<int64_t>& outputs) {
  Step step{.first = first, .last = first, .in = {}, .out = {}};
  const auto next_is = [&](Kind kind) {
    return step.last + 1 < layers.size() && layers[step.last + 1].kind == kind &&
           !std::binary_search(outputs.begin(), outputs.end(), static_cast<int64_t>(step.last));
  };
  const Kind kind = layers[first].kind;
  if (kind != Kind::conv && kind != Kind::linear) return step;
  if (next_is(Kind::relu)) {
    step.relu = true;
    ++step.last;
  }
  step.pool = kind == Kind::conv && next_is(Kind::max_pool) && !layers[step.last + 1].ceil_mode;
  step.last += step.pool;
  return step;
}

size_t scratch_of(const Layer& layer, const Step& step, Shape in, int threads) {
  if (layer.kind == Kind::linear) {
    return sizeof(float) * static_cast<size_t>(cpu::Winograd(1, in.c, layer.channels).scratch_values(in, threads));
  }
  if (layer.kind == Kind::conv && layer.algorithm == cpu::stem) {
    return sizeof(float) * static_cast<size_t>(cpu::Stem(layer.channels).scratch_values(in, threads));
  }
  if (layer.kind == Kind::conv && layer.algorithm != cpu::direct) {
    const cpu::Winograd winograd(layer.algorithm, in.c, layer.channels);
    return sizeof(float) * static_cast<size_t>(winograd.scratch_values(in, threads));
  }
  // What has no bfloat16 kernel runs in float, on copies of its input and output.
  return 2 * aligned(sizeof(float) * static_cast<size_t>(std::max(values_of(in), values_of(step.out))));
}

/// A stage ends with each change of resolution, and where rows begin: they are computed for all images together.
std::vector<Stage> cut(const std::vector<Step>& steps, int64_t images, size_t value_bytes) {
  std::vector<Stage> stages;
  for (size_t i = 0; i < steps.size(); ++i) {
    const Step& step = steps[i];
    int64_t group = images;
    if (!step.rows_out) {
      const int64_t bytes = (values_of(step.in) + values_of(step.out)) / images * static_cast<int64_t>(value_bytes);
      group = std::clamp<int64_t>(group_bytes / std::max<int64_t>(bytes, 1), 1, images);
    }
    const bool begins = i == 0 || step.in.h != steps[i - 1].in.h || step.rows_out;
    if (begins) stages.push_back({i, i, images});
    stages.back().end = i + 1;
    stages.back().images = std::min(stages.back().images, group);
  }
  return stages;
}

}  // namespace

Shape shape_after(const Layer& layer, const Shape& in, int64_t images) {
  switch (layer.kind) {
    case Kind::conv:
      VGGFAST_CHECK(layer.cin == in.c, "x must have ", layer.cin, " channels, got ", in.c);
      return {in.n, in.h, in.w, layer.channels};
    case Kind::max_pool: {
      const Shape out{in.n, pooled(in.h, layer.ceil_mode), pooled(in.w, layer.ceil_mode), in.c};
      VGGFAST_CHECK(out.h > 0 && out.w > 0, "x is too small: a max-pool needs at least 2 x 2 pixels, got ", in.h, " x ",
                    in.w);
      return out;
    }
    case Kind::flatten:
      return {in.n, 1, 1, in.c * layer.size * layer.size};
    case Kind::windows:
      VGGFAST_CHECK(in.h >= layer.size && in.w >= layer.size, "x is too small: the head needs at least ", layer.size,
                    " x ", layer.size, " places, got ", in.h, " x ", in.w);
      return {in.n * (in.h - layer.size + 1) * (in.w - layer.size + 1), 1, 1, in.c * layer.size * layer.size};
    case Kind::linear:
      VGGFAST_CHECK(layer.cin == in.c, "the head needs rows of ", layer.cin, " values, got ", in.c);
      return {in.n, 1, 1, layer.channels};
    case Kind::row_mean:
      return {images, 1, 1, in.c};
    default:
      return in;
  }
}

Plan make_plan(const std::vector<Layer>& layers, const Shape& in, const std::vector<int64_t>& outputs,
               size_t value_bytes, int threads) {
  Plan plan;
  Shape shape = in;
  const size_t count = static_cast<size_t>(outputs.back()) + 1;
  for (size_t first = 0; first < count; first = plan.steps.back().last + 1) {
    Step step = fuse(layers, first, outputs);
    step.in = shape;
    step.rows_in = !plan.steps.empty() && plan.steps.back().rows_out;
    step.rows_out = step.rows_in || makes_rows(layers[first].kind);
    const Layer& layer = layers[first];
    if (step.pool && layer.algorithm == 1) {  // its tile is one pixel
      step.pool = false;
      --step.last;
    }
    for (size_t i = first; i <= step.last; ++i) shape = shape_after(layers[i], shape, in.n);
    step.out = shape;
    const auto found = std::find(outputs.begin(), outputs.end(), static_cast<int64_t>(step.last));
    if (found != outputs.end()) step.output = static_cast<int>(found - outputs.begin());
    plan.steps.push_back(step);
  }
  if (in.n == 0) return plan;

  plan.stages = cut(plan.steps, in.n, value_bytes);
  const auto bytes = [&](const Shape& s, size_t each) { return aligned(static_cast<size_t>(values_of(s)) * each); };
  plan.whole[0] = bytes(in, value_bytes);
  for (size_t i = 0; i < plan.stages.size(); ++i) {
    const Stage& stage = plan.stages[i];
    for (size_t s = stage.begin; s < stage.end; ++s) {
      const Step& step = plan.steps[s];
      const size_t each = step.rows_out ? sizeof(float) : value_bytes;
      Shape group_in = step.in, group_out = step.out;
      if (!step.rows_out) group_in.n = group_out.n = stage.images;
      size_t& room = s + 1 == stage.end ? plan.whole[(i + 1) % 2] : plan.inner[(s - stage.begin) % 2];
      room = std::max(room, bytes(s + 1 == stage.end ? step.out : group_out, each));
      // A last, smaller group may be cut into tasks in another way, and want more.
      for (int64_t images : {group_in.n, step.rows_out ? 0 : in.n % stage.images}) {
        group_in.n = images;
        if (images > 0)
          plan.scratch = std::max(plan.scratch, aligned(scratch_of(layers[step.first], step, group_in, threads)));
      }
    }
  }
  return plan;
}

}  // namespace vggfast::engine
