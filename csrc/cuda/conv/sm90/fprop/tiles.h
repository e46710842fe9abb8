// The tiles that fprop is built for, one line per tile, and an estimate of their time (choice.h chooses).
#pragma once

#include <cmath>

#include "cuda/conv/sm90/core/schedule.h"

namespace vggfast::cuda::hopper {

/// Calls body.operator()<Tile>(name) for every tile.
template <class Body>
void for_each_tile(Body body) {
  using enum Feed;
  using enum Work;
  using enum Weights;
  body.template operator()<Tile<rows, 224, shared>>("rows-128x224");
  body.template operator()<Tile<rows, 224, shared, streamed, Cluster<1, 2>>>("rows-128x224-weights2");
  body.template operator()<Tile<rows, 112, shared>>("rows-128x112");
  body.template operator()<Tile<rows, 224, turns, resident>>("rows-64x224-resident");
  body.template operator()<Tile<rows, 224, turns>>("rows-64x224");
  body.template operator()<Tile<rows, 112, turns>>("rows-64x112");
  body.template operator()<Tile<flat, 256, shared, streamed, Cluster<2>>>("flat-128x256-pixels2");
  body.template operator()<Tile<flat, 224, shared, streamed, Cluster<2>>>("flat-128x224-pixels2");
  body.template operator()<Tile<flat, 192, shared, streamed, Cluster<2>>>("flat-128x192-pixels2");
  body.template operator()<Tile<flat, 128, shared>>("flat-128x128");
  body.template operator()<Tile<flat, 64, turns>>("flat-64x64");
  body.template operator()<Tile<rows, 128, shared, streamed, Cluster<1, 1, 2>>>("rows-128x128-split2");
  body.template operator()<Tile<rows, 128, shared, streamed, Cluster<1, 1, 4>>>("rows-128x128-split4");
  body.template operator()<Tile<rows, 128, shared, streamed, Cluster<1, 1, 8>>>("rows-128x128-split8");
  body.template operator()<Tile<flat, 128, shared, streamed, Cluster<1, 1, 8>>>("flat-128x128-split8");
}

/// What decides among tiles.
struct Shape {
  Extent sums;
  int cin, kernel, element_bytes, out_bytes;
  bool pool;
};

template <class Tile>
bool fits(const Shape& s) {
  const int chunks = (s.cin * s.element_bytes + row_bytes - 1) / row_bytes;
  if (Tile::by_rows && s.kernel != 3) return false;
  if (!Tile::by_rows && s.pool) {  // windows are to be whole in a stage
    if (s.out_bytes != 2 || s.sums.h % 2 != 0 || Tile::staged_pixels % (2 * s.sums.w) != 0) return false;
  }
  if (Tile::resident && (s.sums.c > warpgroup_channels || chunks > 1)) return false;
  return chunks >= Tile::split && s.sums.c > (Tile::down - 1) * Tile::channels;
}

/// Clocks, est.: whole waves of tiles, each bound by its products, by shared memory or by L2; an epilogue counts where
/// nobody multiplies meanwhile.
template <class Tile>
double estimate(const Shape& s, int multiprocessors) {
  // Of a clock and multiprocessor. A product takes as long whatever its values: of 2 bytes that is 2048 multiply-adds.
  constexpr double product_area = 4096, shared_bytes = 128, l2_bytes = 40;
  constexpr double start = 2000, epilogue = 1500;
  const Schedule schedule = Schedule::of<Tile>(s.sums);
  const int clusters = multiprocessors / Tile::cluster;
  const double waves = std::ceil(double(schedule.groups) / clusters);
  const int chunks = (s.cin * s.element_bytes + row_bytes - 1) / row_bytes, taps = s.kernel * s.kernel;
  const double steps = std::ceil(double(chunks) / Tile::split) * taps, boxes = steps / Tile::taps_of_a_box;
  const double products = steps * Tile::channels / 64 * (row_bytes / product_bytes);
  const double multiply = products * 64 * Tile::pixels * product_bytes / product_area;
  const double weights = Tile::resident ? 0 : steps * Tile::weight_bytes, pixels = boxes * Tile::pixel_bytes;
  const double operands = products * (64 + Tile::pixels) * product_bytes;
  const double shared = (operands + weights + pixels) / shared_bytes;
  const double l2 = (weights / Tile::across + pixels / Tile::down) / l2_bytes;
  return start + waves * (std::max({multiply, shared, l2}) + (Tile::turns && waves > 1 ? 0 : epilogue));
}

}  // namespace vggfast::cuda::hopper
