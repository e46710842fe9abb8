// The two ends of a network, prepare_images and mean_posteriors: the CPU's functions against naive loops, and the CUDA
// kernels, in the simulator, against the CPU's.
#include "on_gpu.h"
#include "vggfast/cuda.h"

namespace vggfast::test {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double inf = std::numeric_limits<double>::infinity();
constexpr Context one_thread{.threads = 1};
const Order nhwc3_order{0, 1, 2, 3};

struct Shape {
  int64_t n, c, h, w;
};

std::string name_of_shape(const Shape& s) { return describe({s.n, s.c, s.h, s.w}); }

// ---- class scores
// -----------------------------------------------------------------------------------------------------

/// What mean_posteriors means, in naive loops: (n, c, 1, 1).
Array naive_scores(const Array& maps, int64_t views) {
  Array scores(maps.n / views, maps.c, 1, 1);
  for (int64_t map = 0; map < maps.n; ++map) {
    std::vector<double> means(static_cast<size_t>(maps.c));
    double sum = 0;
    for (int64_t c = 0; c < maps.c; ++c) {
      double& mean = means[static_cast<size_t>(c)];
      for (int64_t i = 0; i < maps.h * maps.w; ++i)
        mean += maps.at(map, c, 0, i) / static_cast<double>(maps.h * maps.w);
      sum += std::exp(mean);
    }
    for (int64_t c = 0; c < maps.c; ++c) {
      scores.at(map % scores.n, c, 0, 0) += std::exp(means[static_cast<size_t>(c)]) / sum / static_cast<double>(views);
    }
  }
  return scores;
}

void check_mean_posteriors_cpu(Random& random) {
  constexpr int64_t views = 2, n = 2, c = 5;
  const Array maps = random.array(Fill::reals, views * n, c, 2, 3), g = random.array(Fill::reals, n, c, 1, 1);
  const Held held = put(DType::f64, maps), scores = make(DType::f64, {n, c}, {0, 1}), gmaps = put(DType::f64, maps);
  const Held again = make(DType::f64, {n, c}, {0, 1}), gagain = put(DType::f64, maps),
             gscores = make(DType::f64, {n, c}, {0, 1});
  for (size_t i = 0; i < g.values.size(); ++i) gscores.view.as<double>()[i] = g.values[i];
  mean_posteriors(held, views, scores, {1});
  mean_posteriors(held, views, again, {3});
  mean_posteriors_dgrad(gscores, held, views, gmaps, {1});
  mean_posteriors_dgrad(gscores, held, views, gagain, {3});
  CHECK(scores.same_bytes(again) && gmaps.same_bytes(gagain), "mean_posteriors: threads");
  const Array expected = naive_scores(maps, views);
  for_each_element(scores, [&](int64_t at, size_t i) {
    CHECK(std::fabs(read(scores, at) - expected.values[i]) < 1e-14, "mean_posteriors on the CPU");
  });
  for_each_element(gmaps, [&](int64_t at, size_t i) {
    constexpr double step = 1e-5;
    double slope = 0;
    for (double sign : {-1.0, 1.0}) {
      Array moved = maps;
      moved.values[i] += sign * step;
      const Array moved_scores = naive_scores(moved, views);
      for (size_t k = 0; k < g.values.size(); ++k) slope += sign * g.values[k] * moved_scores.values[k] / (2 * step);
    }
    CHECK(std::fabs(read(gmaps, at) - slope) < 1e-9, "mean_posteriors_dgrad on the CPU: ", read(gmaps, at), ", ",
          slope);
  });
}

void check_mean_posteriors(const Shape& s, int64_t views, bool special, Random& random) {
  Array values = random.array(Fill::reals, views * s.n, s.c, s.h, s.w);
  for (double& v : values.values) v *= 4;
  if (special) {
    const double each[] = {nan, inf, -inf};
    for (int64_t n = 0; n < std::min<int64_t>(3, s.n); ++n) values.at(n, s.c / 2, 0, 0) = each[n];
  }
  const Array g_values = random.array(Fill::reals, s.n, s.c, 1, 1);
  for (DType dtype : gpu_dtypes) {
    const std::string name = text("mean_posteriors ", name_of_shape(s), " ", name_of(dtype), " views ", views);
    const OnGpu maps = gpu_nhwc(dtype, values), scores(dtype, {s.n, s.c}, {0, 1}), g(dtype, {s.n, s.c}, {0, 1});
    const OnGpu gmaps = gpu_nhwc(dtype, views * s.n, s.c, s.h, s.w);
    for (size_t i = 0; i < g_values.values.size(); ++i) set(g, static_cast<int64_t>(i), g_values.values[i]);
    const Held expected = make(DType::f64, {s.n, s.c}, {0, 1});
    const Held wanted_g = make_nhwc(DType::f64, views * s.n, s.c, s.h, s.w);
    mean_posteriors(on_cpu(maps), views, expected, one_thread);
    mean_posteriors_dgrad(on_cpu(g), on_cpu(maps), views, wanted_g, one_thread);
    double most = 0;
    for (int64_t i = 0; i < expected.view.numel(); ++i) {
      if (read(expected, i) > most) most = read(expected, i);
    }
    in_orders(name, [&] {
      scores.poison();
      gmaps.poison();
      cuda::mean_posteriors(maps, views, scores, {});
      check_close(scores, expected, 16, most, name);
      cuda::mean_posteriors_dgrad(g, maps, views, gmaps, {});
      check_close(gmaps, wanted_g, 32, most / static_cast<double>(s.h * s.w), name + " dgrad");
    });
  }
}

// ---- images
// -----------------------------------------------------------------------------------------------------------

struct ImageCase {
  int64_t n, h, w, s, t;
};

void check_prepare(const ImageCase& k, bool crop, bool flip, bool shift, Random& random) {
  const OnGpu images(DType::u8, {k.n, k.h, k.w, 3}, nhwc3_order), corners(DType::i32, {k.n, 2}, {0, 1});
  const OnGpu flips(DType::u8, {k.n}, {0}), shifts(DType::f32, {k.n, 3}, {0, 1});
  for (int64_t i = 0; i < k.n * k.h * k.w * 3; ++i)
    images.held.view.as<uint8_t>()[i] = static_cast<uint8_t>(random.integer(0, 255));
  for (int64_t i = 0; i < k.n * 2; ++i)
    corners.held.view.as<int32_t>()[i] = random.integer(-3, static_cast<int>(std::max(k.h, k.w)));
  for (int64_t i = 0; i < k.n; ++i) flips.held.view.as<uint8_t>()[i] = static_cast<uint8_t>(2 * random.integer(0, 1));
  for (int64_t i = 0; i < k.n * 3; ++i) set(shifts, i, 20 * random.real());
  if (k.n > 0) corners.held.view.as<int32_t>()[0] = 2147483647, corners.held.view.as<int32_t>()[1] = -2147483647 - 1;
  const Crops crops{crop ? corners.pointer() : nullptr, flip ? flips.pointer() : nullptr,
                    shift ? shifts.pointer() : nullptr};
  const Normalisation normalisation{{123.68f, 116.779f, 103.939f}, {58.4f, 57.1f, 57.4f}};
  Held cpu_images = copy_for_cpu(images), cpu_corners = copy_for_cpu(corners), cpu_flips = copy_for_cpu(flips),
       cpu_shifts = copy_for_cpu(shifts);
  const Crops cpu_crops{crop ? &cpu_corners.view : nullptr, flip ? &cpu_flips.view : nullptr,
                        shift ? &cpu_shifts.view : nullptr};
  for (DType dtype : gpu_dtypes) {
    const std::string name = text("prepare_images ", describe({k.n, k.h, k.w, k.s, k.t}), " ", name_of(dtype), " crop ",
                                  crop, " flip ", flip, " shift ", shift);
    const OnGpu y = gpu_nhwc(dtype, k.n, 3, k.s, k.t);
    const Held expected = make_nhwc(dtype == DType::f32 ? dtype : DType::f64, k.n, 3, k.s, k.t);
    prepare_images(cpu_images, cpu_crops, normalisation, expected, {2});
    for (int64_t n = 0; n < k.n; ++n)
      for (int64_t row = 0; row < k.s; ++row)
        for (int64_t t = 0; t < k.t; ++t)
          for (int64_t c = 0; c < 3; ++c) {
            const int32_t* corner = crop ? corners.held.view.as<int32_t>() + 2 * n : nullptr;
            const bool mirrored = flip && flips.held.view.as<uint8_t>()[n];
            const int64_t from = (corner ? corner[1] : 0) + (mirrored ? k.t - 1 - t : t);
            const int64_t at = (n * k.h + std::clamp<int64_t>((corner ? corner[0] : 0) + row, 0, k.h - 1)) * k.w +
                               std::clamp<int64_t>(from, 0, k.w - 1);
            const double pixel = images.held.view.as<uint8_t>()[at * 3 + c] + (shift ? get(shifts, 3 * n + c) : 0.0);
            const double want =
                (pixel - static_cast<double>(normalisation.mean[c])) / static_cast<double>(normalisation.std[c]);
            const double value = read(expected, ((n * k.s + row) * k.t + t) * 3 + c);
            CHECK(std::fabs(value - want) <= 8 * epsilon(expected.view.dtype), name, " on the CPU: ", value, ", ",
                  want);
          }
    in_orders(name, [&] {
      y.poison();
      cuda::prepare_images(images, crops, normalisation, y, {});
      check_close(y, expected, is_narrow(dtype) ? 4 : 0, 3, name);
    });
  }
}

// ---- traffic, errors
// ---------------------------------------------------------------------------------------------------

/// Each byte once: what "bound by memory" takes for granted.
void check_traffic() {
  for (DType dtype : gpu_dtypes) {
    const auto bytes = static_cast<int64_t>(size_of(dtype));
    const OnGpu maps = gpu_nhwc(dtype, Array(2, 64, 4, 6)), scores(dtype, {2, 64}, {0, 1});
    const OnGpu pictures(DType::u8, {2, 4, 16, 3}, nhwc3_order), y = gpu_nhwc(dtype, 2, 3, 4, 16);
    sim::counters().clear();
    cuda::mean_posteriors(maps, 1, scores, {});
    cuda::prepare_images(pictures, {}, {}, y, {});
    CHECK_EQUAL(sim::counters()["mean_posteriors_kernel"].global_read, 2 * 64 * 4 * 6 * bytes);
    CHECK_EQUAL(sim::counters()["mean_posteriors_kernel"].global_written, 2 * 64 * bytes);
    CHECK_EQUAL(sim::counters()["prepare_images_kernel"].global_read, 2 * 4 * 16 * 3);
    CHECK_EQUAL(sim::counters()["prepare_images_kernel"].global_written, 2 * 4 * 16 * 3 * bytes);
  }
}

void check_errors() {
  const OnGpu x = gpu_nhwc(DType::f32, 2, 3, 4, 4), y = gpu_nhwc(DType::f32, 2, 3, 2, 2);
  const OnGpu sums(DType::f32, {2, 3}, {0, 1}), bytes = gpu_nhwc(DType::u8, 2, 3, 4, 4);
  const OnGpu images(DType::u8, {2, 4, 4, 3}, nhwc3_order);
  const Held on_host = make_nhwc(DType::f32, 2, 3, 4, 4), host_scores = make(DType::f32, {2, 3}, {0, 1});
  CHECK_ERROR(mean_posteriors(on_host, 0, host_scores, one_thread), "views must be at least 1, got 0");
  CHECK_ERROR(cuda::mean_posteriors(on_host, 1, host_scores, {}), "maps must be on cuda, got cpu");
  CHECK_ERROR(mean_posteriors(x, 1, sums, one_thread), "maps must be on cpu, got cuda");
  CHECK_ERROR(cuda::mean_posteriors(x, 0, sums, {}), "views must be at least 1, got 0");
  CHECK_ERROR(cuda::mean_posteriors(x, 3, sums, {}), "maps must have a first axis of 3 (views)",
              "got shape (2, 3, 4, 4)");
  CHECK_ERROR(cuda::mean_posteriors(x, 2, sums, {}), "scores must have shape (1, 3), got (2, 3)");
  CHECK_ERROR(cuda::mean_posteriors_dgrad(sums, x, 1, y, {}), "gmaps must have shape (2, 3, 4, 4), got (2, 3, 2, 2)");
  Tensor wide = x;
  wide.shape = {1, 50000, 1, 1};
  wide.strides = {50000, 1, 1, 1};
  const Tensor scores{.data = wide.data, .device = Device::cuda, .shape = {1, 50000}, .strides = {50000, 1}};
  CHECK_ERROR(cuda::mean_posteriors(wide, 1, scores, {}),
              "maps must have at most 22528 channels (classes) on cuda, got 50000");
  CHECK_ERROR(cuda::prepare_images(images, {}, {}, bytes, {}),
              "y must be bfloat16, float16, float32 or float64, got uint8");
  CHECK_ERROR(cuda::prepare_images(x, {}, {}, x, {}), "images must have shape (2, H, W, 3), got (2, 3, 4, 4)");
  const Tensor* other = sums.pointer();
  CHECK_ERROR(cuda::prepare_images(images, {.corners = other}, {}, x, {}),
              "corners must have shape (2, 2), got (2, 3)");
  CHECK_ERROR(cuda::prepare_images(images, {.flips = other}, {}, x, {}), "flips must have shape (2), got (2, 3)");
  CHECK_ERROR(cuda::prepare_images(images, {.shifts = y.pointer()}, {}, x, {}),
              "shifts must have shape (2, 3), got (2, 3, 2, 2)");
}

}  // namespace
}  // namespace vggfast::test

int main() {
  using namespace vggfast::test;
  Random random(1);
  check_mean_posteriors_cpu(random);
  for (int64_t c : {1, 3, 24, 520}) check_mean_posteriors({2, c, 3, 4}, 1 + c % 3, false, random);
  check_mean_posteriors({3, 12, 1, 1}, 1, true, random);
  check_mean_posteriors({3, 16, 5, 9}, 2, true, random);
  check_mean_posteriors({0, 16, 5, 9}, 2, false, random);
  for (const ImageCase& k :
       {ImageCase{2, 9, 11, 4, 8}, {2, 6, 5, 6, 5}, {1, 3, 4, 7, 16}, {0, 4, 4, 2, 2}, {3, 1, 1, 2, 1}}) {
    for (int kind = 0; kind < 8; ++kind) check_prepare(k, kind & 1, kind & 2, kind & 4, random);
  }
  check_traffic();
  check_errors();
  return result();
}
