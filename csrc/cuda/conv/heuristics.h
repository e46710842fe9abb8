// The tile that was asked for by name, and the one place where the sm80 kernels' tile and split are chosen (Hopper's:
// sm90/fprop/choice.h, sm90/wgrad/plan.cu).
#pragma once

#include <cstdint>
#include <optional>

#include "cuda/conv/sm90/fprop/tile_id.h"

namespace vggfast::cuda {

enum class TileShape { large, tall, small };  // LargeTile, TallTile, SmallTile (tile.h)

/// What set_conv_tile asked for: nothing, a tile of sm80's kernels, or one of Hopper's.
bool tile_is_auto();
std::optional<TileShape> sm80_tile_asked_for();
std::optional<sm90::TileId> sm90_tile_asked_for();

/// For fprop and dgrad of `pixels` rows and `channels` output channels.
TileShape choose_fprop_tile(int64_t pixels, int64_t channels);

/// wgrad's tile, and how many blocks share the pixels of one.
struct WgradPlan {
  TileShape tile;  // large or small
  int splits;
};
/// gw is `channels` x `columns`; `steps`: stages that the pixels fill.
WgradPlan choose_wgrad(int64_t channels, int64_t columns, int64_t steps);

}  // namespace vggfast::cuda
