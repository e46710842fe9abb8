// max_pool2x2, mask_gather, mask_scatter and sum_pool against naive loops; ties, NaN and infinities, also in
// the pool that a convolution does.
#include "reference.h"
#include "vggfast/conv.h"
#include "vggfast/pool.h"

namespace vggfast::test {
namespace {

constexpr int64_t channel_counts[] = {1, 3, 7, 17, 33, 70};
constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double inf = std::numeric_limits<double>::infinity();

struct Shape {
  int64_t n, c, h, w;
  std::string name() const { return describe({n, c, h, w}); }
};

/// All channel counts on small images, odd and empty extents, and one of so many rows that several threads share them.
std::vector<Shape> shapes() {
  std::vector<Shape> out;
  for (int64_t c : channel_counts) out.push_back({2, c, 5, 7});
  for (const auto& [n, h, w] :
       {std::array<int64_t, 3>{0, 4, 4}, {1, 1, 1}, {1, 1, 6}, {2, 6, 1}, {1, 2, 2}, {2, 0, 4}, {2, 4, 0}, {3, 9, 8}}) {
    out.push_back({n, 17, h, w});
  }
  out.push_back({3, 70, 41, 21});
  return out;
}

void check_max_pool(const Shape& s, bool ceil_mode, Random& random) {
  const Epilogue e{.relu = false, .pool = true};
  const Array x = random.array(Fill::integers, s.n, s.c, s.h, s.w);
  const Chosen expected = select(x, e, ceil_mode);
  const int64_t oh = expected.y.h, ow = expected.y.w;
  for_each_setting([&](DType dtype, const std::string& setting) {
    const Held held = put(dtype, x), first = make_nhwc(dtype, s.n, s.c, oh, ow);
    const Held first_bits = make_mask(e, s.n, s.c, oh, ow);
    max_pool2x2(held, first, &first_bits.view, {1});
    CHECK_SAME(first, expected.y, setting, " max_pool ", s.name(), " ceil ", ceil_mode);
    check_mask_bits(first_bits, e, expected, setting, " max_pool ", s.name(), " ceil ", ceil_mode);
    for (int threads : {1, 2, 3}) {
      for (bool keep : {false, true}) {
        const Held y = make_nhwc(dtype, s.n, s.c, oh, ow), bits = make_mask(e, s.n, s.c, oh, ow);
        max_pool2x2(held, y, keep ? &bits.view : nullptr, {threads});
        CHECK(y.same_bytes(first), setting, " max_pool ", s.name(), " threads ", threads, " mask ", keep);
        CHECK(!keep || bits.same_bytes(first_bits), setting, " max_pool ", s.name(), " threads ", threads);
      }
    }
  });
}

void check_masks(const Shape& s, Epilogue e, bool ceil_mode, Random& random) {
  const Array z = random.array(Fill::reals, s.n, s.c, s.h, s.w);
  const Chosen chosen = choose(z, e, ceil_mode, random);
  const Array y = random.array(Fill::reals, s.n, s.c, chosen.y.h, chosen.y.w);
  const Array scattered = scatter(y, chosen.from, e, s.h, s.w);
  for_each_setting([&](DType dtype, const std::string& setting) {
    const Held held_z = put(dtype, z), held_y = put(dtype, y);
    // Bits that belong to no channel mean nothing, whatever they are.
    for (bool padding : {false, true}) {
      const Held bits = put_mask(e, chosen.from, chosen.window, padding);
      for (int threads : {1, 2, 3}) {
        std::ostringstream name;
        name << setting << " " << s.name() << " relu " << e.relu << " pool " << e.pool << " ceil " << ceil_mode
             << " padding " << padding << " threads " << threads;
        const Held out_y = make_nhwc(dtype, s.n, s.c, y.h, y.w), out_z = make_nhwc(dtype, s.n, s.c, s.h, s.w);
        mask_gather(held_z, bits, e, out_y, {threads});
        CHECK_SAME(out_y, chosen.y, "gather ", name.str());
        mask_scatter(held_y, bits, e, out_z, {threads});
        CHECK_SAME(out_z, scattered, "scatter ", name.str());
      }
    }
  });
}

/// A mask that points out of a window which the edge cuts must not be followed there: the guard pages watch.
void check_foreign_mask() {
  const Epilogue e{.relu = false, .pool = true};
  for_each_setting([&](DType dtype, const std::string& setting) {
    const Array z(1, 3, 1, 1);
    Array one(1, 3, 1, 1), last(1, 3, 1, 1);
    for (double& v : one.values) v = 1;
    for (double& v : last.values) v = 3;
    const Held bits = put_mask(e, last, last, false), held = put(dtype, one);
    const Held y = make_nhwc(dtype, 1, 3, 1, 1), gz = make_nhwc(dtype, 1, 3, 1, 1);
    mask_gather(held, bits, e, y, {1});
    CHECK_SAME(y, one, setting, " gather of a foreign mask");
    mask_scatter(held, bits, e, gz, {1});
    CHECK_SAME(gz, z, setting, " scatter of a foreign mask");
  });
}

struct Window {
  double values[4];
  double max;
  int number;  // of the element that wins
};
const Window windows[] = {{{4, 4, 4, 4}, 4, 0},
                          {{1, 4, 4, 4}, 4, 1},
                          {{1, 2, 4, 4}, 4, 2},
                          {{1, 2, 3, 4}, 4, 3},
                          {{4, 1, 2, 4}, 4, 0},
                          {{2, 3, 3, 1}, 3, 1},
                          {{-2, -1, -1, -3}, -1, 1},
                          {{0, 0, 0, 0}, 0, 0},
                          {{-1, 0, 0, -1}, 0, 1},
                          {{nan, 5, 3, 1}, nan, 0},
                          {{1, nan, 7, 9}, nan, 1},
                          {{1, nan, nan, 7}, nan, 2},
                          {{9, 1, 2, nan}, nan, 3},
                          {{nan, nan, nan, nan}, nan, 3},
                          {{inf, nan, inf, 1}, nan, 1},
                          {{inf, inf, 1, 2}, inf, 0},
                          {{1, -inf, inf, 2}, inf, 2},
                          {{-inf, -inf, -inf, -inf}, -inf, 0},
                          {{-inf, -inf, -5, -inf}, -5, 2},
                          {{nan, -inf, -inf, 0}, nan, 0}};

/// The windows' table by max_pool2x2, and by a convolution that copies x into every channel, without and with ReLU.
void check_windows(int64_t channels) {
  const auto count = static_cast<int64_t>(std::size(windows));
  Array x(1, channels, 2, 2 * count), single(1, 1, 2, 2 * count), ones(channels, 1, 1, 1);
  Chosen expected[2]{{Array(1, channels, 1, count), Array(1, channels, 1, count), Array(1, channels, 1, count)},
                     {Array(1, channels, 1, count), Array(1, channels, 1, count), Array(1, channels, 1, count)}};
  for (int64_t c = 0; c < channels; ++c) {
    ones.at(c, 0, 0, 0) = 1;
    for (int64_t i = 0; i < count; ++i) {
      const Window& window = windows[i];
      for (int k = 0; k < 4; ++k)
        x.at(0, c, k / 2, 2 * i + k % 2) = single.at(0, 0, k / 2, 2 * i + k % 2) = window.values[k];
      for (bool relu : {false, true}) {
        const bool cut = relu && window.max <= 0;
        expected[relu].y.at(0, c, 0, i) = cut ? 0 : window.max;
        expected[relu].window.at(0, c, 0, i) = window.number;
        expected[relu].from.at(0, c, 0, i) = cut ? -1 : window.number;
      }
    }
  }
  for_each_setting([&](DType dtype, const std::string& setting) {
    const Held image = put(dtype, single), weight = put(dtype, ones);
    for (const char* algorithm : {"direct", "auto"}) {
      set_conv_algorithm(algorithm);
      for (bool relu : {false, true}) {
        const Epilogue e{.relu = relu, .pool = true};
        const std::string name = setting + " windows by conv " + algorithm + (relu ? ", relu" : "");
        const Held y = make_nhwc(dtype, 1, channels, 1, count), bits = make_mask(e, 1, channels, 1, count);
        const HeldWorkspace workspace(conv_fprop_workspace(image, weight, e, {1}));
        conv_fprop(image, weight, nullptr, e, y, &bits.view, workspace, {1});
        CHECK_SAME(y, expected[relu].y, name, ", channels ", channels);
        check_mask_bits(bits, e, expected[relu], name, ", channels ", channels);
      }
    }
    const Held held = put(dtype, x), y = make_nhwc(dtype, 1, channels, 1, count);
    const Held bits = make_mask({.relu = false, .pool = true}, 1, channels, 1, count);
    max_pool2x2(held, y, &bits.view, {1});
    CHECK_SAME(y, expected[0].y, setting, " windows by max_pool, channels ", channels);
    check_mask_bits(bits, {.relu = false, .pool = true}, expected[0], setting, " windows by max_pool");
  });
}

void check_sum_pool(const Shape& s, Random& random) {
  const Array x = random.array(Fill::integers, s.n, s.c, s.h, s.w);
  const double pixels = static_cast<double>(s.h * s.w);
  Array sums(s.n, s.c, 1, 1), means(s.n, s.c, 1, 1);
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t c = 0; c < s.c; ++c) {
      for (int64_t i = 0; i < s.h * s.w; ++i) sums.at(n, c, 0, 0) += x.at(n, c, 0, i);
      means.at(n, c, 0, 0) = sums.at(n, c, 0, 0) / pixels;  // NaN without pixels, as in torch
    }
  for_each_setting([&](DType dtype, const std::string& setting) {
    const Held held = put(dtype, x);
    for (int threads : {1, 2, 3}) {
      const Held sum = make(dtype, {s.n, s.c}, {0, 1}), mean = make(dtype, {s.n, s.c}, {0, 1});
      sum_pool(held, false, sum, {threads});
      CHECK_SAME(sum, sums, setting, " sum_pool ", s.name(), " threads ", threads);
      sum_pool(held, true, mean, {threads});
      CHECK_NEAR(mean, means, 2, absolute(means), setting, " mean ", s.name(), " threads ", threads);
    }
  });
}

/// 2^24 and four ones: a float sum would stay at 2^24.
void check_sums_are_double() {
  Array x(1, 70, 1, 5), expected(1, 70, 1, 1);
  for (int64_t c = 0; c < x.c; ++c) {
    for (int64_t i = 0; i < 5; ++i) x.at(0, c, 0, i) = i == 0 ? 0x1p24 : 1;
    expected.at(0, c, 0, 0) = 0x1p24 + 4;
  }
  x.at(0, 69, 0, 3) = expected.at(0, 69, 0, 0) = nan;
  for_each_setting([&](DType dtype, const std::string& setting) {
    const Held held = put(dtype, x), y = make(dtype, {1, 70}, {0, 1});
    sum_pool(held, false, y, {1});
    CHECK_SAME(y, expected, setting, " sum_pool of 2^24 and ones");
  });
}

void run_all() {
  Random random(7);
  for (const Shape& s : shapes()) {
    for (bool ceil_mode : {false, true}) {
      check_max_pool(s, ceil_mode, random);
      check_masks(s, {.relu = false, .pool = true}, ceil_mode, random);
      check_masks(s, {.relu = true, .pool = true}, ceil_mode, random);
    }
    check_masks(s, {.relu = true, .pool = false}, false, random);
    check_sum_pool(s, random);
  }
  check_foreign_mask();
  for (int64_t channels : channel_counts) check_windows(channels);
  check_sums_are_double();
}

}  // namespace
}  // namespace vggfast::test

int main() {
  vggfast::test::run_all();
  return vggfast::test::result();
}
