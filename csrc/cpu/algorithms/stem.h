// The first layer beyond the table's algorithms: with an output of 8 bits.
#pragma once

#include "cpu/algorithms/conv_algorithm.h"

namespace vggfast::cpu {

/// By stem_conv in float, packed; y is of u8 (quantise.h), in blocks where the problem says so. Each thread rounds a
/// few rows at a time, which it finds in its L2.
void run_stem_u8(const ConvProblem& problem, const ConvCall& call, float inverse);
size_t stem_u8_workspace(const ConvProblem& problem);

}  // namespace vggfast::cpu
