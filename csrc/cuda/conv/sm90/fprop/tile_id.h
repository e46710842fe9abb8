// The names of the Hopper fprop's tiles, for those who choose one or are asked for one; tiles.h says what each is.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace vggfast::cuda::sm90 {

enum class TileId : uint8_t {
  halo_128x224,
  halo_128x224_weights2,
  halo_128x112,
  halo_64x224_stationary,
  halo_64x224,
  halo_64x112,
  im2col_128x256_pixels2,
  im2col_128x224_pixels2,
  im2col_128x192_pixels2,
  im2col_128x128,
  im2col_64x64,
  halo_128x128_split2,
  halo_128x128_split4,
  halo_128x128_split8,
  im2col_128x128_split8,
};

/// By TileId, as set_conv_tile takes them: feed, channels x pixels, and how many blocks share weights, pixels or a
/// tile.
constexpr std::array tile_names = {"halo-128x224",
                                   "halo-128x224-weights2",
                                   "halo-128x112",
                                   "halo-64x224-stationary",
                                   "halo-64x224",
                                   "halo-64x112",
                                   "im2col-128x256-pixels2",
                                   "im2col-128x224-pixels2",
                                   "im2col-128x192-pixels2",
                                   "im2col-128x128",
                                   "im2col-64x64",
                                   "halo-128x128-split2",
                                   "halo-128x128-split4",
                                   "halo-128x128-split8",
                                   "im2col-128x128-split8"};
static_assert(tile_names.size() == static_cast<size_t>(TileId::im2col_128x128_split8) + 1);

constexpr const char* name_of(TileId id) { return tile_names[static_cast<size_t>(id)]; }

}  // namespace vggfast::cuda::sm90
