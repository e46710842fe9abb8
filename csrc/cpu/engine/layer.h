// What the CPU keeps of an engine's layer beside what the planner knows.
#pragma once

#include <memory>

#include "cpu/algorithms/conv_algorithm.h"
#include "cpu/algorithms/int8.h"
#include "plan/plan.h"
#include "vggfast/lrn.h"
#include "vggfast/memory.h"

namespace vggfast::engine {

struct Packed {
  cpu::ConvPlan conv = {};  // conv; and linear, which is a 1x1 convolution of rows
  Buffer weights = {};      // packed for it, with their bias
  LrnParams lrn = {};
  std::unique_ptr<const cpu::Int8Layer> int8 = {};  // in place of `conv`
  // Of what a u8 counts: of an int8 layer's input, and of the output where plan::Layer::leaves says u8.
  float source_inverse = 0, target_inverse = 0;
};

}  // namespace vggfast::engine
