// The layers of an engine, as they were added.
#pragma once

#include <map>

#include "cpu/kernel_table.h"
#include "vggfast/memory.h"
#include "vggfast/lrn.h"
#include "vggfast/tensor.h"

namespace vggfast::engine {

enum class Kind { conv, relu, max_pool, lrn, flatten, windows, linear, row_mean };

struct Layer {
  explicit Layer(Kind k) : kind(k) {}

  Kind kind;
  int64_t channels = 0;          // conv and linear: of the output
  Tensor weight, bias;           // conv and linear; bias without data where there is none
  std::map<int, Buffer> packed;  // their weights by algorithm (linear: 1), packed when first needed
  bool ceil_mode = false;        // max_pool
  int64_t size = 0;              // flatten and windows
  LrnParams lrn;
};

/// What a plan knows of an activation: NHWC, or rows (h = w = 1, n counts them).
using Shape = cpu::Extent;

inline int64_t values_of(const Shape& s) { return s.n * s.h * s.w * s.c; }

}  // namespace vggfast::engine
