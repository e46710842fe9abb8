// The choice as it was before cpu/algorithms/conv_algorithm.h, for csrc/engine until that uses the table.
#include <string>

#include "cpu/algorithms/choose.h"
#include "cpu/algorithms/stem.h"
#include "cpu/algorithms/winograd.h"
#include "vggfast/conv.h"

namespace vggfast {
namespace cpu {
namespace {

/// Estimates, in multiply-adds of the direct convolution: per point of a tile, what moving one channel through a
/// transform costs; and per point of one pair of channels, what its transformed weights cost to pack, or to stream.
constexpr int automatic = -1;
constexpr double transform_cost = 14, pack_cost = 35, stream_cost = 9;

double cost(int m, Extent in, int64_t cout, bool packed) {
  const double points = (m + 2) * (m + 2), weights = static_cast<double>(in.c * cout);
  const double tiles = static_cast<double>(Winograd(m, in.c, cout).tiles(in));
  const double channels = static_cast<double>(in.c + cout);
  return points * (tiles * (weights + transform_cost * channels) + weights * (packed ? stream_cost : pack_cost));
}

}  // namespace

int choose_algorithm(Pass pass, Extent in, int64_t cout, int64_t kernel, bool packed) {
  const std::string asked = conv_algorithm();
  const int m = asked == "auto" ? automatic : asked == "direct" ? direct : asked.back() - '0';
  if (m <= direct && pass != Pass::dgrad && Stem::suits(in.c, kernel)) return stem;
  if (m == direct) return direct;
  if (kernel == 1) return 1;
  if (m != automatic) return m;
  int best = 2;
  for (int candidate : {4, 6}) {
    if (cost(candidate, in, cout, packed) < cost(best, in, cout, packed)) best = candidate;
  }
  return best;
}

std::string name_of(int algorithm) {
  if (algorithm <= direct) return "direct";
  return algorithm == 1 ? "1x1" : "winograd" + std::to_string(algorithm);
}

}  // namespace cpu
}  // namespace vggfast
