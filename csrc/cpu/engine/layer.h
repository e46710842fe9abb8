// What the CPU keeps of an engine's layer beside what the planner knows.
#pragma once

#include "cpu/algorithms/conv_algorithm.h"
#include "plan/plan.h"
#include "vggfast/lrn.h"
#include "vggfast/memory.h"

namespace vggfast::engine {

struct Packed {
  cpu::ConvPlan conv = {};  // conv; and linear, which is a 1x1 convolution of rows
  Buffer weights = {};      // packed for it, with their bias
  LrnParams lrn = {};
};

}  // namespace vggfast::engine
