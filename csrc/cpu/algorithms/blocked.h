// Maps in blocks, as kernels on tiles read them: sizes, and NHWC to blocks.
#pragma once

#include "cpu/tile_kernels.h"

namespace vggfast::cpu {

inline constexpr int64_t block_channels = 32;

/// The map of this extent at `data`.
BlockedMap blocked_map(void* data, const Extent& extent);
/// Bytes that it takes, with what is read past its end.
size_t blocked_bytes(const Extent& extent);
/// Writes all of `to`, with its ring. `in` has the extent that `to` is of.
void block_maps(const ConvInput<Bf16>& in, const BlockedMap& to, int threads);

}  // namespace vggfast::cpu
