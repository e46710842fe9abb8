// The tiles that fprop is built for, one line per tile, and where they fit (choice.h chooses).
#pragma once

#include <array>
#include <bit>

#include "cuda/conv/sm90/core/schedule.h"
#include "cuda/conv/sm90/fprop/tile_id.h"

namespace vggfast::cuda::sm90 {

/// Calls body.operator()<Tile>(id) for every tile.
template <class Body>
void for_each_tile(Body body) {
  using enum Feed;
  using enum Work;
  using enum Weights;
  using enum TileId;
  body.template operator()<Tile<halo, 224, cooperative>>(halo_128x224);
  body.template operator()<Tile<halo, 224, cooperative, streamed, Cluster<1, 2>>>(halo_128x224_weights2);
  body.template operator()<Tile<halo, 112, cooperative>>(halo_128x112);
  body.template operator()<Tile<halo, 224, pingpong, stationary>>(halo_64x224_stationary);
  body.template operator()<Tile<halo, 224, pingpong>>(halo_64x224);
  body.template operator()<Tile<halo, 112, pingpong>>(halo_64x112);
  body.template operator()<Tile<im2col, 256, cooperative, streamed, Cluster<2>>>(im2col_128x256_pixels2);
  body.template operator()<Tile<im2col, 224, cooperative, streamed, Cluster<2>>>(im2col_128x224_pixels2);
  body.template operator()<Tile<im2col, 192, cooperative, streamed, Cluster<2>>>(im2col_128x192_pixels2);
  body.template operator()<Tile<im2col, 128, cooperative>>(im2col_128x128);
  body.template operator()<Tile<im2col, 64, pingpong>>(im2col_64x64);
  body.template operator()<Tile<halo, 128, cooperative, streamed, Cluster<1, 1, 2>>>(halo_128x128_split2);
  body.template operator()<Tile<halo, 128, cooperative, streamed, Cluster<1, 1, 4>>>(halo_128x128_split4);
  body.template operator()<Tile<halo, 128, cooperative, streamed, Cluster<1, 1, 8>>>(halo_128x128_split8);
  body.template operator()<Tile<im2col, 128, cooperative, streamed, Cluster<1, 1, 8>>>(im2col_128x128_split8);
}

/// What decides among tiles.
struct Shape {
  Extent sums;
  int cin, kernel, element_bytes, out_bytes;
  bool pool;
};

/// What a GPU runs at once, of kernels whose blocks take an SM each: blocks, and clusters of 2, 4 and 8 blocks.
struct Residency {
  int num_sms;
  std::array<int, 3> clusters;

  int of(int blocks) const { return blocks == 1 ? num_sms : clusters[std::bit_width(unsigned(blocks)) - 2]; }
};

template <class Tile>
bool fits(const Shape& s) {
  const int chunks = (s.cin * s.element_bytes + row_bytes - 1) / row_bytes;
  if (Tile::halo && s.kernel != 3) return false;
  if (!Tile::halo && s.pool) {  // the output stage must hold whole windows
    if (s.out_bytes != 2 || s.sums.h % 2 != 0 || Tile::staged_pixels % (2 * s.sums.w) != 0) return false;
  }
  if (Tile::stationary && (s.sums.c > warpgroup_channels || chunks > 1)) return false;
  return chunks >= Tile::split && s.sums.c > (Tile::down - 1) * Tile::channels;
}

}  // namespace vggfast::cuda::sm90
