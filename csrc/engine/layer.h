// The layers of an engine, as they were added.
#pragma once

#include "cpu/kernel_table.h"
#include "vggfast/lrn.h"
#include "vggfast/memory.h"

namespace vggfast::engine {

enum class Kind { conv, relu, max_pool, lrn, flatten, windows, linear, row_mean };

struct Layer {
  explicit Layer(Kind k) : kind(k) {}

  Kind kind;
  int64_t cin = 0, channels = 0, kernel = 1;  // conv and linear: their input's and output's channels
  int algorithm = 1;                          // conv: of cpu/algorithms/choose.h; linear is a 1x1 convolution of rows
  bool bf16_weights = false;                  // linear
  Buffer packed;                              // conv and linear: weights and bias
  bool ceil_mode = false;                     // max_pool
  int64_t size = 0;                           // flatten and windows
  LrnParams lrn;
};

/// What a plan knows of an activation: NHWC, or rows (h = w = 1, n counts them).
using Shape = cpu::Extent;

inline int64_t values_of(const Shape& s) { return s.n * s.h * s.w * s.c; }

}  // namespace vggfast::engine
