#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <mutex>

#include "cuda/conv/sm90/fprop/choice.h"
#include "cuda/conv/sm90/fprop/estimate.h"
#include "cuda/conv/sm90/fprop/tuned.h"

namespace vggfast::cuda::sm90 {

constinit const TunedTable tuned{tuned_tiles, tuned_num_sms};

namespace {

std::mutex mutex;
std::map<std::array<int, 13>, TileId> tile_of_shape;  // by `mutex`'s holder alone

}  // namespace

const TunedTile* tuned_tile(const TunedTable& table, const Shape& s) {
  constexpr double furthest = 2;
  const TunedTile* nearest = nullptr;
  double least = std::numeric_limits<double>::infinity();
  int greatest_n = 0;
  for (const TunedTile& t : table.tiles) {
    const bool same = t.bytes == s.element_bytes && t.cin == s.cin && t.cout == s.sums.c && t.h == s.sums.h &&
                      t.w == s.sums.w && t.pool == s.pool;
    if (!same || s.kernel != 3) continue;
    greatest_n = std::max(greatest_n, t.n);
    const double ratio = double(std::max(t.n, s.sums.n)) / std::min(t.n, s.sums.n);
    if (ratio < least || (ratio == least && t.n < nearest->n)) least = ratio, nearest = &t;
  }
  return nearest && (least <= furthest || s.sums.n > greatest_n) ? nearest : nullptr;
}

TileId choose_tile(const Shape& shape, std::optional<TileId> asked_for, const Residency& gpu, const TunedTable& table) {
  const TunedTile* const measured = table.num_sms == gpu.num_sms ? tuned_tile(table, shape) : nullptr;
  std::optional<TileId> least, fastest, asked;
  double clocks = std::numeric_limits<double>::infinity();
  for_each_tile([&]<class Tile>(TileId id) {
    if (!fits<Tile>(shape) || gpu.of(Tile::cluster) == 0) return;
    if (asked_for && id == *asked_for) asked = id;
    if (measured && id == measured->tile) fastest = id;
    if (const double cost = estimate<Tile>(shape, gpu); cost < clocks) clocks = cost, least = id;
  });
  VGGFAST_CHECK(least, "no tile of the Hopper kernels fits this convolution");
  return asked ? *asked : fastest ? *fastest : *least;
}

TileId cached_tile(const Shape& s, const Residency& gpu) {
  constexpr size_t most_shapes = 4096;  // a network has some tens; a program that has more begins anew
  const std::array key = {s.sums.n,        s.sums.h,        s.sums.w,       s.sums.c,    s.cin,
                          s.kernel,        s.element_bytes, s.out_bytes,    int(s.pool), gpu.num_sms,
                          gpu.clusters[0], gpu.clusters[1], gpu.clusters[2]};
  const std::lock_guard lock(mutex);
  if (const auto found = tile_of_shape.find(key); found != tile_of_shape.end()) return found->second;
  if (tile_of_shape.size() == most_shapes) tile_of_shape.clear();
  return tile_of_shape[key] = choose_tile(s, {}, gpu);
}

}  // namespace vggfast::cuda::sm90
