#include "engine/run.h"

#include <algorithm>

#include "cpu/algorithms/direct.h"
#include "cpu/algorithms/choose.h"
#include "cpu/algorithms/stem.h"
#include "cpu/algorithms/winograd.h"
#include "engine/edges.h"
#include "vggfast/pool.h"

namespace vggfast::engine {
namespace {

using cpu::Bf16;
using cpu::ConvInput;
using cpu::ConvOutput;
using cpu::WeightView;

WeightView<float> view_of(const Tensor& w) {
  if (w.dim() == 2) return {w.as<float>(), w.size(0), w.size(1), 1, w.stride(0), w.stride(1), 0, 0};
  return {w.as<float>(), w.size(0), w.size(1), w.size(2), w.stride(0), w.stride(1), w.stride(2), w.stride(3)};
}

Tensor nhwc_tensor(const float* data, const Shape& s) {
  return {
      const_cast<float*>(data), DType::f32, Device::cpu, {s.n, s.c, s.h, s.w}, {s.h * s.w * s.c, 1, s.w * s.c, s.c}};
}

/// One plan's run with activations of type S.
template <class S>
class Runner {
 public:
  Runner(const std::vector<Layer>& layers, const Plan& plan, const Buffer& arena, int threads)
      : layers_(layers), plan_(plan), threads_(threads) {
    std::byte* next = arena.as<std::byte>();
    for (auto [part, bytes] : {std::pair{&whole_[0], plan.whole[0]},
                               {&whole_[1], plan.whole[1]},
                               {&inner_[0], plan.inner[0]},
                               {&inner_[1], plan.inner[1]},
                               {&scratch_, plan.scratch}}) {
      *part = next;
      next += bytes;
    }
  }

  void run(const Tensor& x, const std::vector<std::pair<int64_t, Tensor>>& outputs) {
    load_images(x, reinterpret_cast<S*>(whole_[0]), threads_);
    const std::byte* from = whole_[0];
    for (size_t i = 0; i < plan_.stages.size(); ++i) {
      const Stage& stage = plan_.stages[i];
      const std::byte* written = nullptr;
      const int64_t images = x.size(0);
      for (int64_t image = 0; image < images; image += stage.images) {
        const std::byte* to = run_group(stage, from, whole_[(i + 1) % 2], image, images, outputs);
        if (image == 0) written = to;
      }
      from = written;
    }
  }

 private:
  /// The steps of a stage for the images from `image` on; returns where the last one's output lies.
  const std::byte* run_group(const Stage& stage, const std::byte* whole_in, std::byte* whole_out, int64_t image,
                             int64_t images, const std::vector<std::pair<int64_t, Tensor>>& outputs) {
    const std::byte* from = nullptr;
    for (size_t s = stage.begin; s < stage.end; ++s) {
      const Step& step = plan_.steps[s];
      const size_t in_each = step.rows_in ? sizeof(float) : sizeof(S);
      const size_t out_each = step.rows_out ? sizeof(float) : sizeof(S);
      Shape in = step.in, out = step.out;
      if (!step.rows_out) in.n = out.n = std::min(stage.images, images - image);
      const int64_t in_offset = values_of(step.in) / images * image, out_offset = values_of(step.out) / images * image;
      if (s == stage.begin) from = whole_in + static_cast<size_t>(in_offset) * in_each;
      std::byte* to =
          s + 1 == stage.end ? whole_out + static_cast<size_t>(out_offset) * out_each : inner_[(s - stage.begin) % 2];
      float* output = step.output < 0
                          ? nullptr
                          : outputs[static_cast<size_t>(step.output)].second.template as<float>() + out_offset;
      const bool direct = output && out_each == sizeof(float);
      if (direct) to = reinterpret_cast<std::byte*>(output);
      run_step(step, in, out, from, to);
      if (output && !direct) {
        cpu::kernels().to_float(reinterpret_cast<const Bf16*>(to), values_of(out), output);
      }
      from = to;
    }
    return from;
  }

  void run_step(const Step& step, const Shape& in, const Shape& out, const std::byte* from, std::byte* to) {
    const Layer& layer = layers_[step.first];
    const S* activation = reinterpret_cast<const S*>(from);
    float* rows = reinterpret_cast<float*>(to);
    switch (layer.kind) {
      case Kind::conv:
        return conv(step, in, out, activation, reinterpret_cast<S*>(to));
      case Kind::flatten:
        return flatten(activation, in, layer.size, rows, threads_);
      case Kind::windows:
        return windows(activation, in, layer.size, rows, threads_);
      case Kind::linear:
        return linear(step, in, reinterpret_cast<const float*>(from), rows);
      case Kind::row_mean:
        return row_mean(reinterpret_cast<const float*>(from), in, out.n, rows);
      default:
        if (step.rows_in) return relu(reinterpret_cast<const float*>(from), values_of(in), rows, threads_);
        return in_float(layer, in, out, activation, reinterpret_cast<S*>(to));
    }
  }

