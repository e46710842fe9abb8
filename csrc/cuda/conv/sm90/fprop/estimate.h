// The model of the Hopper fprop: what a tile is estimated to take for a layer. Nothing here has been measured on a GPU.
#pragma once

#include <cmath>

#include "cuda/conv/sm90/fprop/tiles.h"

namespace vggfast::cuda::sm90 {

/// Instructions that a warp issues from a tile's last product on until it goes back for the next tile, without a
/// mask's: lines through what scripts/stage_loops.py counts in bfloat16's machine code ("epilogue"), with loops as
/// often as they run. Those of TF32 are up to half as many more.
template <class Tile>
double epilogue_instructions(const Shape& s) {
  constexpr double groups = Tile::out_pixels / 8, windows_of_a_thread = (Tile::out_pixels + 63) / 64;
  constexpr double exchange = Tile::split > 1 ? 300 : 0;
  if (Tile::halo && s.pool) return exchange + 90 + 24 * groups;
  return exchange + 70 + 10.7 * groups + (s.pool ? 330 * windows_of_a_thread : 0);
}

enum class Warpgroups { apart, in_step };  // of those who cooperate: by Tile::lag, or not

/// Estimated clocks: whole waves of tiles, each bound by its products, by shared memory or by L2. An epilogue counts
/// for as long as it lasts beyond the products of the other warpgroup.
template <class Tile>
double estimate(const Shape& s, const Residency& gpu, Warpgroups way = Warpgroups::apart) {
  // Each of a clock and SM. A product takes the same time whatever its values are: of 2 bytes it is 2048 multiply-adds.
  // 128 bytes is what shared memory is specified for; 40 bytes of L2 is a guess near the peak of the SM's port.
  constexpr double product_area = 4096, shared_bytes = 128, l2_bytes = 40;
  // Clocks, both guesses: a launch's before the first product; an epilogue's beside its instructions, of which a
  // warp issues one a clock, and two that share a scheduler one in two: waits for products, bias, barriers and TMA.
  constexpr double start = 2000, waits = 400;
  const Schedule schedule = Schedule::of<Tile>(s.sums);
  const double waves = std::ceil(double(schedule.groups) / gpu.of(Tile::cluster));
  const int chunks = (s.cin * s.element_bytes + row_bytes - 1) / row_bytes, taps = s.kernel * s.kernel;
  const double steps = std::ceil(double(chunks) / Tile::split) * taps, boxes = steps / Tile::taps_of_a_box;
  const double products = steps * Tile::channels / 64 * (row_bytes / product_bytes);
  const double multiply = products * 64 * Tile::pixels * product_bytes / product_area;
  const double weights = Tile::stationary ? 0 : steps * Tile::channels * row_bytes, pixels = boxes * Tile::pixel_bytes;
  const double operands = products * (64 + Tile::pixels) * product_bytes;
  const double shared = (operands + weights + pixels) / shared_bytes;
  const double l2 = (weights / Tile::across + pixels / Tile::down) / l2_bytes;
  const double tile = std::max({multiply, shared, l2});
  // Clocks for which the other warpgroup multiplies while one stores; what is left of both epilogues then; and of the
  // last tile.
  const bool apart = way == Warpgroups::apart && Tile::lag > 0 && boxes >= Tile::pixel_stages;
  const double behind = (Tile::lag * Tile::taps_of_a_box - 1) * multiply / steps / consumers;
  const double hidden = Tile::pingpong ? tile : apart ? behind : 0;
  const double instructions = epilogue_instructions<Tile>(s);
  const double exchange = 2 * Tile::reduce_bytes / shared_bytes;  // sums written, and read by another block
  const double alone = waits + instructions, together = waits + exchange + consumers * instructions;
  const double shown = std::max(0.0, std::min(together - hidden, 2 * (alone - hidden)));
  return start + waves * tile + (waves - 1) * shown + std::max(alone, together - hidden);
}

}  // namespace vggfast::cuda::sm90
