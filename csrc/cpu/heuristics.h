// Which algorithm a convolution runs by: the one table of the CPU back end.
#pragma once

#include "cpu/kernel_table.h"

namespace vggfast::cpu {

enum class Pass { fprop, dgrad, wgrad };

/// The m of F(m x m, 3 x 3) that suits a float convolution best, or 0 for the direct one. `packed`: whether weights are
/// packed beforehand, and for many calls.
int choose_winograd(Pass pass, Extent in, int64_t cout, int64_t kernel, bool packed);

}  // namespace vggfast::cpu
