// What an engine does at its edges: images in, rows for the FC layers, and elementwise leftovers.
#pragma once

#include "cpu/algorithms/tiles.h"
#include "cpu/engine/layer.h"

namespace vggfast::engine {

/// x (N, C, H, W), float32 of any strides, to NHWC of S (float or bfloat16).
template <class S>
void load_images(const Tensor& x, S* to, int threads);

/// From a map in blocks, of this extent, to NHWC.
void unblock(const cpu::BlockedMap<cpu::Bf16>& from, const cpu::Extent& extent, float* to, int threads);

/// The average over each cell of a size x size grid, as torch's adaptive_avg_pool2d, to rows in (C, row, column) order.
template <class S>
void flatten(const S* from, const cpu::Extent& in, int64_t size, float* rows, int threads);

/// Each place of a size x size window, in raster order, to a row in (C, row, column) order.
template <class S>
void windows(const S* from, const cpu::Extent& in, int64_t size, float* rows, int threads);

/// Rows (images * places, C) to their average over the places.
void row_mean(const float* from, const cpu::Extent& in, int64_t images, float* to);

void relu(const float* from, int64_t count, float* to, int threads);

}  // namespace vggfast::engine
