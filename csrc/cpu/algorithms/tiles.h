// Convolution in bfloat16 on tile registers beyond the table's algorithms: maps in blocks, and the first two layers as
// one.
#pragma once

#include "cpu/algorithms/conv_algorithm.h"
#include "cpu/tile_kernels.h"

namespace vggfast::cpu {

inline constexpr int64_t block_channels = 32;

/// The map in blocks of this extent at `data`; and its bytes, with what is read past its end.
BlockedMap blocked_map(void* data, const Extent& extent);
size_t blocked_bytes(const Extent& extent);

/// Block 1: two 3x3 convolutions, by tiles_stem_conv and tiles_conv, with their ReLUs and the pool behind them. It runs
/// in strips of rows, so that what passes from one to the other stays in L2.
size_t tile_block1_bytes(const ConvProblem& first, const ConvProblem& second);  // of workspace
/// The first call has the input and packed weights; the second has packed weights, the output and the workspace.
void run_tile_block1(const ConvProblem& first, const ConvCall& first_call, const ConvProblem& second,
                     const ConvCall& second_call);

}  // namespace vggfast::cpu
