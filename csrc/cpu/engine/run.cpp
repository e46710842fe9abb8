#include "cpu/engine/run.h"

#include <algorithm>

#include "cpu/algorithms/quantise.h"
#include "cpu/algorithms/stem.h"
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

constexpr int64_t group_bytes = 60 << 20;   // of activations that a step may move before the next one begins
constexpr int64_t rounded_bytes = 8 << 20;  // of a float output that are made before they are rounded to 8 bits
constexpr size_t alignment = 64;

size_t aligned(size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

Tensor nhwc_tensor(const float* data, const Extent& s) {
  return {
      const_cast<float*>(data), DType::f32, Device::cpu, {s.n, s.c, s.h, s.w}, {s.h * s.w * s.c, 1, s.w * s.c, s.c}};
}

int64_t values_of(const Extent& e) { return e.n * e.h * e.w * e.c; }

/// Bytes of a map in blocks with what is read past its end.
size_t blocked_bytes(const Extent& e, DType dtype) {
  return dtype == DType::u8 ? cpu::blocked_bytes<uint8_t>(e) : cpu::blocked_bytes<Bf16>(e);
}

plan::BlockedRoom blocked_room(const plan::Shape& shape, DType dtype) {
  const Extent one{1, shape.h, shape.w, shape.c}, none{0, shape.h, shape.w, shape.c};
  const size_t beyond = blocked_bytes(none, dtype);
  return {blocked_bytes(one, dtype) - beyond, beyond};
}

/// An activation, or as much of it as one group of images has.
struct Part {
  Extent extent;
  bool rows;
  DType dtype;
  bool blocked;
  std::byte* data;

  int64_t values() const { return values_of(extent); }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
  /// So many of its images.
  Part images(int64_t first, int64_t count) const {
    const Extent some{count, extent.h, extent.w, extent.c}, before{first, some.h, some.w, some.c};
    const size_t bytes = blocked
                             ? blocked_room({1, some.h, some.w, some.c}, dtype).image_bytes * static_cast<size_t>(first)
                             : static_cast<size_t>(values_of(before)) * size_of(dtype);
    return {some, rows, dtype, blocked, data + bytes};
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

/// The two convolutions of block 1.
std::pair<cpu::ConvProblem, cpu::ConvProblem> block1_of(const std::vector<Packed>& packed, const Step& step,
                                                        const Extent& in, bool blocked_out, int threads) {
  const Packed &first = packed[step.first], &second = packed[step.first + 2];
  const Extent between{in.n, in.h, in.w, first.conv.problem.cout};
  return {problem_of(first, step, in, false, true, threads),
          problem_of(second, step, between, true, blocked_out, threads)};
}

/// Bytes of one of the two float copies that a layer without a kernel for bfloat16 works on.
size_t copy_bytes(const Activation& source, const Activation& target, int64_t images) {
  const int64_t values = std::max(source.shape.values() / source.shape.n, target.shape.values() / target.shape.n);
  return aligned(sizeof(float) * static_cast<size_t>(values * images));
}

/// How many images' float output a step makes before it rounds them to 8 bits; of rows, all.
int64_t rounded_at_a_time(const Extent& out, bool rows) {
  const int64_t image = values_of({1, out.h, out.w, out.c}) * static_cast<int64_t>(sizeof(float));
  return rows ? out.n : std::clamp<int64_t>(rounded_bytes / std::max<int64_t>(image, 1), 1, out.n);
}

size_t float_bytes(const Extent& e) { return aligned(sizeof(float) * static_cast<size_t>(values_of(e))); }

/// Bytes of a layer's input as it takes it.
size_t rounded_bytes_of(const cpu::Int8Layer& layer, const Extent& in) {
  return aligned(layer.takes_blocks() ? cpu::blocked_bytes<uint8_t>(in) : static_cast<size_t>(values_of(in)));
}

/// Scratch memory of a conv or linear step: for 8 bits, its input rounded, or its output before that.
size_t scratch_of(const Packed& layer, const Step& step, const Extent& in, const Activation& source,
                  const Activation& target, int threads) {
  if (layer.int8) {
    const size_t rounded = source.dtype == DType::u8 ? 0 : rounded_bytes_of(*layer.int8, in);
    return rounded + (source.shape.rows ? layer.int8->linear_workspace(in.n, threads)
                                        : layer.int8->conv_workspace(in, step.pool, threads));
  }
  const bool rounds = target.dtype == DType::u8;
  const auto workspace = [&](int64_t images) {
    const Extent some{images, in.h, in.w, in.c};
    return layer.conv.algorithm->workspace_bytes(
        problem_of(layer, step, some, source.blocked, target.blocked && !rounds, threads));
  };
  if (!rounds) return workspace(in.n);
  if (layer.conv.algorithm == &cpu::stem_conv) {
    return cpu::stem_u8_workspace(problem_of(layer, step, in, false, target.blocked, threads));
  }
  const Extent out = extent_of(target, in.n);
  const int64_t images = rounded_at_a_time(out, source.shape.rows);
  return float_bytes({images, out.h, out.w, out.c}) + std::max(workspace(images), workspace(in.n % images));
}

/// One plan's run with maps of type S.
template <class S>
class Runner {
 public:
  using Outputs = std::vector<std::pair<int64_t, Tensor>>;

  Runner(const Run& run, const Tensor& x, const Outputs& outputs) : run_(run), x_(x), outputs_(outputs) {}

  void operator()() const {
    load_images(x_, part(0, 0, x_.size(0)).template as<S>(), run_.threads);
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
    return {extent_of(a, images), a.shape.rows, a.dtype, a.blocked, data};
  }

  void copy_out(const Activation& a, int64_t first, const Part& part) const {
    if (a.output < 0 || !a.in_arena) return;
    float* output = outputs_[static_cast<size_t>(a.output)].second.template as<float>();
    output += a.shape.values() / x_.size(0) * first;
    if (part.blocked) return unblock(cpu::blocked_map<Bf16>(part.data, part.extent), part.extent, output, run_.threads);
    cpu::kernels().to_float(part.as<Bf16>(), part.values(), output);
  }

  void run_step(const Step& step, const Part& from, const Part& to) const {
    if (step.block1) return block1(step, from, to);
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
    if (run_.packed[step.first].int8) return quantised(step, from, to);
    if (to.dtype != DType::u8) return conv(step, from, to, scratch(step));
    const Packed& layer = run_.packed[step.first];
    if (layer.conv.algorithm == &cpu::stem_conv) {
      return cpu::run_stem_u8(problem_of(layer, step, from.extent, false, to.blocked, run_.threads),
                              call_of(step, from, to, scratch(step)), layer.target_inverse);
    }
    const int64_t most = rounded_at_a_time(to.extent, to.rows);
    for (int64_t first = 0; first < to.extent.n; first += most) {
      const int64_t images = std::min(most, to.extent.n - first);
      const Part x = from.images(first, images), y = to.images(first, images);
      const Part floats{y.extent, y.rows, DType::f32, false, scratch(step)};
      conv(step, x, floats, scratch(step) + float_bytes(y.extent));
      cpu::quantise(floats.as<float>(), y.extent, layer.target_inverse, y.as<uint8_t>(), y.blocked, run_.threads);
    }
  }
  void conv(const Step& step, const Part& from, const Part& to, std::byte* workspace) const {
    const Packed& layer = run_.packed[step.first];
    layer.conv.algorithm->run(problem_of(layer, step, from.extent, from.blocked, to.blocked, run_.threads),
                              call_of(step, from, to, workspace));
  }
  cpu::ConvCall call_of(const Step& step, const Part& from, const Part& to, std::byte* workspace) const {
    const Extent& out = to.extent;
    return {.in = {.data = from.data, .extent = from.extent},
            .packed = run_.packed[step.first].weights.template as<void>(),
            .out = {.y = to.data, .h = out.h, .w = out.w, .c = out.c, .relu = step.relu, .pool = step.pool},
            .workspace = workspace};
  }

  void quantised(const Step& step, const Part& from, const Part& to) const {
    const Packed& layer = run_.packed[step.first];
    std::byte* workspace = scratch(step);
    const auto* x = from.as<uint8_t>();
    if (from.dtype != DType::u8) {
      auto* const rounded = reinterpret_cast<uint8_t*>(workspace);
      workspace += rounded_bytes_of(*layer.int8, from.extent);
      cpu::quantise(from.as<float>(), from.extent, layer.source_inverse, rounded, layer.int8->takes_blocks(),
                    run_.threads);
      x = rounded;
    }
    const Extent& out = to.extent;
    const cpu::Int8Output y{.y = to.data,
                            .h = out.h,
                            .w = out.w,
                            .c = out.c,
                            .relu = step.relu,
                            .pool = step.pool,
                            .inverse = to.dtype == DType::u8 ? layer.target_inverse : 0,
                            .blocked = to.blocked};
    const void* packed = layer.weights.template as<void>();
    if (from.rows) return layer.int8->linear(x, from.extent.n, packed, y, workspace, run_.threads);
    layer.int8->conv(x, from.extent, packed, y, workspace, run_.threads);
  }

  void block1(const Step& step, const Part& from, const Part& to) const {
    const auto [first, second] = block1_of(run_.packed, step, from.extent, to.blocked, run_.threads);
    const Extent& out = to.extent;
    cpu::run_tile_block1(first,
                         {.in = {.data = from.data, .extent = from.extent},
                          .packed = run_.packed[step.first].weights.template as<void>(),
                          .out = {}},
                         second,
                         {.in = {},
                          .packed = run_.packed[step.first + 2].weights.template as<void>(),
                          .out = {.y = to.data, .h = out.h, .w = out.w, .c = out.c, .relu = true, .pool = true},
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
    const Part x{from.extent, false, DType::f32, false, copies};
    const Part y{to.extent, false, DType::f32, false, copies + step.scratch_bytes / 2};
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
  plan.pack(view_of<float>(weight), bias ? bias->as<float>() : nullptr, packed.as<void>());
  return packed;
}

Buffer pack(const cpu::Int8Layer& layer, const Tensor& weight, const Tensor* bias, const Tensor& unit, int threads) {
  Buffer packed(layer.packed_bytes());
  layer.pack(view_of<int8_t>(weight), unit.as<float>(), bias ? bias->as<float>() : nullptr, packed.as<void>(), threads);
  return packed;
}

plan::Backend backend(const std::vector<plan::Layer>& layers, const std::vector<Packed>& packed, bool bf16,
                      int threads) {
  const auto scratch = [&layers, &packed, threads](const Step& step, const Activation& source, const Activation& target,
                                                   int64_t images) -> size_t {
    const Kind kind = layers[step.first].kind;
    if (step.block1) {
      const auto [first, second] = block1_of(packed, step, extent_of(source, images), target.blocked, threads);
      return cpu::tile_block1_bytes(first, second);
    }
    if (kind == Kind::conv || kind == Kind::linear) {
      return scratch_of(packed[step.first], step, extent_of(source, images), source, target, threads);
    }
    const bool copies = source.dtype == DType::bf16 && target.dtype == DType::bf16;
    return copies ? 2 * copy_bytes(source, target, images) : 0;
  };
  const bool block1 = packed.size() > 2 && packed[0].conv.algorithm == &cpu::tiles_stem_conv &&
                      packed[2].conv.algorithm == &cpu::tiles_conv;
  return {.map = bf16 ? DType::bf16 : DType::f32,
          .rows = DType::f32,
          .alignment = alignment,
          .keeps_outputs = false,
          .block1 = block1,
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
