// Linear layers in bfloat16 on tile registers: sizes, packing, and how threads divide the work.
// Kernels: cpu/kernels/tile_linear.h.
#pragma once

#include <cstddef>

#include "cpu/algorithms/conv_algorithm.h"
#include "cpu/tile_kernels.h"

namespace vggfast::cpu {

/// Rows (rows, inputs) and (rows, outputs), and weights (outputs, inputs), all dense but where a function says more.
/// Each product takes as much workspace as its *_bytes says.
struct TileLinear {
  int64_t rows, inputs, outputs;
  int threads;

  size_t fprop_bytes() const;
  size_t dgrad_bytes() const;
  size_t wgrad_bytes() const;
  /// x is float, rounded to the nearest, or Bf16. bias may be null.
  template <class S>
  void fprop(const S* x, const TileMatrix& weight, const float* bias, bool relu, float* y, void* workspace) const;
  void dgrad(const Bf16* gy, const Bf16* weight, Bf16* gx, void* workspace) const;
  void wgrad(const Bf16* x, const Bf16* gy, Bf16* gw, void* workspace) const;

  /// The tiles of weights that lie dense.
  TileMatrix matrix(const Bf16* weight) const { return {weight, inputs, tile_terms, tile_rows * inputs}; }
};

/// FC layers of an engine, float rows (n, 1, 1, cin) by weights in bfloat16, as an algorithm of 1x1 convolutions: not
/// of the table, for it rounds the rows.
extern const ConvAlgorithm tiles_linear_conv;

}  // namespace vggfast::cpu
