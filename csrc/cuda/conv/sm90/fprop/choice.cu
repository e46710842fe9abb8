#include <limits>

#include "cuda/conv/sm90/fprop/choice.h"
#include "cuda/conv/sm90/fprop/tuned.h"

namespace vggfast::cuda::hopper {

constinit const TunedTable tuned{tuned_tiles, tuned_multiprocessors};

const char* tuned_tile(const TunedTable& table, const Shape& s) {
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
  return nearest && (least <= furthest || s.sums.n > greatest_n) ? nearest->tile : nullptr;
}

std::string choose_tile(const Shape& shape, const std::string& wanted, int multiprocessors, const TunedTable& table) {
  const char* const measured = table.multiprocessors == multiprocessors ? tuned_tile(table, shape) : nullptr;
  std::string least, fastest, asked;
  double clocks = std::numeric_limits<double>::infinity();
  for_each_tile([&]<class Tile>(const std::string& name) {
    if (!fits<Tile>(shape)) return;
    if (name == wanted) asked = name;
    if (measured && name == measured) fastest = name;
    if (const double cost = estimate<Tile>(shape, multiprocessors); cost < clocks) clocks = cost, least = name;
  });
  return !asked.empty() ? asked : !fastest.empty() ? fastest : least;
}

}  // namespace vggfast::cuda::hopper
