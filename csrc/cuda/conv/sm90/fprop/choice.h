// Which tile fprop takes: the one asked for, else the one measured to be the fastest (tuned.h), else the one of the
// least estimate (tiles.h).
#pragma once

#include <span>
#include <string>

#include "cuda/conv/sm90/fprop/tiles.h"

namespace vggfast::cuda::hopper {

/// A 3x3 layer, as an fprop of values of `bytes` (dgrad's cin is gy's channels), and the tile that was the fastest.
struct TunedTile {
  int bytes, cin, cout, h, w, n;
  bool pool;
  const char* tile;
};

/// What was measured on a GPU of so many multiprocessors; it says nothing of others.
struct TunedTable {
  std::span<const TunedTile> tiles;
  int multiprocessors;
};

/// What benchmarks/tune.py measured.
extern const TunedTable tuned;

/// The tile of the entry for this very layer whose n is the nearest by ratio, the smaller of two. It counts where the
/// two n are no further apart than by a factor of two, or the asked one is the greater and no entry's is as great: more
/// images are but more waves. Null where none counts.
const char* tuned_tile(const TunedTable& table, const Shape& shape);

/// `wanted`, or the table's tile, counts where it is one that fits.
std::string choose_tile(const Shape& shape, const std::string& wanted, int multiprocessors,
                        const TunedTable& table = tuned);

}  // namespace vggfast::cuda::hopper
