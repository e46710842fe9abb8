// The kernels bound by memory, in the simulator, against the CPU's functions in float64: what is only moved must be
// equal, what is computed within roundings. The two ends of a network are in test_sim_ends.cpp.
#include "on_gpu.h"
#include "vggfast/cuda.h"

namespace vggfast::test {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double inf = std::numeric_limits<double>::infinity();
constexpr Context one_thread{.threads = 1};
const Order mask_order{0, 1, 2, 3, 4};

struct Shape {
  int64_t n, c, h, w;
};

/// Channels that fill no vector, one, several; one element more than a block's share; odd, single and empty extents.
const Shape shapes[] = {{2, 1, 5, 7},  {2, 3, 4, 6},   {1, 8, 5, 5},  {2, 13, 3, 4}, {1, 24, 6, 7},
                        {1, 64, 2, 9}, {0, 8, 4, 4},   {1, 16, 1, 1}, {2, 17, 1, 6}, {1, 8, 3, 1},
                        {1, 8, 0, 4},  {1, 264, 3, 6}, {3, 8, 2, 2},  {1, 9, 7, 31}};

std::string name_of_shape(const Shape& s) { return describe({s.n, s.c, s.h, s.w}); }

/// Few values, so that windows have ties, both zeros, NaN and infinities among them.
Array with_ties(const Shape& s, Random& random) {
  Array a = random.array(Fill::integers, s.n, s.c, s.h, s.w);
  for (double& v : a.values) {
    const int draw = random.integer(0, 60);
    if (draw == 0) v = nan;
    if (draw == 1) v = inf;
    if (draw == 2) v = -inf;
    if (draw == 3) v = -0.0;
  }
  return a;
}

void check_max_pool(const Shape& s, bool ceil_mode, Random& random) {
  const Array values = with_ties(s, random);
  const int64_t oh = pooled(s.h, ceil_mode), ow = pooled(s.w, ceil_mode);
  for (DType dtype : gpu_dtypes) {
    const std::string name = text("max_pool ", name_of_shape(s), " ", name_of(dtype), " ceil ", ceil_mode);
    const OnGpu x = gpu_nhwc(dtype, values), y = gpu_nhwc(dtype, s.n, s.c, oh, ow);
    const OnGpu bits(DType::u8, {s.n, 2, oh, ow, (s.c + 7) / 8}, mask_order);
    const Held expected = make_nhwc(DType::f64, s.n, s.c, oh, ow);
    const Held wanted_bits = make_mask({.relu = false, .pool = true}, s.n, s.c, oh, ow);
    max_pool2x2(on_cpu(x), expected, &wanted_bits.view, one_thread);
    for (const Tensor* mask : {bits.pointer(), static_cast<const Tensor*>(nullptr)}) {
      in_orders(name, [&] {
        y.poison();
        bits.poison();
        cuda::max_pool2x2(x, y, mask, {});
        check_close(y, expected, 0, 0, name);
        bool signs = true;
        for_each_element(y, [&](int64_t at, size_t) {
          const double value = read(expected, at);
          signs = signs && (std::isnan(value) || std::signbit(get(y, at)) == std::signbit(value));
        });
        CHECK(signs, name, ": zeros' signs");
        if (mask) check_equal_bytes(bits, wanted_bits, name + ": mask");
      });
    }
  }
}

void check_masked(const Shape& s, Epilogue e, bool ceil_mode, Random& random) {
  const Array z_values = random.array(Fill::reals, s.n, s.c, s.h, s.w);
  const Chosen chosen = choose(z_values, e, ceil_mode, random);
  const Array y_values = random.array(Fill::reals, s.n, s.c, chosen.y.h, chosen.y.w);
  for (DType dtype : gpu_dtypes) {
    const OnGpu z = gpu_nhwc(dtype, z_values), y = gpu_nhwc(dtype, y_values);
    const OnGpu out_z = gpu_nhwc(dtype, s.n, s.c, s.h, s.w), out_y = gpu_nhwc(dtype, s.n, s.c, chosen.y.h, chosen.y.w);
    const Held wanted_z = make_nhwc(DType::f64, s.n, s.c, s.h, s.w);
    const Held wanted_y = make_nhwc(DType::f64, s.n, s.c, chosen.y.h, chosen.y.w);
    // Of channels that there are not, any bits; and a mask that points out of the windows which the edge cuts.
    for (const char* kind : {"zero padding", "padding", "foreign"}) {
      const OnGpu bits(put_mask(e, chosen.from, chosen.window, *kind == 'p'));
      if (*kind == 'f') bits.poison();
      const Held cpu_bits = copy_for_cpu(bits);
      mask_gather(on_cpu(z), cpu_bits, e, wanted_y, one_thread);
      mask_scatter(on_cpu(y), cpu_bits, e, wanted_z, one_thread);
      const std::string name = text(" ", name_of_shape(s), " ", name_of(dtype), " relu ", e.relu, " pool ", e.pool,
                                    " ceil ", ceil_mode, " ", kind);
      in_orders(name, [&] {
        out_y.poison();
        out_z.poison();
        cuda::mask_gather(z, bits, e, out_y, {});
        check_close(out_y, wanted_y, 0, 0, "gather" + name);
        cuda::mask_scatter(y, bits, e, out_z, {});
        check_close(out_z, wanted_z, 0, 0, "scatter" + name);
      });
    }
  }
}

void check_sum_pool(const Shape& s, Random& random) {
  const Array values = random.array(Fill::reals, s.n, s.c, s.h, s.w);
  for (DType dtype : gpu_dtypes) {
    for (bool mean : {false, true}) {
      const std::string name = text("sum_pool ", name_of_shape(s), " ", name_of(dtype), " mean ", mean);
      const OnGpu x = gpu_nhwc(dtype, values), y(dtype, {s.n, s.c}, {0, 1}), first(dtype, {s.n, s.c}, {0, 1});
      const Held expected = make(DType::f64, {s.n, s.c}, {0, 1});
      sum_pool(on_cpu(x), mean, expected, one_thread);
      const double pixels = static_cast<double>(s.h * s.w), depth = 6 + pixels / 32;
      in_orders(name, [&] {
        y.poison();
        cuda::sum_pool(x, mean, y, {});
        check_close(y, expected, depth, mean ? 1 : pixels, name);
      });
      cuda::sum_pool(x, mean, first, {});
      check_equal_bytes(y, first, name + ": another run");
    }
  }
}

// ---- local response normalisation
// -------------------------------------------------------------------------------------

void check_lrn(const Shape& s, LrnParams p, Random& random) {
  Array x_values = random.array(Fill::reals, s.n, s.c, s.h, s.w),
        g_values = random.array(Fill::reals, s.n, s.c, s.h, s.w);
  if (s.n * s.h * s.w > 1) x_values.at(0, s.c / 2, 0, 0) = nan;
  for (DType dtype : gpu_dtypes) {
    const std::string name = text("lrn ", name_of_shape(s), " ", name_of(dtype), " size ", p.size, " beta ", p.beta);
    const OnGpu x = gpu_nhwc(dtype, x_values), g = gpu_nhwc(dtype, g_values);
    const OnGpu y = gpu_nhwc(dtype, s.n, s.c, s.h, s.w), gx = gpu_nhwc(dtype, s.n, s.c, s.h, s.w);
    const Held expected = make_nhwc(DType::f64, s.n, s.c, s.h, s.w),
               wanted_g = make_nhwc(DType::f64, s.n, s.c, s.h, s.w);
    const HeldWorkspace workspace(lrn_dgrad_workspace(expected, one_thread));
    lrn_fprop(on_cpu(x), p, expected, one_thread);
    lrn_dgrad(on_cpu(g), on_cpu(x), p, wanted_g, workspace, one_thread);
    in_orders(name, [&] {
      y.poison();
      gx.poison();
      cuda::lrn_fprop(x, p, y, {});
      check_close(y, expected, 6 + static_cast<double>(std::min(p.size, s.c)) / 8, 1, name);
      cuda::lrn_dgrad(g, x, p, gx, {}, {});
      check_close(gx, wanted_g, 12 + static_cast<double>(std::min(p.size, s.c)) / 4, 1, name + " dgrad");
    });
  }
}

void check_lrns(Random& random) {
  for (int64_t c : {1, 3, 7, 8, 16, 24, 64}) {
    for (int64_t size : {1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 200}) {
      check_lrn({1, c, 1, 3}, {size, 0.5, size % 2 ? 0.75 : 0.6, 1.0}, random);
    }
  }
  check_lrn({2, 64, 7, 5}, {}, random);  // more pixels than a tile
  check_lrn({1, 8, 19, 31}, {5, 1.0, 0.75, 2}, random);
  check_lrn({1, 4104, 1, 1}, {1025, 0.5, 0.6, 1}, random);  // as large as float64 may have with chunks
  check_lrn({0, 64, 7, 5}, {}, random);
  for (int64_t c : {2056, 2051, 4104}) {  // chunks of channels, with and without vectors
    for (int64_t size : {5, 9, 33}) check_lrn({1, c, 1, 2}, {size, 0.5, 0.75, 1}, random);
  }
}

// ---- what the functions refuse, and tensors that begin at no multiple of 16
// ---------------------------------------------

void check_odd_addresses(Random& random) {
  const Shape s{1, 8, 4, 6};
  for (DType dtype : gpu_dtypes) {
    const OnGpu x = gpu_nhwc(dtype, random.array(Fill::reals, s.n, s.c, s.h, s.w)), y = gpu_nhwc(dtype, 1, 8, 2, 3);
    const OnGpu more_x(dtype, {x.held.view.numel() + 1}, {0}), more_y(dtype, {y.held.view.numel() + 1}, {0});
    Tensor odd_x = x, odd_y = y;  // memory ends at a multiple of 16: what is one longer does not begin at one
    odd_x.data = more_x.held.view.data;
    odd_y.data = more_y.held.view.data;
    std::memcpy(odd_x.data, x.held.view.data, x.held.memory->bytes());
    in_orders("odd addresses", [&] {
      cuda::max_pool2x2(x, y, nullptr, {});
      cuda::max_pool2x2(odd_x, odd_y, nullptr, {});
      check_equal_bytes(odd_y, y, text("max_pool at odd addresses, ", name_of(dtype)));
    });
  }
}

/// Each byte once: what "bound by memory" takes for granted.
void check_traffic() {
  const Epilogue both{.relu = true, .pool = true};
  for (DType dtype : gpu_dtypes) {
    const auto bytes = static_cast<int64_t>(size_of(dtype));
    const int64_t big = 2 * 4 * 6 * 64, small = big / 4, bits = small / 8;
    const OnGpu x = gpu_nhwc(dtype, Array(2, 64, 4, 6)), out = gpu_nhwc(dtype, 2, 64, 4, 6);
    const OnGpu y = gpu_nhwc(dtype, Array(2, 64, 2, 3)), sums(dtype, {2, 64}, {0, 1});
    const OnGpu two(DType::u8, {2, 2, 2, 3, 8}, mask_order), three(DType::u8, {2, 3, 2, 3, 8}, mask_order);
    sim::counters().clear();
    cuda::mask_scatter(y, three, both, out, {});
    cuda::mask_gather(x, three, both, y, {});
    cuda::max_pool2x2(x, y, two.pointer(), {});
    cuda::sum_pool(x, false, sums, {});
    cuda::lrn_fprop(x, {}, out, {});
    const auto check = [&](const char* kernel, int64_t read, int64_t written) {
      CHECK_EQUAL(sim::counters()[kernel].global_read, read, kernel, " ", name_of(dtype));
      CHECK_EQUAL(sim::counters()[kernel].global_written, written, kernel, " ", name_of(dtype));
    };
    check("mask_scatter_kernel", small * bytes + 3 * bits, big * bytes);
    check("mask_gather_kernel", big * bytes + 3 * bits, small * bytes);
    check("max_pool2x2_kernel", big * bytes, small * bytes + 2 * bits);
    check("sum_pool_kernel", big * bytes, 2 * 64 * bytes);
    check("lrn_fprop_kernel", big * bytes, big * bytes);
  }
}

/// More rows, images and tiles than a grid has blocks for: the first block, run alone, comes round again.
void check_many_blocks() {
  const int64_t rows = 65536, images = 65536, pixels = 2049;
  const OnGpu x = gpu_nhwc(DType::f32, 1, 1, 2 * rows, 2), y = gpu_nhwc(DType::f32, 1, 1, rows, 1);
  const OnGpu each = gpu_nhwc(DType::f32, images, 1, 1, 1), sums(DType::f32, {images, 1}, {0, 1});
  const OnGpu deep = gpu_nhwc(DType::f16, 1, 2048, pixels, 1), out = gpu_nhwc(DType::f16, 1, 2048, pixels, 1);
  for (const OnGpu* t : {&x, &each, &deep}) {
    for (int64_t i = 0; i < t->held.view.numel(); ++i) set(*t, i, i == 0 ? 2 : 1);
  }
  sim::settings().blocks = 1;
  in_orders("many blocks", [&] {
    cuda::max_pool2x2(x, y, nullptr, {});
    cuda::sum_pool(each, false, sums, {});
    cuda::lrn_fprop(deep, {5, 0, 0.75, 1}, out, {});
  });
  sim::settings().blocks = INT64_MAX;
  CHECK_EQUAL(get(y, 0), 2.0);
  CHECK_EQUAL(get(y, rows - 1), 1.0);
  CHECK(std::isnan(get(y, 1)), "a block that did not run");
  CHECK_EQUAL(get(sums, 0), 2.0);
  CHECK_EQUAL(get(sums, images - 1), 1.0);
  CHECK_EQUAL(get(out, 0), 2.0);
  CHECK_EQUAL(get(out, (pixels - 1) * 2048 + 2047), 1.0);
}

void check_errors() {
  const OnGpu x = gpu_nhwc(DType::f32, 2, 3, 4, 4), bytes = gpu_nhwc(DType::u8, 2, 3, 4, 4);
  const OnGpu pooled_bytes = gpu_nhwc(DType::u8, 2, 3, 2, 2), byte_sums(DType::u8, {2, 3}, {0, 1});
  const Held on_host = make_nhwc(DType::f32, 2, 3, 4, 4), host_y = make_nhwc(DType::f32, 2, 3, 2, 2);
  const char* expected = "x must be bfloat16, float16, float32 or float64, got uint8";
  CHECK_ERROR(cuda::max_pool2x2(bytes, pooled_bytes, nullptr, {}), expected);
  CHECK_ERROR(cuda::max_pool2x2(on_host, host_y, nullptr, {}), "x must be on cuda, got cpu");
  CHECK_ERROR(cuda::max_pool2x2(x, x, nullptr, {}), "y must have shape (2, 3, 2, 2), got (2, 3, 4, 4)");
  CHECK_ERROR(cuda::sum_pool(bytes, false, byte_sums, {}), expected);
  CHECK_ERROR(cuda::lrn_fprop(x, {0, 1, 1, 1}, x, {}), "size must be at least 1, got 0");
  CHECK_ERROR(cuda::lrn_fprop(bytes, {}, bytes, {}), expected);
  Tensor wide = x;
  wide.shape = {1, 30000, 1, 1};
  wide.strides = {30000, 1, 1, 1};
  CHECK_ERROR(cuda::lrn_dgrad(wide, wide, {20000, 1, 1, 1}, wide, {}, {}),
              "size must be at most 3073 with 30000 channels of float32 on cuda, got 20000");
}

}  // namespace
}  // namespace vggfast::test

int main() {
  using namespace vggfast::test;
  Random random(1);
  for (const Shape& s : shapes) {
    for (bool ceil_mode : {false, true}) {
      check_max_pool(s, ceil_mode, random);
      for (vggfast::Epilogue e : {vggfast::Epilogue{true, false}, {false, true}, {true, true}}) {
        if (e.pool || !ceil_mode) check_masked(s, e, ceil_mode, random);
      }
    }
    check_sum_pool(s, random);
  }
  check_sum_pool({2, 600, 9, 11}, random);
  check_lrns(random);
  check_odd_addresses(random);
  check_traffic();
  check_many_blocks();
  check_errors();
  return result();
}
