// The Hopper wgrad by walks and splits that plan_wgrad keeps for larger problems: blocks of many steps, whose rings go
// round; runs cut between blocks; ragged edges of every kind; blocks without a step. Sums of small whole numbers are
// exact, whatever their order.
#include "cuda/conv/sm90/wgrad/run.h"
#include "on_gpu.h"

using namespace vggfast;
using namespace vggfast::test;
using cuda::sm90::WgradPlan;

namespace {

struct Case {
  int64_t n, h, w, cin, cout;
  int rows, phases, abreast, splits;
};

constexpr Case cases[] = {
    {1, 20, 56, 8, 8, 14, 7, 8, 1},                                   // the second row of tiles overhangs
    {1, 14, 56, 8, 16, 14, 7, 8, 3},                                  // runs cut within
    {1, 9, 21, 8, 8, 8, 1, 8, 1},                                     // a step a run, and teeth beyond the edge
    {1, 9, 21, 16, 8, 8, 1, 8, 4},    {3, 8, 13, 8, 8, 8, 13, 1, 1},  // images beyond the last
    {5, 5, 14, 8, 8, 14, 7, 2, 1},                                    // images beyond the last, in two groups
    {2, 14, 25, 8, 8, 14, 5, 4, 2},                                   // one tooth in the last tile
    {1, 6, 112, 8, 8, 8, 28, 4, 1},                                   // a long run
    {1, 3, 4, 8, 8, 8, 2, 2, 5},                                      // more splits than steps
    {2, 7, 8, 72, 136, 8, 2, 4, 2},                                   // channels beyond the last
    {1, 14, 24, 64, 64, 14, 3, 8, 1},
};

std::string name_of_case(const Case& c) {
  return text(c.n, " x ", c.cin, " x ", c.h, " x ", c.w, " to ", c.cout, ", ", c.rows, " rows, ", c.phases, " phases, ",
              c.abreast, " abreast, ", c.splits, " splits");
}

int64_t tiles(int64_t extent, int64_t tile) { return (extent + tile - 1) / tile; }

WgradPlan plan_of(const Case& c) {
  const int images = 8 / c.abreast;
  const int64_t steps = c.phases * tiles(c.w / c.phases, c.abreast) * tiles(c.n, images) * tiles(c.h, c.rows);
  return {c.rows, c.phases, c.abreast, images, steps, c.splits};
}

Array whole_numbers(int64_t n, int64_t c, int64_t h, int64_t w, Random& random) {
  Array values(n, c, h, w);
  for (double& value : values.values) value = random.integer(-3, 3);
  return values;
}

/// Whether the splits of `partial`, added up, are `expected`, which lies in the order of a split.
void check_sums(const OnGpu& partial, int splits, const std::vector<double>& expected, const std::string& name) {
  const Tensor& t = partial;
  const auto count = static_cast<int64_t>(expected.size());
  for (int64_t i = 0; i < count; ++i) {
    double sum = 0;
    for (int split = 0; split < splits; ++split) sum += get(t, split * count + i);
    if (sum != expected[static_cast<size_t>(i)]) {
      return CHECK_EQUAL(sum, expected[static_cast<size_t>(i)], name, ", value ", i);
    }
  }
  ++checks;
}

void check_case(const Case& c, DType dtype, bool with_bias) {
  Random random(1);
  const Array x = whole_numbers(c.n, c.cin, c.h, c.w, random), gz = whole_numbers(c.n, c.cout, c.h, c.w, random);
  const Array gw = conv_weight_gradient(x, gz, 3), gb = channel_sums(gz);
  std::vector<double> expected;
  for (int64_t out = 0; out < c.cout; ++out)
    for (int64_t tap = 0; tap < 9; ++tap)
      for (int64_t in = 0; in < c.cin; ++in) expected.push_back(gw.at(out, in, tap / 3, tap % 3));
  const OnGpu x_there = gpu_nhwc(dtype, x), gz_there = gpu_nhwc(dtype, gz);
  const std::string name = text(name_of_case(c), with_bias ? "" : ", without bias");
  in_orders(name, [&] {
    const OnGpu partial(DType::f32, {c.splits, c.cout * 9 * c.cin}, {0, 1}),
        bias(DType::f32, {c.splits, c.cout}, {0, 1});
    const Tensor &sums = partial, &bias_sums = bias;
    cuda::sm90::run_wgrad(x_there, gz_there, plan_of(c), sums.as<float>(), with_bias ? bias_sums.as<float>() : nullptr,
                          {});
    check_sums(partial, c.splits, expected, name);
    if (with_bias) check_sums(bias, c.splits, gb.values, name + ", bias");
  });
}

/// One warp falls as far behind as barriers let it: one of each column of taps, the producer, the one that sums gz.
void check_late_warps() {
  constexpr Case long_runs = {1, 14, 112, 8, 8, 14, 14, 8, 1}, runs_of_a_step = {1, 14, 160, 8, 8, 14, 1, 8, 1};
  for (const int warp : {0, 4, 8, 12, 13}) {
    sim::settings().late_warp = warp;
    check_case(long_runs, DType::bf16, true);
    check_case(runs_of_a_step, DType::bf16, true);
  }
  sim::settings().late_warp = -1;
  check_case(long_runs, DType::bf16, false);
}

/// Its steps are all there are, and no block is without one.
void check_plans() {
  for (const int64_t n : {1, 3, 32})
    for (const int64_t size : {1, 7, 13, 14, 16, 28, 56, 224}) {
      const OnGpu x = gpu_nhwc(DType::bf16, n, 8, size, size);
      for (const int64_t cout : {64, 512}) {
        const WgradPlan plan = cuda::sm90::plan_wgrad(x, cout);
        const Case c{n, size, size, 8, cout, plan.rows, plan.phases, plan.abreast, plan.splits};
        CHECK(size % plan.phases == 0 && plan.abreast * plan.images == 8, name_of_case(c));
        CHECK_EQUAL(plan.steps, plan_of(c).steps, name_of_case(c));
        CHECK(plan.splits >= 1 && plan.splits <= plan.steps, name_of_case(c));
        if (size % 14 == 0 && n == 32) CHECK_EQUAL(plan.steps * 8 * 14, n * size * size, name_of_case(c));
      }
    }
}

}  // namespace

int main() {
  check_plans();
  for (const Case& c : cases) check_case(c, DType::bf16, true);
  check_case(cases[1], DType::f16, true);
  check_case(cases[4], DType::f16, true);
  check_case(cases[9], DType::f16, false);
  check_late_warps();
  return result();
}
