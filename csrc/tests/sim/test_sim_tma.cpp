// What TMA brings in the simulator against its definition: swizzled layouts, boxes that hang over the edge, the pixels
// of a 3x3 convolution by im2col, across rows and images; and the narrow formats' rounding.
#include <array>
#include <cstring>

#include "cuda/ptx/fence.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/sync.h"
#include "cuda/tensor_map.h"
#include "planted.h"
#include "sim/numbers.h"

using namespace vggfast;
using namespace vggfast::test;

namespace {

constexpr size_t stage_bytes = 32 << 10;
constexpr cuda::Grid one_warp{.blocks = 1, .threads = 32, .shared_bytes = stage_bytes + 1024};

struct Coordinates {
  int32_t at[5];
};

/// A box, as it lies in shared memory, to `out`.
template <int Rank>
__global__ void fetch(const __grid_constant__ TensorMap map, Coordinates from, uint32_t bytes, uint32_t* out) {
  char* const stage = ptx::shared_memory();
  uint64_t* const full = reinterpret_cast<uint64_t*>(stage + stage_bytes);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect_tx(full, bytes);
    int32_t at[Rank];
    for (int i = 0; i < Rank; ++i) at[i] = from.at[i];
    ptx::cp_async_bulk_tensor_load(stage, map, full, at);
  }
  ptx::sync_warp();
  ptx::mbarrier_try_wait_parity(full, 0);
  for (uint32_t i = threadIdx.x; i < bytes / 4; i += 32) out[i] = reinterpret_cast<uint32_t*>(stage)[i];
}

__global__ void fetch_pixels(const __grid_constant__ TensorMap map, Coordinates from, uint32_t s, uint32_t r,
                             uint32_t bytes, uint32_t* out) {
  char* const stage = ptx::shared_memory();
  uint64_t* const full = reinterpret_cast<uint64_t*>(stage + stage_bytes);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect_tx(full, bytes);
    ptx::cp_async_bulk_tensor_im2col(stage, map, full, {from.at[0], from.at[1], from.at[2], from.at[3]},
                                     {static_cast<uint16_t>(s), static_cast<uint16_t>(r)});
  }
  ptx::sync_warp();
  ptx::mbarrier_try_wait_parity(full, 0);
  for (uint32_t i = threadIdx.x; i < bytes / 4; i += 32) out[i] = reinterpret_cast<uint32_t*>(stage)[i];
}

/// Where byte `x` of row `y` lies: rows of `span` bytes, in which 16-byte chunks change places by the 128-byte line.
size_t place(size_t y, size_t x, size_t span) {
  const size_t line = y * span / 128;
  return y * span + ((x / 16) ^ (line % (span / 16))) * 16 + x % 16;
}

void test_swizzles() {
  constexpr uint64_t height = 40, width = 96;
  std::vector<uint16_t> in(height * width);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint16_t>(i + 1);
  const sim::Global source(in.data(), in.size() * 2);
  for (const uint32_t span : {32u, 64u, 128u}) {
    const uint32_t columns = span / 2, rows = 16;
    const TensorMap map = cuda::tensor_map(cuda::TiledMap{in.data(),
                                                          cuda::MapElement::bf16,
                                                          2,
                                                          {width, height},
                                                          {width * 2},
                                                          {columns, rows},
                                                          static_cast<cuda::MapSwizzle>(span)});
    std::vector<uint16_t> out(columns * rows);
    const sim::Global target(out.data(), out.size() * 2);
    // The second box hangs over the right and lower edge, the third over the left and upper.
    for (const auto& [x, y] : {std::pair<int, int>{16, 8}, {width - 8, height - 5}, {-8, -3}}) {
      CHECK_CLEAN((fetch<2>, one_warp, map, Coordinates{{x, y}}, uint32_t(out.size() * 2),
                   reinterpret_cast<uint32_t*>(out.data())));
      for (int row = 0; row < int(rows); ++row) {
        for (int column = 0; column < int(columns); ++column) {
          const int u = x + column, v = y + row;
          const bool inside = u >= 0 && u < int(width) && v >= 0 && v < int(height);
          const unsigned expected = inside ? in[size_t(v) * width + size_t(u)] : 0;
          CHECK_EQUAL(unsigned(out[place(size_t(row), size_t(column) * 2, span) / 2]), expected, "span ", span,
                      ", row ", row, ", column ", column, " of the box at ", x, ", ", y);
        }
      }
    }
  }
}

