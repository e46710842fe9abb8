// The one place where a portable convolution's tile and split are chosen (Hopper's: sm90/fprop/choice.h,
// sm90/wgrad/plan.cu).
#pragma once

#include <cstdint>
#include <string>

namespace vggfast::cuda {

enum class TileShape { large, tall, small };  // LargeTile, TallTile, SmallTile (tile.h)

/// Whether this is the name of a portable tile.
bool is_portable_tile(const std::string& name);

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
