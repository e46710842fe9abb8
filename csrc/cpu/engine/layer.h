// What the CPU keeps of an engine's layer beside what the planner knows.
#pragma once

#include "cpu/kernel_table.h"
#include "plan/plan.h"
#include "vggfast/lrn.h"
#include "vggfast/memory.h"

namespace vggfast::engine {

struct Packed {
  int algorithm = 1;          // conv: of cpu/algorithms/choose.h; linear is a 1x1 convolution of rows
  int64_t kernel = 1;         // conv
  bool bf16_weights = false;  // linear
  Buffer weights = {};        // conv and linear: weights and bias
  LrnParams lrn = {};
};

inline cpu::Extent extent_of(const plan::Shape& s) { return {s.n, s.h, s.w, s.c}; }

}  // namespace vggfast::engine