/// A map of TF32 rounds what it loads, and leaves it as it is in memory.
void test_rounding() {
  struct Case {
    uint32_t from, to;
  };
  constexpr Case cases[] = {
      {0x3f800000, 0x3f800000}, {0x3f800fff, 0x3f800000}, {0x3f801001, 0x3f802000},
      {0x3f801000, 0x3f800000}, {0x3f803000, 0x3f804000},  // ties go to the even one
      {0xbf803000, 0xbf804000}, {0x3fffffff, 0x40000000},  // a carry into the exponent
      {0x7f7fffff, 0x7f800000}, {0xff800000, 0xff800000},  // beyond the largest, and an infinity
      {0x7fc01234, 0x7fc01234}, {0x00001001, 0x00002000},  // a NaN, a subnormal
      {0x80000000, 0x80000000},
  };
  constexpr uint32_t count = std::size(cases);
  std::vector<uint32_t> in(count), out(count);
  for (uint32_t i = 0; i < count; ++i) in[i] = cases[i].from;
  const sim::Global source(in.data(), count * 4), target(out.data(), count * 4);
  const auto map_of = [&](cuda::MapElement element) {
    return cuda::tensor_map(
        cuda::TiledMap{in.data(), element, 2, {count, 1}, {count * 4}, {count, 1}, cuda::MapSwizzle::none});
  };
  CHECK_CLEAN((fetch<2>, one_warp, map_of(cuda::MapElement::tf32), Coordinates{}, count * 4, out.data()));
  for (uint32_t i = 0; i < count; ++i) {
    CHECK_EQUAL(out[i], cases[i].to, "of ", cases[i].from);
    CHECK_EQUAL(in[i], cases[i].from);
  }
  CHECK_CLEAN((fetch<2>, one_warp, map_of(cuda::MapElement::f32), Coordinates{}, count * 4, out.data()));
  CHECK(out == in);
}

/// What a driver encoded of a small tensor is mended, in tiled maps and im2col's alike.
void test_mended_maps() {
  static constexpr uint64_t all = ~uint64_t(0), without = all ^ 1 << 21, small = (128 << 10) - 1;
  const auto mended = [](uint64_t bytes, int driver) {
    std::array<uint64_t, 16> words;
    words.fill(all);
    cuda::mend_map(words.data(), bytes, driver);
    for (size_t i = 0; i < words.size(); ++i) {
      if (i != 1) CHECK_EQUAL(words[i], all, "word ", i);
    }
    return words[1];
  };
  CHECK_EQUAL(mended(small, 13010), without);
  CHECK_EQUAL(mended(small, 12020), without);
  CHECK_EQUAL(mended(small, 13020), all);
  CHECK_EQUAL(mended(small + 1, 13010), all);
  constexpr uint64_t dims[] = {24, 7, 5, 3}, strides[] = {64, 7 * 64, 5 * 7 * 64}, turned[] = {5 * 7 * 64, 64, 7 * 64};
  CHECK_EQUAL(cuda::map_bytes(cuda::MapElement::bf16, 4, dims, strides), uint64_t(3 * 5 * 7 * 64));
  CHECK_EQUAL(cuda::map_bytes(cuda::MapElement::bf16, 4, dims, turned), uint64_t(7 * 5 * 7 * 64));
  CHECK_EQUAL(cuda::map_bytes(cuda::MapElement::f32, 1, dims, strides), uint64_t(24 * 4));
}

/// A box of NHWC images: {8 channels, 4, 3, 2}, over the edges.
void test_four_dimensions() {
  constexpr uint64_t c = 16, w = 6, h = 5, n = 3;
  std::vector<float> in(c * w * h * n), out(8 * 4 * 3 * 2);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i + 1);
  const sim::Global source(in.data(), in.size() * 4), target(out.data(), out.size() * 4);
  const TensorMap map = cuda::tensor_map(cuda::TiledMap{in.data(),
                                                        cuda::MapElement::f32,
                                                        4,
                                                        {c, w, h, n},
                                                        {c * 4, c * w * 4, c * w * h * 4},
                                                        {8, 4, 3, 2},
                                                        cuda::MapSwizzle::none});
  CHECK_CLEAN((fetch<4>, one_warp, map, Coordinates{{8, -1, 3, 2}}, uint32_t(out.size() * 4),
               reinterpret_cast<uint32_t*>(out.data())));
  for (size_t i = 0; i < out.size(); ++i) {
    const int64_t x = int64_t(i / 8 % 4) - 1, y = int64_t(i / 32 % 3) + 3, image = int64_t(i / 96) + 2;
    const bool inside = x >= 0 && y < int64_t(h) && image < int64_t(n);
    const size_t at = ((size_t(image) * h + size_t(y)) * w + size_t(x)) * c + 8 + i % 8;
    CHECK_EQUAL(out[i], inside ? in[at] : 0.0f, "element ", i);
  }
}

