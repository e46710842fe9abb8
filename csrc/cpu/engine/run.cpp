#include "cpu/engine/run.h"

#include <algorithm>

#include "cpu/engine/edges.h"
#include "vggfast/pool.h"

namespace vggfast::engine {
namespace {

using cpu::Bf16;
using cpu::Extent;
using plan::Activation;
using plan::Kind;
using plan::Stage;
using plan::Step;

constexpr int64_t group_bytes = 60 << 20;  // of activations that a step may move before the next one begins
constexpr size_t alignment = 64;

size_t aligned(size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

cpu::WeightView<float> view_of(const Tensor& w) {
  if (w.dim() == 2) return {w.as<float>(), w.size(0), w.size(1), 1, w.stride(0), w.stride(1), 0, 0};
  return {w.as<float>(), w.size(0), w.size(1), w.size(2), w.stride(0), w.stride(1), w.stride(2), w.stride(3)};
}

Tensor nhwc_tensor(const float* data, const Extent& s) {
  return {
      const_cast<float*>(data), DType::f32, Device::cpu, {s.n, s.c, s.h, s.w}, {s.h * s.w * s.c, 1, s.w * s.c, s.c}};
}

/// An activation, or as much of it as one group of images has.
struct Part {
  Extent extent;
  bool rows, blocked;
  std::byte* data;

  int64_t values() const { return extent.n * extent.h * extent.w * extent.c; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
};

/// Of so many images; rows are of the whole batch.
Extent extent_of(const Activation& a, int64_t images) {
  return {a.shape.rows ? a.shape.n : images, a.shape.h, a.shape.w, a.shape.c};
}

/// What a step computes by a layer's weights for an input of this extent.
cpu::ConvProblem problem_of(const Packed& layer, const Step& step, const Extent& in, bool blocked_in, bool blocked_out,
                            int threads) {
  cpu::ConvProblem problem = layer.conv.problem;
  problem.in = in;
  problem.epilogue = {step.relu, step.pool};
  problem.blocked_in = blocked_in;
  problem.blocked_out = blocked_out;
  problem.threads = threads;
  return problem;
}

plan::BlockedRoom blocked_room(const plan::Shape& shape) {
  const Extent one{1, shape.h, shape.w, shape.c}, none{0, shape.h, shape.w, shape.c};
  const size_t beyond = cpu::blocked_bytes(none);
  return {cpu::blocked_bytes(one) - beyond, beyond};
}

/// Bytes of one of the two float copies that a layer without a kernel for bfloat16 works on.
size_t copy_bytes(const Activation& source, const Activation& target, int64_t images) {
  const int64_t values = std::max(source.shape.values() / source.shape.n, target.shape.values() / target.shape.n);
  return aligned(sizeof(float) * static_cast<size_t>(values * images));
}

/// One plan's run with maps of type S.
template <class S>
class Runner {
 public:
  using Outputs = std::vector<std::pair<int64_t, Tensor>>;

  Runner(const Run& run, const Tensor& x, const Outputs& outputs) : run_(run), x_(x), outputs_(outputs) {}

  void operator()() const {
    load(part(0, 0, x_.size(0)));
    for (const Stage& stage : run_.plan.stages) {
      for (int64_t first = 0; first < x_.size(0); first += stage.images) {
        const int64_t images = std::min(stage.images, x_.size(0) - first);
        for (size_t s = stage.begin; s < stage.end; ++s) {
          const Part to = part(s + 1, first, images);
          run_step(run_.plan.steps[s], part(s, first, images), to);
          copy_out(run_.plan.activations[s + 1], first, to);
        }
      }
    }
  }

 private:
  /// Where `images` images of an activation lie, the batch's image number `first` and those after it.
  Part part(size_t number, int64_t first, int64_t images) const {
    const Activation& a = run_.plan.activations[number];
    std::byte* data = a.in_arena ? run_.arena.template as<std::byte>() + a.offset
                                 : outputs_[static_cast<size_t>(a.output)].second.template as<std::byte>();
    if (a.whole) data += a.image_bytes * static_cast<size_t>(first);
    return {extent_of(a, images), a.shape.rows, a.blocked, data};
  }

  void load(const Part& to) const {
    if (to.blocked) return load_images(x_, cpu::blocked_map(to.data, to.extent), run_.threads);
    load_images(x_, to.as<S>(), run_.threads);
  }

  void copy_out(const Activation& a, int64_t first, const Part& part) const {
    if (a.output < 0 || !a.in_arena) return;
    float* output = outputs_[static_cast<size_t>(a.output)].second.template as<float>();
    output += a.shape.values() / x_.size(0) * first;
    if (part.blocked) return unblock(cpu::blocked_map(part.data, part.extent), part.extent, output, run_.threads);
    cpu::kernels().to_float(part.as<Bf16>(), part.values(), output);
  }

  void run_step(const Step& step, const Part& from, const Part& to) const {
    const plan::Layer& layer = run_.layers[step.first];
    switch (layer.kind) {
      case Kind::conv:
      case Kind::linear:
        return conv(step, from, to);
      case Kind::flatten:
        return flatten(from.as<S>(), from.extent, layer.size, to.as<float>(), run_.threads);
      case Kind::windows:
        return windows(from.as<S>(), from.extent, layer.size, to.as<float>(), run_.threads);
      case Kind::row_mean:
        return row_mean(from.as<float>(), from.extent, to.extent.n, to.as<float>());
      default:
        return from.rows || sizeof(S) == sizeof(float) ? in_float(step, from, to) : through_float(step, from, to);
    }
  }

  void conv(const Step& step, const Part& from, const Part& to) const {
    const Packed& layer = run_.packed[step.first];
    const Extent& out = to.extent;
    layer.conv.algorithm->run(
        problem_of(layer, step, from.extent, from.blocked, to.blocked, run_.threads),
        {.in = {.data = from.data, .extent = from.extent},
         .packed = layer.weights.template as<void>(),
         .out = {.y = to.data, .h = out.h, .w = out.w, .c = out.c, .relu = step.relu, .pool = step.pool},
         .workspace = scratch(step)});
  }

  /// The layers that have kernels for float alone.
  void in_float(const Step& step, const Part& from, const Part& to) const {
    const Kind kind = run_.layers[step.first].kind;
    if (kind == Kind::relu) return relu(from.as<float>(), from.values(), to.as<float>(), run_.threads);
    const Tensor x = nhwc_tensor(from.as<float>(), from.extent), y = nhwc_tensor(to.as<float>(), to.extent);
    if (kind == Kind::lrn) return lrn_fprop(x, run_.packed[step.first].lrn, y, {run_.threads});
    max_pool2x2(x, y, nullptr, {run_.threads});
  }

  /// The same for maps in bfloat16.
  void through_float(const Step& step, const Part& from, const Part& to) const {
    std::byte* copies = scratch(step);
    const Part x{from.extent, false, false, copies}, y{to.extent, false, false, copies + step.scratch_bytes / 2};
    cpu::kernels().to_float(from.as<Bf16>(), from.values(), x.as<float>());
    in_float(step, x, y);
    cpu::kernels().to_bf16(y.as<float>(), to.values(), to.as<Bf16>());
  }

  std::byte* scratch(const Step& step) const { return run_.arena.template as<std::byte>() + step.scratch_offset; }

  const Run& run_;
  const Tensor& x_;
  const Outputs& outputs_;
};

}  // namespace

Buffer pack(const cpu::ConvPlan& plan, const Tensor& weight, const Tensor* bias) {
  Buffer packed(plan.packed_bytes);
  plan.pack(view_of(weight), bias ? bias->as<float>() : nullptr, packed.as<void>());
  return packed;
}

plan::Backend backend(const std::vector<plan::Layer>& layers, const std::vector<Packed>& packed, bool bf16,
                      int threads) {
  const auto scratch = [&layers, &packed, threads](const Step& step, const Activation& source, const Activation& target,
                                                   int64_t images) -> size_t {
    const Kind kind = layers[step.first].kind;
    if (kind == Kind::conv || kind == Kind::linear) {
      const Packed& layer = packed[step.first];
      return layer.conv.algorithm->workspace_bytes(
          problem_of(layer, step, extent_of(source, images), source.blocked, target.blocked, threads));
    }
    const bool copies = source.dtype == DType::bf16 && target.dtype == DType::bf16;
    return copies ? 2 * copy_bytes(source, target, images) : 0;
  };
  return {.map = bf16 ? DType::bf16 : DType::f32,
          .rows = DType::f32,
          .alignment = alignment,
          .keeps_outputs = false,
          .group_bytes = group_bytes,
          .blocked_room = blocked_room,
          .scratch = scratch};
}

void run_plan(const Run& run, bool bf16, const Tensor& x, const std::vector<std::pair<int64_t, Tensor>>& outputs) {
  if (bf16) {
    Runner<Bf16>(run, x, outputs)();
  } else {
    Runner<float>(run, x, outputs)();
  }
}

}  // namespace vggfast::engine
