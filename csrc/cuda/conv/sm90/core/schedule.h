// Which tiles a block computes. Blocks stay, and take tile after tile: all channels of some pixels, then the next ones,
// so that what the blocks read at a time is little of x and lies in L2.
#pragma once

#include "cuda/conv/sm90/core/tile.h"
#include "cuda/divider.h"
#include "cuda/ptx/cluster.h"

namespace vggfast::cuda::sm90 {

/// Of the output before a pool.
struct Extent {
  int n, h, w, c;
  __host__ __device__ int64_t pixels() const { return int64_t(n) * h * w; }
};

/// Where a tile's outputs lie. Of an im2col tile, image, y and x are those of its first pixel, number `pixel` of all.
struct Place {
  int channel, image, y, x, pixel;

  /// The place so many rows (halo) or pixels (im2col) further on.
  __device__ __forceinline__ Place after(int rows, int pixels) const {
    return {channel, image, y + rows, x, pixel + pixels};
  }
};

/// The block's place in its cluster, which shares pixels along `down`, weights along `across`, and a tile along
/// `split`.
template <class Tile>
struct InCluster {
  int down = 0, across = 0, split = 0;

  __device__ __forceinline__ InCluster() {
    const int rank = Tile::cluster > 1 ? static_cast<int>(ptx::cluster_ctarank()) : 0;
    if constexpr (Tile::split > 1) {
      split = rank;
    } else {
      if (Tile::down > 1) down = rank % Tile::down;
      if (Tile::across > 1) across = rank / Tile::down;
    }
  }
};

struct Schedule {
  Divider channel_groups, tiles_across, tiles_down;  // of an image; for im2col its width and height
  int groups;                                        // tiles that a cluster computes together, over all

  template <class Tile>
  static Schedule of(const Extent& y) {
    const int64_t across = Tile::halo ? ceil_div(y.w, tile_width) : y.w,
                  down = Tile::halo ? ceil_div(y.h, Tile::rows) : y.h;
    const int64_t pixel_tiles = Tile::halo ? y.n * across * down : ceil_div(y.pixels(), Tile::pixels);
    const int64_t channel_groups = ceil_div(y.c, Tile::channels * Tile::down);
    return {Divider(channel_groups), Divider(across), Divider(down),
            static_cast<int>(ceil_div(pixel_tiles, Tile::across) * channel_groups)};
  }

  /// The tile of this block; for im2col, from `pixels_in` pixels after its first one on.
  template <class Tile>
  __device__ __forceinline__ Place place(int group, const InCluster<Tile>& in, int pixels_in = 0) const {
    const int pixel_group = channel_groups.quotient(group);
    const int channel_group = group - pixel_group * static_cast<int>(channel_groups.divisor);
    const int tile = pixel_group * Tile::across + in.across;
    const int number = Tile::halo ? tile : tile * Tile::pixels + pixels_in;
    const int line = tiles_across.quotient(number), image = tiles_down.quotient(line);
    Place place{(channel_group * Tile::down + in.down) * Tile::channels, image,
                line - image * static_cast<int>(tiles_down.divisor),
                number - line * static_cast<int>(tiles_across.divisor), number};
    if constexpr (Tile::halo) {
      place.y *= Tile::rows;
      place.x *= tile_width;
    }
    return place;
  }
};

}  // namespace vggfast::cuda::sm90
