// Rounding floats to 8 bits: a value times `inverse`, to the nearest, ties to even, 0 to 255; NaN is 0.
#pragma once

#include "cpu/kernel_table.h"

namespace vggfast::cpu {

/// NHWC, or rows as pixels of one image each, to the same or to a map in blocks with its ring (cpu/tile_kernels.h).
void quantise(const float* from, const Extent& extent, float inverse, uint8_t* to, bool blocked, int threads);

/// Lines [begin, end) of the n * h that the whole has; `from` is the first of them alone.
void quantise_lines(const float* from, int64_t begin, int64_t end, const Extent& extent, float inverse, uint8_t* to,
                    bool blocked);

}  // namespace vggfast::cpu
