// Which tile the Hopper fprop takes: the one asked for, the table's, the estimate's; and that what the table of tuned.h
// names exists and fits.
#include <algorithm>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "../check.h"
#include "cuda/conv/sm90/fprop/choice.h"
#include "cuda/conv/sm90/fprop/estimate.h"
#include "cuda/conv/sm90/fprop/tuned.h"
#include "vggfast/cuda.h"

using namespace vggfast;
using namespace vggfast::test;
using namespace vggfast::cuda::sm90;

namespace {

constexpr int num_sms = 132;
const Residency gpu{num_sms, {66, 32, 15}};

Shape layer(int n, bool pool = false) { return {{n, 56, 56, 256}, 128, 3, 2, 2, pool}; }

TunedTile entry(int n, TileId tile, bool pool = false) { return {2, 128, 256, 56, 56, n, pool, tile}; }

TileId tile_of(const Shape& shape) { return choose_tile(shape, {}, gpu, {{}, num_sms}); }

void check_nearest_n() {
  using enum TileId;
  const std::vector<TunedTile> tiles = {entry(1, halo_64x112), entry(8, halo_64x224), entry(64, halo_128x224)};
  const auto found = [&](int n) {
    const TunedTile* const entry = tuned_tile({tiles, num_sms}, layer(n));
    return entry ? std::optional(entry->tile) : std::nullopt;
  };
  for (int n : {1, 2}) CHECK(found(n) == halo_64x112, "n ", n);
  for (int n : {4, 8, 16}) CHECK(found(n) == halo_64x224, "n ", n);
  for (int n : {32, 64, 5000}) CHECK(found(n) == halo_128x224, "n ", n);
  for (int n : {3, 20}) CHECK(!found(n), "n ", n);
  const std::vector<TunedTile> two = {entry(4, halo_64x224), entry(1, halo_64x112)};
  CHECK(tuned_tile({two, num_sms}, layer(2))->tile == halo_64x112, "of two as near the smaller");
}

void check_only_this_layer_counts() {
  const Shape asked = layer(8);
  CHECK(!tuned_tile({{}, num_sms}, asked));
  std::vector<TunedTile> others(6, entry(8, TileId::halo_128x224));
  others[0].bytes = 4;
  others[1].cin = 256;
  others[2].cout = 128;
  others[3].h = 28;
  others[4].w = 28;
  others[5].pool = true;
  CHECK(!tuned_tile({others, num_sms}, asked));
  Shape narrow = asked;
  narrow.kernel = 1;
  const std::vector<TunedTile> same = {entry(8, TileId::halo_128x224)};
  CHECK(!tuned_tile({same, num_sms}, narrow), "1x1");
}

void check_an_entry_is_obeyed() {
  using enum TileId;
  const auto chosen = [](const Shape& shape, std::optional<TileId> asked_for, const Residency& on,
                         const TunedTable& table) {
    return std::string(name_of(choose_tile(shape, asked_for, on, table)));
  };
  const TileId other = tile_of(layer(64)) == im2col_64x64 ? im2col_128x128 : im2col_64x64;
  const std::vector<TunedTile> tiles = {entry(64, other)};
  CHECK_EQUAL(chosen(layer(64), {}, gpu, {tiles, num_sms}), name_of(other));
  CHECK_EQUAL(chosen(layer(64), halo_64x112, gpu, {tiles, num_sms}), "halo-64x112", "the one asked for comes first");
  CHECK_EQUAL(chosen(layer(64), halo_64x224_stationary, gpu, {tiles, num_sms}), name_of(other), "where it fits");
  const Residency other_gpu{num_sms - 1, gpu.clusters};
  CHECK_EQUAL(chosen(layer(64), {}, other_gpu, {tiles, num_sms}), chosen(layer(64), {}, other_gpu, {}),
              "measured on another GPU");
  const std::vector<TunedTile> useless = {entry(64, im2col_128x128, true)};  // it cannot pool
  CHECK_EQUAL(chosen(layer(64, true), {}, gpu, {useless, num_sms}), name_of(tile_of(layer(64, true))));
}

/// From several threads, of more shapes than the cache keeps, each asked for again and again.
void check_the_cache() {
  constexpr int shapes = 5000;
  std::vector<TileId> expected;
  for (int n = 1; n <= shapes; ++n) expected.push_back(choose_tile(layer(n), {}, gpu));
  CHECK(std::set(expected.begin(), expected.end()).size() > 1);
  int wrong[3] = {};
  const auto ask = [&](int first, int& wrong) {
    for (int i = 0; i < 2 * shapes; ++i) {
      const int n = (first + i) % shapes + 1;
      if (cached_tile(layer(n), gpu) != expected[n - 1]) ++wrong;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) threads.emplace_back(ask, 1700 * i, std::ref(wrong[i]));
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(wrong[0] + wrong[1] + wrong[2], 0);
  for (const Residency& on : {gpu, Residency{16, {8, 4, 2}}, Residency{16, {0, 0, 0}}, Residency{2, {1, 0, 0}}}) {
    const Shape shape = layer(3);
    for (int times : {1, 2}) CHECK(cached_tile(shape, on) == choose_tile(shape, {}, on), on.num_sms, times);
  }
}

void check_names() {
  const std::vector<std::string> names = cuda::conv_tiles();
  std::set<std::string> seen;
  for_each_tile([&]<class Tile>(TileId id) {
    const std::string name = name_of(id);
    CHECK(seen.insert(name).second, name);
    CHECK(std::find(names.begin(), names.end(), name) != names.end(), name);
    CHECK_EQUAL(name.substr(0, name.find('-')), Tile::halo ? "halo" : "im2col");
    CHECK(name.find(std::to_string(Tile::channels) + "x" + std::to_string(Tile::pixels)) != std::string::npos, name);
    CHECK_EQUAL(name.find("stationary") != std::string::npos, Tile::stationary, name);
    CHECK_EQUAL(name.find("split") != std::string::npos, Tile::split > 1, name);
    cuda::set_conv_tile(name);
    CHECK_EQUAL(cuda::conv_tile(), name);
  });
  CHECK_EQUAL(seen.size(), tile_names.size());
  cuda::set_conv_tile("auto");
}

void check_choices_say_which_is_taken() {
  const auto choices = cuda::conv_choices(8, 128, 56, 56, 256, 3, false, 2, num_sms, gpu.clusters);
  const std::string chosen = name_of(choose_tile(layer(8), {}, gpu));
  CHECK(choices.size() > 2);
  for (const auto& choice : choices) CHECK_EQUAL(choice.chosen, choice.tile == chosen, choice.tile);
}

/// A row of shared memory takes a product as long whatever its values; so do as many bytes of channels.
void check_estimates_go_by_bytes() {
  const auto clocks = [](int cin, int bytes) {
    std::vector<double> all;
    for_each_tile([&]<class Tile>(TileId) {
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
  constexpr double peak = 2048.0 * num_sms;
  for (int n : {1, 8, 1024}) {
    for (const auto& choice : cuda::conv_choices(n, 512, 56, 56, 512, 3, false, 2, num_sms, gpu.clusters)) {
      CHECK(choice.clocks * peak > 9.0 * 512 * 512 * 56 * 56 * n, choice.tile, ", n ", n);
    }
  }
}

/// 512 channels at 28 x 28, one image: sixteen tiles of split8 are one wave of sixteen clusters, and two of fifteen.
void check_the_clusters_that_fit() {
  const Shape shape{{1, 28, 28, 512}, 512, 3, 2, 2, false};
  const auto clocks = [&](TileId wanted, const Residency& on) {
    double found = -1;
    for_each_tile([&]<class Tile>(TileId id) {
      if (id == wanted) found = estimate<Tile>(shape, on);
    });
    return found;
  };
  const Residency all{num_sms, {66, 33, 16}}, none{num_sms, {0, 0, 0}};
  for_each_tile([&]<class Tile>(TileId id) {
    if (Tile::cluster != 8) return;
    const int groups = Schedule::of<Tile>(shape.sums).groups;
    const int waves_of_16 = (groups + 15) / 16, waves_of_15 = (groups + 14) / 15;
    CHECK_EQUAL(clocks(id, gpu) > clocks(id, all), waves_of_15 > waves_of_16, name_of(id), ", ", groups, " groups");
    CHECK(choose_tile(shape, id, gpu) == id, name_of(id));
    CHECK(choose_tile(shape, id, none) != id, name_of(id), " where no cluster fits");
  });
  CHECK_EQUAL(gpu.of(1), num_sms);
  CHECK_EQUAL(gpu.of(2), 66);
  CHECK_EQUAL(gpu.of(4), 32);
  CHECK_EQUAL(gpu.of(8), 15);
  for (const auto& choice : cuda::conv_choices(1, 512, 28, 28, 512, 3, false, 2, num_sms, none.clusters)) {
    CHECK(choice.tile.find("split") == std::string::npos && choice.tile.find("s2") == std::string::npos, choice.tile);
  }
}

/// What of an epilogue is hidden: nothing where a tile has too few boxes or blocks add up its sums, all of it but the
/// last one's where it has as many as it needs, and never more.
void check_what_of_an_epilogue_counts() {
  const auto saved = [&]<class Tile>(const Shape& shape) {
    return estimate<Tile>(shape, gpu, Warpgroups::in_step) - estimate<Tile>(shape, gpu);
  };
  for_each_tile([&]<class Tile>(TileId id) {
    const Shape narrow{{64, 112, 112, 128}, 64, 1, 2, 2, false}, wide{{64, 112, 112, 128}, 128, 3, 2, 2, false};
    if (fits<Tile>(narrow)) CHECK_EQUAL(saved.template operator()<Tile>(narrow), 0, name_of(id));
    if (!fits<Tile>(wide)) return;
    const double clocks = saved.template operator()<Tile>(wide), instructions = epilogue_instructions<Tile>(wide);
    CHECK_EQUAL(clocks > 0, Tile::lag > 0, name_of(id));
    const double tiles = std::ceil(double(Schedule::of<Tile>(wide.sums).groups) / gpu.of(Tile::cluster));
    CHECK(clocks <= tiles * (400 + 2 * instructions), name_of(id));
    CHECK(Tile::lag == 0 || clocks > tiles * instructions, name_of(id));
  });
}

auto order(const TunedTile& t) { return std::tuple(t.bytes, t.cin, t.cout, t.h, t.w, t.pool, t.n); }

void check_the_tuned_table() {
  for (size_t i = 0; i < tuned_tiles.size(); ++i) {
    const TunedTile& t = tuned_tiles[i];
    const Shape shape{{t.n, t.h, t.w, t.cout}, t.cin, 3, t.bytes, t.bytes, t.pool};
    CHECK_EQUAL(std::string(name_of(choose_tile(shape, {}, {tuned_num_sms, gpu.clusters}))), name_of(t.tile), "entry ",
                i);
    CHECK(i == 0 || order(tuned_tiles[i - 1]) < order(t), "entry ", i, " is out of order");
  }
}

}  // namespace

int main() {
  check_nearest_n();
  check_only_this_layer_counts();
  check_an_entry_is_obeyed();
  check_the_cache();
  check_names();
  check_what_of_an_epilogue_counts();
  check_choices_say_which_is_taken();
  check_estimates_go_by_bytes();
  check_nothing_beats_the_peak();
  check_the_clusters_that_fit();
  check_the_tuned_table();
  return result();
}