  void conv(const Step& step, const Shape& in, const Shape& out, const S* from, S* to) {
    const Layer& layer = layers_[step.first];
    const float* packed = layer.packed.template as<float>();
    const ConvInput<S> input{.data = from, .extent = in};
    const ConvOutput<S> output{.y = to, .h = out.h, .w = out.w, .c = out.c, .relu = step.relu, .pool = step.pool};
    float* scratch = reinterpret_cast<float*>(scratch_);
    if (layer.algorithm == cpu::stem) {
      cpu::Stem(out.c).fprop(input, packed, output, scratch, threads_);
    } else if (layer.algorithm != cpu::direct) {
      cpu::Winograd(layer.algorithm, in.c, out.c).fprop(input, packed, output, scratch, threads_);
    } else if constexpr (sizeof(S) == sizeof(float)) {
      cpu::Direct<float>(in.c, out.c, layer.kernel).fprop(input, packed, output, threads_);
    }
  }

  void linear(const Step& step, const Shape& in, const float* from, float* to) {
    const Layer& layer = layers_[step.first];
    const cpu::Winograd winograd(1, in.c, layer.channels);
    const ConvInput<float> input{.data = from, .extent = in};
    const ConvOutput<float> output{.y = to, .h = 1, .w = 1, .c = layer.channels, .relu = step.relu};
    float* scratch = reinterpret_cast<float*>(scratch_);
    if (layer.bf16_weights) {
      const Bf16* weights = layer.packed.as<Bf16>();
      const float* bias = reinterpret_cast<const float*>(weights + winograd.weight_values());
      winograd.fprop(input, weights, bias, output, scratch, threads_);
    } else {
      winograd.fprop(input, layer.packed.as<float>(), output, scratch, threads_);
    }
  }

  /// The layers that have kernels for float alone.
  void in_float(const Layer& layer, const Shape& in, const Shape& out, const S* from, S* to) {
    if constexpr (sizeof(S) == sizeof(float)) {
      const Tensor x = nhwc_tensor(from, in), y = nhwc_tensor(to, out);
      if (layer.kind == Kind::relu) return relu(from, values_of(in), to, threads_);
      if (layer.kind == Kind::lrn) return lrn_fprop(x, layer.lrn, y, {threads_});
      max_pool2x2(x, y, nullptr, {threads_});
    } else {
      float* x = reinterpret_cast<float*>(scratch_);
      float* y = x + plan_.scratch / (2 * sizeof(float));
      cpu::kernels().to_float(from, values_of(in), x);
      Runner<float>(layers_, plan_, {}, threads_).in_float(layer, in, out, x, y);
      cpu::kernels().to_bf16(y, values_of(out), to);
    }
  }

  template <class>
  friend class Runner;

  const std::vector<Layer>& layers_;
  const Plan& plan_;
  const int threads_;
  std::byte* whole_[2];
  std::byte* inner_[2];
  std::byte* scratch_;
};

}  // namespace

void pack_layer(Layer& layer, const Tensor& given, const Tensor* given_bias, int threads) {
  const WeightView<float> weight = view_of(given);
  const float* bias = given_bias ? given_bias->as<float>() : nullptr;
  const auto packed_by = [&](const auto& way) {
    Buffer buffer(sizeof(float) * static_cast<size_t>(way.packed_values()));
    way.pack(weight, bias, buffer.as<float>(), threads);
    return buffer;
  };
  if (layer.algorithm == cpu::stem) {
    layer.packed = packed_by(cpu::Stem(weight.out));
  } else if (layer.algorithm == cpu::direct) {
    layer.packed = packed_by(cpu::Direct<float>(weight.in, weight.out, weight.kernel));
  } else {
    const cpu::Winograd winograd(layer.algorithm, weight.in, weight.out);
    layer.packed = packed_by(winograd);
    if (!layer.bf16_weights) return;
    const int64_t weights = winograd.weight_values(), biases = winograd.packed_values() - weights;
    Buffer half(sizeof(Bf16) * static_cast<size_t>(weights) + sizeof(float) * static_cast<size_t>(biases));
    cpu::kernels().to_bf16(layer.packed.as<float>(), weights, half.as<Bf16>());
    std::copy_n(layer.packed.as<float>() + weights, biases, reinterpret_cast<float*>(half.as<Bf16>() + weights));
    layer.packed = std::move(half);
  }
}

void run_plan(const std::vector<Layer>& layers, const Plan& plan, bool bf16, const Buffer& arena, const Tensor& x,
              const std::vector<std::pair<int64_t, Tensor>>& outputs, int threads) {
  if (bf16) {
    Runner<Bf16>(layers, plan, arena, threads).run(x, outputs);
  } else {
    Runner<float>(layers, plan, arena, threads).run(x, outputs);
  }
}

}  // namespace vggfast::engine