/// Every tap of a 3x3 filter with padding 1, for 32 pixels on from any pixel: row ends, image ends and beyond the last
/// image.
void test_im2col() {
  constexpr uint64_t c = 64, w = 7, h = 5, n = 3;
  constexpr uint32_t pixels = 32;
  std::vector<uint16_t> in(c * w * h * n), out(pixels * c);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint16_t>(i + 1);
  const sim::Global source(in.data(), in.size() * 2), target(out.data(), out.size() * 2);
  const TensorMap map = cuda::tensor_map(cuda::Im2colMap{in.data(),
                                                         cuda::MapElement::bf16,
                                                         {c, w, h, n},
                                                         {c * 2, c * w * 2, c * w * h * 2},
                                                         {-1, -1},
                                                         {-1, -1},
                                                         c,
                                                         pixels,
                                                         cuda::MapSwizzle::b128});
  for (const int first : {0, 5, 30, 94}) {
    const Coordinates from{{0, first % int(w) - 1, first / int(w) % int(h) - 1, first / int(w * h)}};
    for (uint32_t tap = 0; tap < 9; ++tap) {
      const uint32_t r = tap / 3, s = tap % 3;
      CHECK_CLEAN(
          (fetch_pixels, one_warp, map, from, s, r, uint32_t(out.size() * 2), reinterpret_cast<uint32_t*>(out.data())));
      for (uint32_t p = 0; p < pixels; ++p) {
        const int64_t flat = first + int64_t(p), image = flat / int64_t(w * h);
        const int64_t y = flat / int64_t(w) % int64_t(h) + r - 1, x = flat % int64_t(w) + s - 1;
        const bool inside = x >= 0 && x < int64_t(w) && y >= 0 && y < int64_t(h) && image < int64_t(n);
        for (uint32_t channel = 0; channel < c; channel += 9) {
          const size_t at = ((size_t(image) * h + size_t(y)) * w + size_t(x)) * c + channel;
          CHECK_EQUAL(out[place(p, channel * 2, 128) / 2], inside ? in[at] : uint16_t(0), "pixel ", first, " + ", p,
                      ", tap ", r, ", ", s, ", channel ", channel);
        }
      }
    }
  }
}

void test_narrow_formats() {
  CHECK_EQUAL(sim::from_e4m3(0x7e), 448.0f);
  CHECK_EQUAL(sim::from_e4m3(0x01), 0x1p-9f);
  CHECK_EQUAL(sim::from_e5m2(0x7b), 57344.0f);
  CHECK_EQUAL(sim::from_e5m2(0x01), 0x1p-16f);
  CHECK(std::isnan(sim::from_e4m3(0xff)) && std::isnan(sim::from_e5m2(0x7d)) && std::isinf(sim::from_e5m2(0xfc)));
  CHECK_EQUAL(int(sim::to_e4m3(1e9f)), 0x7e);
  CHECK_EQUAL(int(sim::to_e5m2(-1e9f)), 0xfb);
  for (int bits = 0; bits < 0x7c; ++bits) {
    // A value is its own nearest; half way to the next goes to the even one, and a little beyond to the next.
    const auto check = [bits](auto decode, auto encode, const char* format) {
      const float low = decode(static_cast<uint8_t>(bits)), high = decode(static_cast<uint8_t>(bits + 1));
      if (!std::isfinite(high)) return;
      const float middle = (low + high) / 2;
      CHECK_EQUAL(int(encode(low)), bits, format);
      CHECK_EQUAL(int(encode(-low)), bits | 0x80, format);
      CHECK_EQUAL(int(encode(middle)), bits + bits % 2, format);
      CHECK_EQUAL(int(encode(std::nextafter(middle, high))), bits + 1, format);
      CHECK_EQUAL(int(encode(std::nextafter(middle, low))), bits, format);
    };
    check(sim::from_e4m3, sim::to_e4m3, "e4m3");
    check(sim::from_e5m2, sim::to_e5m2, "e5m2");
  }
}

}  // namespace

int main() {
  test_swizzles();
  test_rounding();
  test_mended_maps();
  test_four_dimensions();
  test_im2col();
  test_narrow_formats();
  return result();
}
