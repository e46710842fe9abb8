// Which algorithm a convolution runs by: the one table of the CPU back end.
#pragma once

#include <string>

#include "cpu/algorithms/conv_algorithm.h"
#include "cpu/kernel_table.h"

namespace vggfast::cpu {

/// What a float convolution runs by: the m of F(m x m, 3 x 3) (1 for 1x1), or one of the direct ways.
enum : int { direct = 0, stem = -3 };

/// `packed`: whether weights are packed beforehand, and for many calls.
int choose_algorithm(Pass pass, Extent in, int64_t cout, int64_t kernel, bool packed);

/// "direct", "1x1" or "winograd" and m.
std::string name_of(int algorithm);

}  // namespace vggfast::cpu
