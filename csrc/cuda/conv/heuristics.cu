#include <algorithm>

#include "cuda/conv/conv_algorithm.h"
#include "cuda/conv/heuristics.h"
#include "cuda/divider.h"
#include "cuda/launch.h"
#include "vggfast/cuda.h"

namespace vggfast::cuda {
namespace {

// The names that set_conv_tile takes are "auto", those of TileShape and those of TileId, in this order.
constexpr const char* sm80_names[] = {"large", "tall", "small"};
constexpr int first_sm80 = 1, first_sm90 = first_sm80 + static_cast<int>(std::size(sm80_names));

int asked_for = 0;  // for tests and tuning: nobody sets it while convolutions run

}  // namespace

std::vector<std::string> conv_tiles() {
  std::vector<std::string> names = {"auto"};
  names.insert(names.end(), std::begin(sm80_names), std::end(sm80_names));
  if (sm90_library()) names.insert(names.end(), sm90::tile_names.begin(), sm90::tile_names.end());
  return names;
}

void set_conv_tile(const std::string& name) {
  const std::vector<std::string> names = conv_tiles();
  const auto found = std::find(names.begin(), names.end(), name);
  std::string allowed;
  for (const std::string& known : names) allowed += (allowed.empty() ? "" : ", ") + known;
  VGGFAST_CHECK(found != names.end(), "tile must be one of ", allowed, ", got '", name, "'");
  asked_for = static_cast<int>(found - names.begin());
}

std::string conv_tile() { return conv_tiles()[asked_for]; }

bool tile_is_auto() { return asked_for == 0; }

std::optional<TileShape> sm80_tile_asked_for() {
  const int tile = asked_for;
  if (tile < first_sm80 || tile >= first_sm90) return {};
  return static_cast<TileShape>(tile - first_sm80);
}

std::optional<sm90::TileId> sm90_tile_asked_for() {
  const int tile = asked_for;
  if (tile < first_sm90) return {};
  return static_cast<sm90::TileId>(tile - first_sm90);
}

std::vector<ConvChoice> conv_choices(int64_t n, int64_t cin, int64_t h, int64_t w, int64_t cout, int64_t kernel,
                                     bool pool, int64_t bytes, int num_sms, const std::array<int, 3>& clusters) {
  const Sm90Library* const sm90 = sm90_library();
  return sm90 ? sm90->choices(n, cin, h, w, cout, kernel, pool, bytes, num_sms, clusters) : std::vector<ConvChoice>();
}

std::array<int, 3> conv_clusters() {
  const Sm90Library* const sm90 = sm90_library();
  VGGFAST_CHECK(sm90, "the Hopper kernels are not in this build: build with 90a in VGGFAST_CUDA_ARCHS");
  VGGFAST_CHECK(is_hopper(), "clusters need a GPU of compute capability 9.0");
  return sm90->clusters();
}

TileShape choose_fprop_tile(int64_t pixels, int64_t channels) {
  if (const auto tile = sm80_tile_asked_for()) return *tile;
  const bool narrow = channels <= 64;
  const int64_t blocks = ceil_div(pixels, 128) * ceil_div(channels, narrow ? 64 : 128);
  if (blocks < num_sms()) return TileShape::small;
  return narrow ? TileShape::tall : TileShape::large;
}

WgradPlan choose_wgrad(int64_t channels, int64_t columns, int64_t steps) {
  // Guesses: two waves of blocks hide the uneven last one; 16 steps are many beside a block's start and its sums.
  constexpr int64_t waves = 2, least_steps = 16, most_splits = 512;
  TileShape shape = channels > 64 && columns > 64 ? TileShape::large : TileShape::small;
  if (const auto tile = sm80_tile_asked_for()) shape = *tile == TileShape::large ? TileShape::large : TileShape::small;
  const int64_t edge = shape == TileShape::large ? 128 : 64;
  const int64_t blocks = ceil_div(channels, edge) * ceil_div(columns, edge);
  const int64_t for_waves = ceil_div(waves * num_sms(), blocks);
  return {shape, static_cast<int>(std::clamp<int64_t>(std::min(for_waves, steps / least_steps), 1, most_splits))};
}

}  // namespace vggfast::cuda
