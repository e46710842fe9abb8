// Which tile the Hopper fprop takes: the one asked for, the table's, the estimate's; and that what the table of tuned.h
// names exists and fits.
#include <algorithm>
#include <tuple>
#include <vector>

#include "../check.h"
#include "cuda/conv/sm90/fprop/choice.h"
#include "cuda/conv/sm90/fprop/tuned.h"
#include "vggfast/cuda.h"

using namespace vggfast;
using namespace vggfast::test;
using namespace vggfast::cuda::hopper;

namespace {

constexpr int gpu = 132;

Shape layer(int n, bool pool = false) { return {{n, 56, 56, 256}, 128, 3, 2, 2, pool}; }

TunedTile entry(int n, const char* tile, bool pool = false) { return {2, 128, 256, 56, 56, n, pool, tile}; }

std::string tile_of(const Shape& shape) { return choose_tile(shape, "auto", gpu, {{}, gpu}); }

void check_nearest_n() {
  const std::vector<TunedTile> tiles = {entry(1, "one"), entry(8, "eight"), entry(64, "many")};
  const auto found = [&](int n) {
    const char* const tile = tuned_tile({tiles, gpu}, layer(n));
    return std::string(tile ? tile : "none");
  };
  for (int n : {1, 2}) CHECK_EQUAL(found(n), "one", "n ", n);
  for (int n : {4, 8, 16}) CHECK_EQUAL(found(n), "eight", "n ", n);
  for (int n : {32, 64, 5000}) CHECK_EQUAL(found(n), "many", "n ", n);
  for (int n : {3, 20}) CHECK_EQUAL(found(n), "none", "n ", n);
  const std::vector<TunedTile> two = {entry(4, "four"), entry(1, "one")};
  CHECK_EQUAL(std::string(tuned_tile({two, gpu}, layer(2))), "one", "of two as near the smaller");
}

void check_only_this_layer_counts() {
  const Shape asked = layer(8);
  CHECK(tuned_tile({{}, gpu}, asked) == nullptr);
  std::vector<TunedTile> others(6, entry(8, "other"));
  others[0].bytes = 4;
  others[1].cin = 256;
  others[2].cout = 128;
  others[3].h = 28;
  others[4].w = 28;
  others[5].pool = true;
  CHECK(tuned_tile({others, gpu}, asked) == nullptr);
  Shape narrow = asked;
  narrow.kernel = 1;
  const std::vector<TunedTile> same = {entry(8, "same")};
  CHECK(tuned_tile({same, gpu}, narrow) == nullptr, "1x1");
}

void check_an_entry_is_obeyed() {
  const std::string estimated = tile_of(layer(64));
  const std::string other = estimated == "flat-64x64" ? "flat-128x128" : "flat-64x64";
  const std::vector<TunedTile> tiles = {entry(64, other.c_str())};
  CHECK_EQUAL(choose_tile(layer(64), "auto", gpu, {tiles, gpu}), other);
  CHECK_EQUAL(choose_tile(layer(64), "rows-64x112", gpu, {tiles, gpu}), "rows-64x112", "the one asked for comes first");
  CHECK_EQUAL(choose_tile(layer(64), "rows-64x224-resident", gpu, {tiles, gpu}), other, "where it fits");
  CHECK_EQUAL(choose_tile(layer(64), "auto", gpu - 1, {tiles, gpu}), choose_tile(layer(64), "auto", gpu - 1, {}),
              "measured on another GPU");
  for (const char* name : {"gone", "flat-128x128"}) {  // no such tile; one that cannot pool
    const std::vector<TunedTile> useless = {entry(64, name, true)};
    CHECK_EQUAL(choose_tile(layer(64, true), "auto", gpu, {useless, gpu}), tile_of(layer(64, true)), name);
  }
}

void check_choices_say_which_is_taken() {
  const auto choices = cuda::conv_choices(8, 128, 56, 56, 256, 3, false, 2, gpu);
  const Shape shape = layer(8);
  CHECK(choices.size() > 2);
  for (const auto& choice : choices) {
    CHECK_EQUAL(choice.chosen, choice.tile == choose_tile(shape, "auto", gpu), choice.tile);
  }
}

/// A row of shared memory takes a product as long whatever its values; so do as many bytes of channels.
void check_estimates_go_by_bytes() {
  const auto clocks = [](int cin, int bytes) {
    std::vector<double> all;
    for_each_tile([&]<class Tile>(const char*) {
      const Shape shape{{64, 56, 56, 256}, cin, 3, bytes, bytes, false};
      if (fits<Tile>(shape)) all.push_back(estimate<Tile>(shape, gpu));
    });
    return all;
  };
  CHECK(clocks(128, 2) == clocks(64, 4), "TF32");
  CHECK(clocks(128, 2) == clocks(256, 1), "e4m3");
}

/// Of values of two bytes.
void check_nothing_beats_the_peak() {
  constexpr double peak = 2048.0 * gpu;
  for (int n : {1, 8, 1024}) {
    for (const auto& choice : cuda::conv_choices(n, 512, 56, 56, 512, 3, false, 2, gpu)) {
      CHECK(choice.clocks * peak > 9.0 * 512 * 512 * 56 * 56 * n, choice.tile, ", n ", n);
    }
  }
}

auto order(const TunedTile& t) { return std::tuple(t.bytes, t.cin, t.cout, t.h, t.w, t.pool, t.n); }

void check_the_tuned_table() {
  for (size_t i = 0; i < tuned_tiles.size(); ++i) {
    const TunedTile& t = tuned_tiles[i];
    const Shape shape{{t.n, t.h, t.w, t.cout}, t.cin, 3, t.bytes, t.bytes, t.pool};
    CHECK_EQUAL(choose_tile(shape, "auto", tuned_multiprocessors), t.tile, "entry ", i);
    CHECK(i == 0 || order(tuned_tiles[i - 1]) < order(t), "entry ", i, " is out of order");
  }
}

}  // namespace

int main() {
  check_nearest_n();
  check_only_this_layer_counts();
  check_an_entry_is_obeyed();
  check_choices_say_which_is_taken();
  check_estimates_go_by_bytes();
  check_nothing_beats_the_peak();
  check_the_tuned_table();
  return result();
}
