// The one place where the Hopper wgrad's steps and splits are chosen.
#include <algorithm>

#include "cuda/conv/sm90/wgrad/run.h"
#include "cuda/conv/sm90/wgrad/walk.h"

namespace vggfast::cuda::sm90 {
namespace {

/// The walk of the fewest steps; among those, of the most phases, which fetches x the least.
WgradPlan choose_walk(int64_t n, int64_t h, int64_t w) {
  const int rows = ceil_div(h, 14) * 14 <= ceil_div(h, 8) * 8 ? 14 : 8;
  WgradPlan best{};
  for (int64_t phases = w; phases >= 1; --phases) {
    if (w % phases) continue;  // all teeth of a comb are as many
    for (int64_t abreast = group_rows; abreast >= 1; abreast /= 2) {
      const int64_t images = group_rows / abreast;
      const int64_t steps = phases * ceil_div(w / phases, abreast) * ceil_div(n, images) * ceil_div(h, rows);
      if (best.steps && steps >= best.steps) continue;
      best = {static_cast<int>(rows),
              static_cast<int>(phases),
              static_cast<int>(abreast),
              static_cast<int>(images),
              steps,
              1};
    }
  }
  return best;
}

/// The splits that take the least time, in steps (est.): each wave of blocks begins and ends with the tensor cores
/// idle, and each block's sums are written, then read again.
int64_t choose_splits(int64_t steps, int64_t gw_tiles) {
  constexpr double begin_and_end = 3, sums_of_a_block = 1.0 / 56;
  constexpr int64_t most_waves = 4;
  const int64_t most = std::clamp<int64_t>(most_waves * num_sms() / gw_tiles, 1, steps);
  const auto time = [&](int64_t splits) {
    const int64_t blocks = gw_tiles * splits, waves = ceil_div(blocks, num_sms());
    return static_cast<double>(waves) * (static_cast<double>(ceil_div(steps, splits)) + begin_and_end) +
           static_cast<double>(blocks) * sums_of_a_block;
  };
  int64_t best = 1;
  for (int64_t splits = 2; splits <= most; ++splits) {
    if (time(splits) < time(best)) best = splits;
  }
  return best;
}

}  // namespace

WgradPlan plan_wgrad(const Tensor& x, int64_t cout) {
  WgradPlan plan = choose_walk(x.size(0), x.size(2), x.size(3));
  const int64_t gw_tiles = ceil_div(cout, wgrad_channels) * ceil_div(x.size(1), wgrad_channels);
  plan.splits = static_cast<int>(choose_splits(plan.steps, gw_tiles));
  return plan;
}

}  // namespace vggfast::cuda::sm90
