// Which tile fprop takes: the one that was asked for, else the one that was measured to be the fastest (tuned.h), else
// the one of the least estimate (estimate.h).
#pragma once

#include <optional>
#include <span>

#include "cuda/conv/sm90/fprop/tiles.h"

namespace vggfast::cuda::sm90 {

/// A 3x3 layer, as an fprop of values of `bytes` (for dgrad, cin is gy's channels), and the tile that was the fastest.
struct TunedTile {
  int bytes, cin, cout, h, w, n;
  bool pool;
  TileId tile;
};

/// What was measured on a GPU of so many SMs; it says nothing about others.
struct TunedTable {
  std::span<const TunedTile> tiles;
  int num_sms;
};

/// What benchmarks/tune.py measured.
extern const TunedTable tuned;

/// The entry for this very layer whose n is the nearest by ratio, the smaller of two. The entry counts
/// where the two n are at most a factor of two apart, or where n is greater than that of every entry: more images only
/// add waves. Null where no entry counts.
const TunedTile* tuned_tile(const TunedTable& table, const Shape& shape);

/// The tile that was asked for, or the table's, counts where it fits, and its cluster the GPU.
TileId choose_tile(const Shape& shape, std::optional<TileId> asked_for, const Residency& gpu,
                   const TunedTable& table = tuned);

/// choose_tile(shape, {}, gpu), worked out once for each shape. Threads may call it at the same time.
TileId cached_tile(const Shape& shape, const Residency& gpu);

}  // namespace vggfast::cuda::sm90
