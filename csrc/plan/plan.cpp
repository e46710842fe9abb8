#include "plan/plan.h"

#include <algorithm>
#include <functional>

#include "vggfast/error.h"
#include "vggfast/pool.h"

namespace vggfast::plan {
namespace {

/// What a step's output is kept in.
DType dtype_after(const Layer& layer, const Activation& source, bool output, const Backend& backend) {
  switch (layer.kind) {
    case Kind::conv:
      return output ? backend.map : layer.leaves.value_or(backend.map);
    case Kind::linear:
      return output ? backend.rows : layer.leaves.value_or(backend.rows);
    case Kind::flatten:
    case Kind::windows:
      return backend.rows;
    case Kind::row_mean:
      return DType::f32;
    default:
      return source.dtype;
  }
}

/// What an activation's memory is, its shape and dtype being known.
void set_room(Activation& a, int64_t images, const Backend& backend) {
  if (a.blocked) {
    const BlockedRoom room = backend.blocked_room(a.shape, a.dtype);
    a.image_bytes = room.image_bytes;
    a.beyond_bytes = room.beyond_bytes;
  } else {
    a.image_bytes = static_cast<size_t>(a.shape.values() / std::max<int64_t>(images, 1)) * size_of(a.dtype);
  }
}

/// The steps' activations, without their places.
std::vector<Activation> activations_of(const std::vector<Step>& steps, const std::vector<Layer>& layers,
                                       const Shape& images, const std::vector<int64_t>& outputs,
                                       const Backend& backend) {
  std::vector<Activation> activations{{.shape = images, .dtype = backend.map}};
  set_room(activations.front(), images.n, backend);
  for (size_t s = 0; s < steps.size(); ++s) {
    const Step& step = steps[s];
    const Activation& source = activations.back();
    Activation target{.shape = source.shape, .dtype = source.dtype};
    for (size_t i = step.first; i <= step.last; ++i) target.shape = shape_after(layers[i], target.shape, images.n);
    const auto found = std::find(outputs.begin(), outputs.end(), static_cast<int64_t>(step.last));
    target.output = found == outputs.end() ? -1 : static_cast<int>(found - outputs.begin());
    const Layer& last_conv = layers[step.block1 ? step.first + 2 : step.first];
    target.dtype = dtype_after(last_conv, source, target.output >= 0, backend);
    target.in_arena = target.output < 0 || backend.keeps_outputs || target.dtype != DType::f32;
    target.blocked = last_conv.makes_blocks && target.dtype == last_conv.leaves.value_or(backend.map) &&
                     s + 1 < steps.size() && layers[steps[s + 1].first].takes_blocks;
    set_room(target, images.n, backend);
    activations.push_back(target);
  }
  return activations;
}

/// How many images a step may take at a time.
int64_t group_of(const Activation& source, const Activation& target, int64_t images, const Backend& backend) {
  if (target.shape.rows) return images;  // the FC layers' weights are read once for all
  const auto bytes = static_cast<int64_t>(source.image_bytes + target.image_bytes);
  return std::clamp<int64_t>(backend.group_bytes / std::max<int64_t>(bytes, 1), 1, images);
}

/// A stage ends where the resolution changes, and where rows begin. Steps that take the whole batch at a time are
/// stages of their own: then an activation's memory is free again as soon as the next step has read it.
std::vector<Stage> cut(const std::vector<Activation>& activations, const Backend& backend) {
  std::vector<Stage> stages;
  const int64_t images = activations.front().shape.n;
  const size_t count = activations.size() - 1;
  for (size_t begin = 0, end; begin < count; begin = end) {
    int64_t group = images;
    for (end = begin; end < count; ++end) {
      const Activation &source = activations[end], &target = activations[end + 1];
      if (end > begin && (target.shape.rows || source.shape.h != activations[end - 1].shape.h)) break;
      group = std::min(group, group_of(source, target, images, backend));
    }
    if (group < images) {
      stages.push_back({begin, end, group});
    } else {
      for (size_t step = begin; step < end; ++step) stages.push_back({step, step + 1, images});
    }
  }
  return stages;
}

/// Whether a step writes over its input, or leaves it where it is as what it makes of it.
bool runs_in_place(const Layer& layer, const Activation& source, const Activation& target) {
  if (source.output >= 0 || !target.in_arena || source.dtype != target.dtype) return false;
  if (layer.kind == Kind::relu) return true;
  return layer.nhwc_rows && source.shape.h == layer.size && source.shape.w == layer.size;
}

}  // namespace

void check_outputs(const std::vector<Layer>& layers, const std::vector<int64_t>& outputs) {
  const auto count = static_cast<int64_t>(layers.size());
  const bool ascending = std::adjacent_find(outputs.begin(), outputs.end(), std::greater_equal<>()) == outputs.end();
  VGGFAST_CHECK(!outputs.empty() && ascending && outputs.front() >= 0 && outputs.back() < count,
                "outputs must be one or more numbers of the ", count, " layers, ascending, got ", describe(outputs));
}

Shape shape_after(const Layer& layer, const Shape& in, int64_t images) {
  const bool takes_rows = layer.kind == Kind::linear || layer.kind == Kind::row_mean;
  VGGFAST_CHECK(layer.kind == Kind::relu || in.rows == takes_rows, "a layer that reads ", takes_rows ? "rows" : "maps",
                " must follow one that makes them");
  check_extents({in.n, in.h, in.w, std::max(in.c, layer.channels), layer.size, layer.size}, "an activation");
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
      return {in.n, 1, 1, in.c * layer.size * layer.size, true};
    case Kind::windows:
      VGGFAST_CHECK(in.h >= layer.size && in.w >= layer.size, "x is too small: the head needs at least ", layer.size,
                    " x ", layer.size, " places, got ", in.h, " x ", in.w);
      return {in.n * (in.h - layer.size + 1) * (in.w - layer.size + 1), 1, 1, in.c * layer.size * layer.size, true};
    case Kind::linear:
      VGGFAST_CHECK(layer.cin == in.c, "the head needs rows of ", layer.cin, " values, got ", in.c);
      return {in.n, 1, 1, layer.channels, true};
    case Kind::row_mean:
      return {images, 1, 1, in.c, true};
    default:
      return in;
  }
}

