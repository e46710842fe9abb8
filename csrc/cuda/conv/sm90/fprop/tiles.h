// The tiles that fprop is built for, one line per tile, and an estimate of their time (choice.h chooses).
#pragma once

#include <array>
#include <bit>
#include <cmath>

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

/// Estimated clocks: whole waves of tiles, each bound by its products, by shared memory or by L2. An epilogue counts
/// where no other warpgroup multiplies meanwhile. Nothing here has been measured on a GPU.
template <class Tile>
double estimate(const Shape& s, const Residency& gpu) {
  // Each of a clock and SM. A product takes the same time whatever its values are: of 2 bytes it is 2048 multiply-adds.
  // 128 bytes is what shared memory is specified for; 40 bytes of L2 is a guess near the peak of the SM's port.
  constexpr double product_area = 4096, shared_bytes = 128, l2_bytes = 40;
  constexpr double start = 2000, epilogue = 1500;  // clocks; both are guesses
  const Schedule schedule = Schedule::of<Tile>(s.sums);
  const double waves = std::ceil(double(schedule.groups) / gpu.of(Tile::cluster));
  const int chunks = (s.cin * s.element_bytes + row_bytes - 1) / row_bytes, taps = s.kernel * s.kernel;
  const double steps = std::ceil(double(chunks) / Tile::split) * taps, boxes = steps / Tile::taps_of_a_box;
  const double products = steps * Tile::channels / 64 * (row_bytes / product_bytes);
  const double multiply = products * 64 * Tile::pixels * product_bytes / product_area;
  const double weights = Tile::stationary ? 0 : steps * Tile::weight_bytes, pixels = boxes * Tile::pixel_bytes;
  const double operands = products * (64 + Tile::pixels) * product_bytes;
  const double shared = (operands + weights + pixels) / shared_bytes;
  const double l2 = (weights / Tile::across + pixels / Tile::down) / l2_bytes;
  return start + waves * (std::max({multiply, shared, l2}) + (Tile::pingpong && waves > 1 ? 0 : epilogue));
}

}  // namespace vggfast::cuda::sm90
