// A whole network, ready for inference: weights packed once, one arena, one call per batch.
//
// Layers are added in order; then run() computes any of their outputs. For each shape of input a plan is made once and
// kept: which ReLUs and pools are fused, how the batch is cut, where each activation lies. Unlike the ops, an engine
// owns memory: packed weights, and one arena that grows to what the largest plan needs.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "vggfast/lrn.h"
#include "vggfast/tensor.h"

namespace vggfast {

struct EngineOptions {
  bool bf16 = false;              // activations between layers are kept in bfloat16; arithmetic is float, on AMX with
                                  // the convolutions' weights rounded to bfloat16
  bool bf16_weights = false;      // weights of FC layers are kept in bfloat16, and with bf16 on AMX the rows that they
                                  // read are rounded to it
  Threads threads = 1;            // for packing
  int64_t batch = 1, size = 224;  // of the images expected, for which algorithms are chosen; others run too
};

class Engine {
 public:
  explicit Engine(EngineOptions options);
  ~Engine();

  // Each of these adds a layer that reads the output of the one before. Weights (of any strides) and biases are float32
  // on the CPU; they are packed at once, for the algorithm that suits the images expected.
  void add_conv(const Tensor& weight, const Tensor* bias);  // as conv_fprop
  void add_relu();
  void add_max_pool(bool ceil_mode);  // 2x2/2
  void add_lrn(LrnParams params);
  /// From (N, C, H, W) to rows (N, C * size * size): the averages over the cells of a size x size grid.
  void add_flatten(int64_t size);
  /// From (N, C, H, W) to rows (N * places, C * size * size): the pixels of a size x size window at each of its places,
  /// in raster order.
  void add_windows(int64_t size);
  void add_linear(const Tensor& weight, const Tensor* bias);
  // The same on inputs of 8 bits, of engines without bf16: x, at least 0, lies as q = x / source, rounded to the
  // nearest (ties to even), 0 to 255. weight: int8, dense. An output is float32(the exact sum of q * weight) * unit +
  // bias. unit: float32, positive, of each output channel. What a convolution or FC layer, a ReLU and a pool in one
  // step put out lies so in memory, unless the caller asks for it.
  void add_quantised_conv(const Tensor& weight, const Tensor* bias, const Tensor& unit, float source);
  void add_quantised_linear(const Tensor& weight, const Tensor* bias, const Tensor& unit, float source);
  /// From rows (N * places, C) to (N, C): the averages over the places.
  void add_row_mean();

  int64_t layers() const;
  /// The shape of the output of layer number `layer` for x of shape (n, c, h, w): 4 axes, or 2 for rows.
  std::vector<int64_t> output_shape(int64_t layer, int64_t n, int64_t c, int64_t h, int64_t w) const;
  /// Computes the outputs of the given layers: float32, NHWC or rows. x: (N, C, H, W), float32, any strides. Any number
  /// of threads may call it; they take turns.
  void run(const Tensor& x, const std::vector<std::pair<int64_t, Tensor>>& outputs, Context context);

  /// Bytes of arena that run() would need to compute layer number `layer` alone, for x of shape (n, c, h, w).
  size_t workspace(int64_t layer, int64_t n, int64_t c, int64_t h, int64_t w, Context context) const;
  /// Bytes that the engine holds: packed weights and arena.
  size_t bytes() const;
  /// For each convolution, the algorithm that it runs by.
  std::vector<std::string> algorithms() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace vggfast