std::vector<Shape> output_shapes(const std::vector<Layer>& layers, const Shape& images,
                                 const std::vector<int64_t>& outputs) {
  check_outputs(layers, outputs);
  std::vector<Shape> shapes;
  Shape shape = images;
  for (int64_t i = 0; i <= outputs.back(); ++i) {
    shape = shape_after(layers[static_cast<size_t>(i)], shape, images.n);
    if (std::binary_search(outputs.begin(), outputs.end(), i)) shapes.push_back(shape);
  }
  return shapes;
}

Plan make_plan(const std::vector<Layer>& layers, const Shape& images, const std::vector<int64_t>& outputs,
               const Backend& backend) {
  Plan plan;
  plan.steps = fuse(layers, outputs, backend.block1);
  plan.activations = activations_of(plan.steps, layers, images, outputs, backend);
  if (images.n == 0) return plan;
  plan.stages = cut(plan.activations, backend);
  for (const Stage& stage : plan.stages) {
    for (size_t s = stage.begin; s < stage.end; ++s) {
      Step& step = plan.steps[s];
      const Activation& source = plan.activations[s];
      Activation& target = plan.activations[s + 1];
      target.whole = s + 1 == stage.end || !target.in_arena || (target.output >= 0 && backend.keeps_outputs);
      step.in_place = stage.end - stage.begin == 1 && runs_in_place(layers[step.first], source, target);
      // The last group may be smaller, be cut into tasks in another way, and so take more.
      for (int64_t group : {stage.images, images.n % stage.images}) {
        if (group > 0) step.scratch_bytes = std::max(step.scratch_bytes, backend.scratch(step, source, target, group));
      }
    }
  }
  lay_out(plan, backend);
  return plan;
}

}  // namespace vggfast::plan
