#include <algorithm>

#include "cuda/conv/heuristics.h"
#include "cuda/conv/sm90/fprop/choice.h"
#include "cuda/launch.h"
#include "vggfast/cuda.h"

namespace vggfast::cuda {
namespace {

std::string forced = "auto";

int64_t tiles(int64_t extent, int64_t tile) { return (extent + tile - 1) / tile; }

bool force(TileShape& shape) {
  if (!is_portable_tile(forced)) return false;
  shape = forced == "large" ? TileShape::large : forced == "tall" ? TileShape::tall : TileShape::small;
  return true;
}

}  // namespace

std::vector<std::string> conv_tiles() {
  std::vector<std::string> names = {"auto", "large", "tall", "small"};
#ifdef VGGFAST_SM90
  hopper::for_each_tile([&]<class>(const char* name) { names.emplace_back(name); });
#endif
  return names;
}

bool is_portable_tile(const std::string& name) { return name == "large" || name == "tall" || name == "small"; }

void set_conv_tile(const std::string& name) {
  const std::vector<std::string> names = conv_tiles();
  std::string allowed;
  for (const std::string& known : names) allowed += (allowed.empty() ? "" : ", ") + known;
  VGGFAST_CHECK(std::find(names.begin(), names.end(), name) != names.end(), "tile must be one of ", allowed, ", got '",
                name, "'");
  forced = name;
}

std::string conv_tile() { return forced; }

std::vector<ConvChoice> conv_choices([[maybe_unused]] int64_t n, [[maybe_unused]] int64_t cin,
                                     [[maybe_unused]] int64_t h, [[maybe_unused]] int64_t w,
                                     [[maybe_unused]] int64_t cout, [[maybe_unused]] int64_t kernel,
                                     [[maybe_unused]] bool pool, [[maybe_unused]] int64_t bytes,
                                     [[maybe_unused]] int multiprocessors) {
  std::vector<ConvChoice> choices;
#ifdef VGGFAST_SM90
  const hopper::Shape shape{{static_cast<int>(n), static_cast<int>(h), static_cast<int>(w), static_cast<int>(cout)},
                            static_cast<int>(cin),
                            static_cast<int>(kernel),
                            static_cast<int>(bytes),
                            static_cast<int>(bytes),
                            pool};
  const std::string chosen = hopper::choose_tile(shape, "auto", multiprocessors);
  hopper::for_each_tile([&]<class Tile>(const std::string& name) {
    if (!hopper::fits<Tile>(shape)) return;
    choices.push_back({name, hopper::estimate<Tile>(shape, multiprocessors), name == chosen});
  });
  std::sort(choices.begin(), choices.end(), [](const auto& a, const auto& b) { return a.clocks < b.clocks; });
#endif
  return choices;
}

TileShape choose_fprop_tile(int64_t pixels, int64_t channels) {
  TileShape shape;
  if (force(shape)) return shape;
  const bool narrow = channels <= 64;
  const int64_t blocks = tiles(pixels, 128) * tiles(channels, narrow ? 64 : 128);
  if (blocks < multiprocessors()) return TileShape::small;
  return narrow ? TileShape::tall : TileShape::large;
}

WgradPlan choose_wgrad(int64_t channels, int64_t columns, int64_t steps) {
  constexpr int64_t waves = 2, least_steps = 16, most_splits = 512;
  TileShape shape;
  if (!force(shape)) shape = channels > 64 && columns > 64 ? TileShape::large : TileShape::small;
  if (shape == TileShape::tall) shape = TileShape::small;
  const int64_t edge = shape == TileShape::large ? 128 : 64;
  const int64_t blocks = tiles(channels, edge) * tiles(columns, edge);
  const int64_t wanted = tiles(waves * multiprocessors(), blocks);
  return {shape, static_cast<int>(std::clamp<int64_t>(std::min(wanted, steps / least_steps), 1, most_splits))};
}

}  // namespace vggfast::cuda
