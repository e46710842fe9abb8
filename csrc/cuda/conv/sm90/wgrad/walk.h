// The order in which the Hopper wgrad sums over pixels, and what a step of it takes of shared memory.
//
// Column x of an image is phase x % phases and tooth x / phases, as in a comb. For phases = 4 and w = 12:
//
//   column   0  1  2  3  4  5  6  7  8  9 10 11
//   phase    0  1  2  3  0  1  2  3  0  1  2  3
//   tooth    0  0  0  0  1  1  1  1  2  2  2  2
//
// A step takes some rows of 8 pixels of one phase: `abreast` teeth of each of 8 / abreast images. One column to the
// right is the next phase. So the box of x that a step multiplies by its right taps serves the next step's middle taps,
// and the left taps of the one after. A run over all phases loads x (phases + 2) / phases times instead of three times,
// and the pixels of every tap start at a group of the swizzle.
#pragma once

#include "cuda/conv/sm90/core/operand.h"
#include "cuda/divider.h"

namespace vggfast::cuda::sm90 {

constexpr int wgrad_channels = 64;  // of cout and of cin: a block's
constexpr int row_taps = 3, column_taps = 3;

/// Rows of a step: 14 go into 224, 112, 56, 28 and 14; 8 leave less over of most small images.
template <int Rows>
struct WgradTile {
  static constexpr int rows = Rows;
  static constexpr int gz_bytes = rows * group_bytes, x_bytes = (rows + row_taps - 1) * group_bytes;  // of a box
  static constexpr int gz_stages = (70 << 10) / gz_bytes, x_stages = (144 << 10) / x_bytes;
  static_assert(rows % 2 == 0);  // a product takes two
};

/// The first pixels of a run's steps.
struct WgradPlace {
  int image, y, tooth;
};

struct WgradWalk {
  Divider phases, across, down;  // steps of a run; runs beside, and below, each other in an image
  int steps;                     // over all
  int abreast, images;           // of a step

  template <class Tile>
  __device__ __forceinline__ WgradPlace place(int run) const {
    const int line = across.quotient(run), image = down.quotient(line);
    return {image * images, down.remainder(line) * Tile::rows, across.remainder(run) * abreast};
  }

  /// Calls body(run, phase, count) for each run of which [begin, end) has `count` steps, from `phase` on.
  template <class Body>
  __device__ __forceinline__ void for_runs(int begin, int end, Body body) const {
    while (begin < end) {
      const int run = phases.quotient(begin), phase = phases.remainder(begin);
      const int left = static_cast<int>(phases.divisor) - phase, count = left < end - begin ? left : end - begin;
      body(run, phase, count);
      begin += count;
    }
  }
};

}  // namespace vggfast::cuda::sm90
