// crop_images against naive loops in double: sizes up and down, crops at every edge, mirrored, any number of threads;
// pictures and results touch pages that nobody may touch.
#include <algorithm>

#include "tensors.h"
#include "vggfast/images.h"

namespace vggfast::test {
namespace {

const Normalisation normalisation{{123.68f, 116.779f, 103.939f}, {58.4f, 57.1f, 57.4f}};

struct Case {
  int64_t h, w, scaled_h, scaled_w, top, left;
  bool flip;
};

/// A picture in a buffer of exactly its size.
struct HeldPicture {
  Buffer memory;
  Picture view;

  HeldPicture(int64_t h, int64_t w, Random& random)
      : memory(static_cast<size_t>(h * w * 3)), view{static_cast<const uint8_t*>(memory.data()), h, w} {
    for (int64_t i = 0; i < h * w * 3; ++i)
      static_cast<uint8_t*>(memory.data())[i] = static_cast<uint8_t>(random.integer(0, 255));
  }
};

/// The weights by which output `at` of `out` reads each of `in` inputs.
std::vector<double> weights_of(int64_t in, int64_t out, int64_t at) {
  const double scale = static_cast<double>(in) / static_cast<double>(out), reach = std::max(scale, 1.0);
  const double centre = (static_cast<double>(at) + 0.5) * scale;
  std::vector<double> weights;
  double sum = 0;
  for (int64_t i = 0; i < in; ++i) {
    weights.push_back(std::max(0.0, 1 - std::fabs(static_cast<double>(i) + 0.5 - centre) / reach));
    sum += weights.back();
  }
  for (double& weight : weights) weight /= sum;
  return weights;
}

double reference(const Picture& p, const Case& k, int64_t s, int64_t t, int64_t c, int64_t columns, double shift) {
  const std::vector<double> down = weights_of(p.height, k.scaled_h, k.top + s);
  const std::vector<double> across = weights_of(p.width, k.scaled_w, k.left + (k.flip ? columns - 1 - t : t));
  double sum = 0;
  for (int64_t y = 0; y < p.height; ++y) {
    for (int64_t x = 0; x < p.width; ++x) {
      const double weight = down[static_cast<size_t>(y)] * across[static_cast<size_t>(x)];
      if (weight != 0) sum += weight * p.pixels[(y * p.width + x) * 3 + c];
    }
  }
  return (sum + shift - static_cast<double>(normalisation.mean[c])) / static_cast<double>(normalisation.std[c]);
}

double value_of(const Tensor& y, int64_t i) {
  if (y.dtype == DType::f32) return y.as<float>()[i];
  const uint32_t bits = static_cast<uint32_t>(y.as<uint16_t>()[i]) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

void check(const std::vector<Case>& cases, int64_t rows, int64_t columns, Random& random) {
  const auto n = static_cast<int64_t>(cases.size());
  std::vector<std::unique_ptr<HeldPicture>> held;
  std::vector<Picture> pictures;
  const Held sizes = make(DType::i32, {n, 2}, {0, 1}), corners = make(DType::i32, {n, 2}, {0, 1});
  const Held flips = make_vector(DType::u8, n), shifts = make(DType::f32, {n, 3}, {0, 1});
  for (int64_t i = 0; i < n; ++i) {
    const Case& k = cases[static_cast<size_t>(i)];
    held.push_back(std::make_unique<HeldPicture>(k.h, k.w, random));
    pictures.push_back(held.back()->view);
    sizes.view.as<int32_t>()[2 * i] = static_cast<int32_t>(k.scaled_h);
    sizes.view.as<int32_t>()[2 * i + 1] = static_cast<int32_t>(k.scaled_w);
    corners.view.as<int32_t>()[2 * i] = static_cast<int32_t>(k.top);
    corners.view.as<int32_t>()[2 * i + 1] = static_cast<int32_t>(k.left);
    flips.view.as<uint8_t>()[i] = k.flip;
    for (int64_t c = 0; c < 3; ++c) shifts.view.as<float>()[3 * i + c] = static_cast<float>(20 * random.real());
  }
  const Crops crops{&corners.view, &flips.view, &shifts.view};
  for (const std::string& isa : cpu_isas()) {
    set_cpu_isa(isa);
    for (DType dtype : {DType::f32, DType::bf16}) {
      const Held first = make_nhwc(dtype, n, 3, rows, columns);
      crop_images(pictures, &sizes.view, crops, normalisation, first, {1});
      const double rounding = dtype == DType::f32 ? 4e-6 : 1.0 / 250;
      bool near = true;
      for (int64_t i = 0; i < first.view.numel(); ++i) {
        const int64_t c = i % 3, t = i / 3 % columns, s = i / 3 / columns % rows, at = i / 3 / columns / rows;
        const double expected = reference(pictures[static_cast<size_t>(at)], cases[static_cast<size_t>(at)], s, t, c,
                                          columns, shifts.view.as<float>()[3 * at + c]);
        near = near && std::fabs(value_of(first, i) - expected) <= rounding * (1 + std::fabs(expected));
      }
      CHECK(near, isa, " ", name_of(dtype), " crops of ", rows, " x ", columns);
      for (int threads : {2, 3}) {
        const Held y = make_nhwc(dtype, n, 3, rows, columns);
        crop_images(pictures, &sizes.view, crops, normalisation, y, {threads});
        CHECK(y.same_bytes(first), isa, " ", name_of(dtype), " threads ", threads);
      }
    }
  }
}

/// Results so large that they are written past the caches hold the same as small ones.
void check_streamed(Random& random) {
  const HeldPicture picture(128, 128, random);
  const std::vector<Picture> one{picture.view}, many(64, picture.view);
  for (const std::string& isa : cpu_isas()) {
    set_cpu_isa(isa);
    const Held small = make_nhwc(DType::f32, 1, 3, 128, 128), large = make_nhwc(DType::f32, 64, 3, 128, 128);
    crop_images(one, nullptr, {}, normalisation, small, {1});
    crop_images(many, nullptr, {}, normalisation, large, {2});
    for (size_t i = 0; i < 64; ++i) {
      const auto* part = static_cast<const unsigned char*>(large.memory->data()) + i * small.memory->bytes();
      CHECK(std::memcmp(part, small.memory->data(), small.memory->bytes()) == 0, isa, " streamed image ", i);
    }
  }
}

void check_errors(Random& random) {
  const HeldPicture picture(4, 5, random);
  const std::vector<Picture> one{picture.view};
  const Held y = make_nhwc(DType::f32, 1, 3, 4, 5), sizes = make(DType::i32, {1, 2}, {0, 1});
  const Held corners = make(DType::i32, {1, 2}, {0, 1}), other = make(DType::i32, {2, 2}, {0, 1});
  const auto crop = [&](const Tensor* s, const Crops& c, const Tensor& to) {
    crop_images(one, s, c, normalisation, to, {1});
  };
  const auto set = [](const Held& t, int32_t a, int32_t b) {
    t.view.as<int32_t>()[0] = a, t.view.as<int32_t>()[1] = b;
  };
  CHECK_ERROR(crop(nullptr, {}, make_nhwc(DType::f32, 2, 3, 4, 5)), "y must have shape (1, 3, S, T), got (2, 3, 4, 5)");
  CHECK_ERROR(crop(nullptr, {}, make_nhwc(DType::f64, 1, 3, 4, 5)), "y must be float32 or bfloat16, got float64");
  CHECK_ERROR(crop(&other.view, {}, y), "sizes must have shape (1, 2), got (2, 2)");
  CHECK_ERROR(crop(nullptr, {.flips = &corners.view}, y), "flips must have shape (1), got (1, 2)");
  set(sizes, 0, 5);
  CHECK_ERROR(crop(&sizes.view, {}, y), "sizes[0] must be sides of 1 to 16777216 pixels, got 0 x 5");
  set(sizes, 4, 4);
  CHECK_ERROR(crop(&sizes.view, {}, y),
              "corners[0] must put the crop of 4 x 5 pixels within the picture of 4 x 4, got (0, 0)");
  for (const auto& [top, left] : {std::array<int32_t, 2>{-1, 0}, {0, -1}, {1, 0}, {0, 1}, {2147483647, 0}}) {
    set(corners, top, left);
    CHECK_ERROR(crop(nullptr, {.corners = &corners.view}, y), "corners[0] must put the crop of ",
                "within the picture of 4 x 5, got (");
  }
  const std::vector<Picture> empty{{picture.view.pixels, 0, 5}};
  CHECK_ERROR(crop_images(empty, nullptr, {}, normalisation, y, {1}),
              "pictures[0] must have sides of 1 to 16777216 pixels, got 0 x 5");
}

void run_all() {
  Random random(5);
  check({{8, 9, 8, 9, 0, 0, false}, {8, 9, 8, 9, 1, 2, true}, {30, 40, 30, 40, 23, 33, true}}, 7, 7, random);
  check({{5, 6, 10, 12, 0, 0, false}, {5, 6, 10, 12, 3, 5, true}, {1, 1, 20, 20, 13, 13, false}}, 7, 7, random);
  check({{60, 47, 23, 18, 0, 0, true}, {60, 47, 23, 18, 16, 11, false}, {300, 3, 7, 7, 0, 0, false}}, 7, 7, random);
  check({{20, 50, 20, 41, 2, 4, false}, {41, 33, 37, 33, 0, 0, true}}, 18, 29, random);
  check({{3, 100, 3, 90, 2, 8, true}, {1, 64, 1, 64, 0, 0, true}}, 1, 64, random);
  check({{64, 1, 64, 1, 0, 0, true}, {70, 3, 64, 2, 0, 1, false}}, 64, 1, random);
  check({}, 4, 4, random);
  check_streamed(random);
  check_errors(random);
}

}  // namespace
}  // namespace vggfast::test

int main() {
  vggfast::test::run_all();
  return vggfast::test::result();
}
