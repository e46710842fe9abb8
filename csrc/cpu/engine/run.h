// An engine's plan on the CPU: which kernels compute its steps, and their run on the arena.
#pragma once

#include <utility>
#include <vector>

#include "cpu/engine/layer.h"
#include "vggfast/tensor.h"

namespace vggfast::engine {

template <class T>
cpu::WeightView<T> view_of(const Tensor& w) {
  if (w.dim() == 2) return {w.as<T>(), w.size(0), w.size(1), 1, w.stride(0), w.stride(1), 0, 0};
  return {w.as<T>(), w.size(0), w.size(1), w.size(2), w.stride(0), w.stride(1), w.stride(2), w.stride(3)};
}

/// A conv or FC layer's weights, (Cout, Cin, K, K) or (Cout, Cin), and bias (or null), packed.
Buffer pack(const cpu::ConvPlan& plan, const Tensor& weight, const Tensor* bias);

/// One of 8 bits.
Buffer pack(const cpu::Int8Layer& layer, const Tensor& weight, const Tensor* bias, const Tensor& unit, int threads);

/// What the planner asks of the CPU; it refers to the layers. `bf16`: of maps. Rows are float32.
plan::Backend backend(const std::vector<plan::Layer>& layers, const std::vector<Packed>& packed, bool bf16,
                      int threads);

struct Run {
  const std::vector<plan::Layer>& layers;
  const std::vector<Packed>& packed;
  const plan::Plan& plan;
  const Buffer& arena;
  int threads;
};

/// Computes the outputs, each of the layer of that number, as the plan was made for.
void run_plan(const Run& run, bool bf16, const Tensor& x, const std::vector<std::pair<int64_t, Tensor>>& outputs);

}  // namespace vggfast::engine
