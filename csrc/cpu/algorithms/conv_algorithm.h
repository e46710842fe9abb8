// What every convolution algorithm of the CPU back end offers, and the table of them. An algorithm is one file of this
// folder that defines a ConvAlgorithm, and its name in the table below.
//
// choose() picks an algorithm once for a problem; its ConvPlan says how much memory the run takes, and is what the
// run is handed. Weights may be packed beforehand, once for many calls of any extents (inference), or lie as the caller
// has them (training), where the algorithm packs what it needs into its workspace.
#pragma once

#include <cstddef>
#include <optional>

#include "cpu/kernel_table.h"
#include "vggfast/mask.h"
#include "vggfast/tensor.h"

namespace vggfast::cpu {

enum class Pass { fprop, dgrad, wgrad };

/// What is to be computed, as far as the choice of an algorithm and the sizes of its memory depend on it.
struct ConvProblem {
  Pass pass = Pass::fprop;
  DType dtype = DType::f32;  // of activations: f32, f64, or bf16 with weights of f32
  /// The input's extent: of x, or for dgrad of gy before its pool.
  Extent in;
  int64_t cout, kernel;       // output channels (for dgrad: x's), and 1 or 3
  Epilogue epilogue = {};     // of fprop; for dgrad and wgrad, that whose mask gy comes through
  bool masked = false;        // dgrad and wgrad: whether gy comes through a mask
  bool packed = false;        // fprop: whether the weights were packed beforehand
  bool bf16_weights = false;  // where they were: whether they are kept in bfloat16
  // Where weights were packed: whether x and y lie in blocks (BlockedMap), as layers of an engine hand maps on. "tiles"
  // reads and writes such maps of bfloat16, run_stem_u8 writes such of uint8.
  bool blocked_in = false, blocked_out = false;
  int threads = 1;
  std::optional<bool> exact = {};  // as Context has it
};

/// What an algorithm is estimated to cost, in multiply-adds of a direct convolution.
struct ConvEstimate {
  int64_t multiply_adds;  // of the products
  double other;           // transforms, and the packing of weights or reading them
  double packing = 0;     // what of `other` weights packed beforehand save, where run() takes a bias beside them
};

/// One call of fprop or dgrad. Pointers are to values of the problem's dtype.
struct ConvCall {
  ConvInput<void> in;
  const void* packed = nullptr;  // what pack() wrote, where weights are packed beforehand
  WeightView<void> weight = {};  // else the weights; dgrad sees them transposed and flipped
  /// With `weight`: dense, or null. With `packed`, where the estimate has a cost of packing: dense and with zeros up to
  /// whole vectors, in the place of the bias that pack() wrote; null leaves that.
  const void* bias = nullptr;
  ConvOutput<void> out;
  void* workspace = nullptr;
};

/// One call of wgrad. gw and gb are of the problem's dtype, and for bf16 float.
struct WgradCall {
  ConvInput<void> x, gy;
  WeightView<void> shape;  // gw's, as a view; its `data` is not read
  void* gw;                // written
  void* gb = nullptr;      // may be null
  int64_t gb_stride = 1;
  void* workspace = nullptr;
};

/// A way to compute convolutions. Every function but `supports` is called only for problems that it supports.
struct ConvAlgorithm {
  const char* name;       // as set_conv_algorithm and conv_cost have it; several may share one
  bool settable = true;   // whether set_conv_algorithm knows the name
  bool on_tiles = false;  // whether it needs an instruction set with tiles
  /// The largest error of a result, in roundings of a sum of its usual size. Where an algorithm was asked for that has
  /// no more than direct_conv, and none of its name supports the problem, the one with the fewest is taken; tests hold
  /// each algorithm to its own.
  int roundings;

  bool (*supports)(const ConvProblem&);
  ConvEstimate (*cost)(const ConvProblem&);
  /// Bytes of weights that are packed beforehand, with their bias.
  size_t (*packed_bytes)(const ConvProblem&);
  size_t (*workspace_bytes)(const ConvProblem&);
  /// Packs float weights and bias (or null) for all calls to come, whatever n, h and w of the problem.
  void (*pack)(const ConvProblem&, const WeightView<float>&, const float* bias, void* packed);
  // Null where it supports no such pass.
  void (*run)(const ConvProblem&, const ConvCall&);  // fprop and dgrad
  void (*run_wgrad)(const ConvProblem&, const WgradCall&);
};

/// An algorithm for a problem, and what memory a run takes.
struct ConvPlan {
  const ConvAlgorithm* algorithm;
  ConvProblem problem;
  size_t packed_bytes, workspace_bytes;

  void pack(const WeightView<float>& weight, const float* bias, void* packed) const {
    algorithm->pack(problem, weight, bias, packed);
  }
  void run(const ConvCall& call) const { algorithm->run(problem, call); }
  void run_wgrad(const WgradCall& call) const { algorithm->run_wgrad(problem, call); }
};

/// The cheapest algorithm that supports the problem, or what the problem or set_conv_algorithm asked for.
ConvPlan choose(const ConvProblem& problem);
/// The plan for an algorithm that is given, because weights were packed for it. It must support the problem.
ConvPlan plan_with(const ConvAlgorithm& algorithm, const ConvProblem& problem);

// The table. Where two cost the same, the first is taken.
extern const ConvAlgorithm tiles_stem_conv, tiles_conv, tiles_wgrad_conv, stem_conv, direct_conv, pointwise_conv,
    winograd2_conv, winograd4_conv, winograd6_conv, bf16x3_conv, bf16x6_conv;
inline constexpr const ConvAlgorithm* conv_algorithms[] = {
    &tiles_stem_conv, &tiles_conv,     &tiles_wgrad_conv, &stem_conv,   &direct_conv, &pointwise_conv,
    &winograd2_conv,  &winograd4_conv, &winograd6_conv,   &bf16x3_conv, &bf16x6_conv};

/// The same as values of type T, which the problem's dtype says.
template <class T, class S>
ConvInput<T> cast(const ConvInput<S>& in) {
  return {static_cast<const T*>(in.data), in.extent, in.mask, in.relu, in.pool, in.stored_h, in.stored_w};
}
template <class T, class S>
ConvOutput<T> cast(const ConvOutput<S>& out) {
  return {static_cast<T*>(out.y), out.h, out.w, out.c, out.relu, out.pool, out.mask, out.stream};
}
template <class T, class S>
WeightView<T> cast(const WeightView<S>& w) {
  return {
      static_cast<const T*>(w.data), w.out, w.in, w.kernel, w.stride_out, w.stride_in, w.stride_row, w.stride_column};
}

}  // namespace vggfast::cpu
