// Convolution on tile registers beyond the table's algorithms: maps in blocks, how threads divide the work, and in
// bfloat16 the first two layers as one.
#pragma once

#include <functional>

#include "cpu/algorithms/conv_algorithm.h"
#include "cpu/tile_kernels.h"

namespace vggfast::cpu {

/// Of weights, for the products of a register block with one tap of a block of input channels.
inline constexpr int64_t tap_bytes = 2048;
/// Products of bfloat16 on tiles to one of floats in vectors: 3,200 to 215 GFLOP/s of a core (Xeon of the 4th
/// generation).
inline constexpr int64_t tile_speed = 15;

/// The map in blocks of this extent at `data`; and its bytes, with what is read past its end.
template <class T>
BlockedMap<T> blocked_map(void* data, const Extent& e, int64_t pieces = 1) {
  constexpr int64_t channels = BlockedMap<T>::channels;
  const int64_t blocks = (e.c + channels - 1) / channels, row = (e.w + 2) * channels, plane = (e.h + 2) * row;
  return {static_cast<T*>(data), blocks, row, plane, pieces * blocks * plane, pieces};
}
template <class T>
size_t blocked_bytes(const Extent& e, int64_t pieces = 1) {
  const BlockedMap<T> map = blocked_map<T>(nullptr, e, pieces);
  return sizeof(T) * static_cast<size_t>(e.n * map.image + map.row + tile_pixels * map.channels);
}

/// A direct convolution as threads divide it.
struct TileWork {
  int64_t images, pairs, width;  // pairs of rows of so many pixels
  int64_t blocks, taps;          // of the outputs; and of each of them, over all blocks of input channels
  int64_t pieces = 1;
};

/// Of values in pieces, the products to one.
constexpr int64_t products_of(int64_t pieces) { return pieces * (pieces + 1) / 2; }

/// Calls body(image, pair_begin, pair_end, block_begin, block_end) for each task. The blocks of output channels are
/// outermost, so that a thread finds its weights in its L2.
void for_tile_tasks(const TileWork& work, int threads,
                    const std::function<void(int64_t, int64_t, int64_t, int64_t, int64_t)>& body);

/// Block 1: two 3x3 convolutions, by tiles_stem_conv and tiles_conv, with their ReLUs and the pool behind them. It runs
/// in strips of rows, so that what passes from one to the other stays in L2.
size_t tile_block1_bytes(const ConvProblem& first, const ConvProblem& second);  // of workspace
/// The first call has the input and packed weights; the second has packed weights, the output and the workspace.
void run_tile_block1(const ConvProblem& first, const ConvCall& first_call, const ConvProblem& second,
                     const ConvCall& second_call);

}  // namespace vggfast::cpu
