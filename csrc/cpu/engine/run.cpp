#include "cpu/engine/run.h"

#include <algorithm>

#include "cpu/algorithms/choose.h"
#include "cpu/algorithms/direct.h"
#include "cpu/algorithms/stem.h"
#include "cpu/algorithms/winograd.h"
#include "cpu/engine/edges.h"
#include "vggfast/pool.h"

namespace vggfast::engine {
namespace {

using cpu::Bf16;
using cpu::ConvInput;
using cpu::ConvOutput;
using cpu::Extent;
using cpu::WeightView;
using plan::Activation;
using plan::Kind;
using plan::Stage;
using plan::Step;

constexpr int64_t group_bytes = 60 << 20;  // of activations that a step may move before the next one begins
constexpr size_t alignment = 64;

size_t aligned(size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

WeightView<float> view_of(const Tensor& w) {
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
  bool rows;
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
    if (a.whole) data += static_cast<size_t>(offset_of(a, first)) * size_of(a.dtype);
    return {extent_of(a, images), a.shape.rows, data};
  }
  int64_t offset_of(const Activation& a, int64_t image) const { return a.shape.values() / x_.size(0) * image; }

  void copy_out(const Activation& a, int64_t first, const Part& part) const {
    if (a.output < 0 || !a.in_arena) return;
    float* output = outputs_[static_cast<size_t>(a.output)].second.template as<float>() + offset_of(a, first);
    cpu::kernels().to_float(part.as<Bf16>(), part.values(), output);
  }

  void run_step(const Step& step, const Part& from, const Part& to) const {
    const plan::Layer& layer = run_.layers[step.first];
    switch (layer.kind) {
      case Kind::conv:
        return conv(step, from, to);
      case Kind::flatten:
        return flatten(from.as<S>(), from.extent, layer.size, to.as<float>(), run_.threads);
      case Kind::windows:
        return windows(from.as<S>(), from.extent, layer.size, to.as<float>(), run_.threads);
      case Kind::linear:
        return linear(step, from, to);
      case Kind::row_mean:
        return row_mean(from.as<float>(), from.extent, to.extent.n, to.as<float>());
      default:
        return from.rows || sizeof(S) == sizeof(float) ? in_float(step, from, to) : through_float(step, from, to);
    }
  }

  void conv(const Step& step, const Part& from, const Part& to) const {
    const Packed& layer = run_.packed[step.first];
    const float* packed = layer.weights.template as<float>();
    const Extent &in = from.extent, &out = to.extent;
    const ConvInput<S> input{.data = from.as<S>(), .extent = in};
    const ConvOutput<S> output{
        .y = to.as<S>(), .h = out.h, .w = out.w, .c = out.c, .relu = step.relu, .pool = step.pool};
    if (layer.algorithm == cpu::stem) {
      cpu::Stem(out.c).fprop(input, packed, output, scratch(step), run_.threads);
    } else if (layer.algorithm != cpu::direct) {
      cpu::Winograd(layer.algorithm, in.c, out.c).fprop(input, packed, output, scratch(step), run_.threads);
    } else if constexpr (sizeof(S) == sizeof(float)) {
      cpu::Direct<float>(in.c, out.c, layer.kernel).fprop(input, packed, output, run_.threads);
    }
  }

  void linear(const Step& step, const Part& from, const Part& to) const {
    const Packed& layer = run_.packed[step.first];
    const cpu::Winograd winograd(1, from.extent.c, to.extent.c);
    const ConvInput<float> input{.data = from.as<float>(), .extent = from.extent};
    const ConvOutput<float> output{.y = to.as<float>(), .h = 1, .w = 1, .c = to.extent.c, .relu = step.relu};
    if (layer.bf16_weights) {
      const Bf16* weights = layer.weights.template as<Bf16>();
      const float* bias = reinterpret_cast<const float*>(weights + winograd.weight_values());
      winograd.fprop(input, weights, bias, output, scratch(step), run_.threads);
    } else {
      winograd.fprop(input, layer.weights.template as<float>(), output, scratch(step), run_.threads);
    }
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
    std::byte* copies = reinterpret_cast<std::byte*>(scratch(step));
    const Part x{from.extent, false, copies}, y{to.extent, false, copies + step.scratch_bytes / 2};
    cpu::kernels().to_float(from.as<Bf16>(), from.values(), x.as<float>());
    in_float(step, x, y);
    cpu::kernels().to_bf16(y.as<float>(), to.values(), to.as<Bf16>());
  }

  float* scratch(const Step& step) const {
    return reinterpret_cast<float*>(run_.arena.template as<std::byte>() + step.scratch_offset);
  }

  const Run& run_;
  const Tensor& x_;
  const Outputs& outputs_;
};

}  // namespace

void pack(Packed& layer, const Tensor& given, const Tensor* given_bias, int threads) {
  const WeightView<float> weight = view_of(given);
  const float* bias = given_bias ? given_bias->as<float>() : nullptr;
  const auto packed_by = [&](const auto& way) {
    Buffer buffer(sizeof(float) * static_cast<size_t>(way.packed_values()));
    way.pack(weight, bias, buffer.as<float>(), threads);
    return buffer;
  };
  if (layer.algorithm == cpu::stem) {
    layer.weights = packed_by(cpu::Stem(weight.out));
  } else if (layer.algorithm == cpu::direct) {
    layer.weights = packed_by(cpu::Direct<float>(weight.in, weight.out, weight.kernel));
  } else {
    const cpu::Winograd winograd(layer.algorithm, weight.in, weight.out);
    layer.weights = packed_by(winograd);
    if (!layer.bf16_weights) return;
    const int64_t weights = winograd.weight_values(), biases = winograd.packed_values() - weights;
    Buffer half(sizeof(Bf16) * static_cast<size_t>(weights) + sizeof(float) * static_cast<size_t>(biases));
    cpu::kernels().to_bf16(layer.weights.as<float>(), weights, half.as<Bf16>());
    std::copy_n(layer.weights.as<float>() + weights, biases, reinterpret_cast<float*>(half.as<Bf16>() + weights));
    layer.weights = std::move(half);
  }
}

plan::Backend backend(const std::vector<plan::Layer>& layers, const std::vector<Packed>& packed, bool bf16,
                      int threads) {
  const auto scratch = [&layers, &packed, threads](const Step& step, const Activation& source, const Activation& target,
                                                   int64_t images) -> size_t {
    const plan::Layer& layer = layers[step.first];
    const int algorithm = packed[step.first].algorithm;
    const Extent in = extent_of(source, images);
    if (layer.kind == Kind::conv || layer.kind == Kind::linear) {
      if (algorithm == cpu::direct) return 0;
      const int64_t values = algorithm == cpu::stem
                                 ? cpu::Stem(layer.channels).scratch_values(in, threads)
                                 : cpu::Winograd(algorithm, in.c, layer.channels).scratch_values(in, threads);
      return sizeof(float) * static_cast<size_t>(values);
    }
    const bool copies = source.dtype == DType::bf16 && target.dtype == DType::bf16;
    return copies ? 2 * copy_bytes(source, target, images) : 0;
  };
  return {.map = bf16 ? DType::bf16 : DType::f32,
          .rows = DType::f32,
          .alignment = alignment,
          .keeps_outputs = false,
          .group_bytes = group_bytes,
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
