// Convolution on tiles in bfloat16: against loops in double, with numbers that round, NaN and infinities; masks; maps
// in blocks; equal bits for any number of threads and from the processor's tiles.
#include <algorithm>
#include <functional>

#include "bf16.h"
#include "conv_cases.h"
#include "cpu/algorithms/tiles.h"
#include "cpu/isa/amx.h"
#include "vggfast/engine.h"

namespace vggfast::test {
namespace {

using cpu::ConvProblem;
using cpu::Extent;

struct Layer {
  int64_t n, h, w, cin, cout, kernel;
  Epilogue e;

  std::string name() const {
    std::ostringstream text;
    text << "(" << n << ", " << cin << ", " << h << ", " << w << ") to " << cout << ", kernel " << kernel << " relu "
         << e.relu << " pool " << e.pool;
    return text.str();
  }
  ConvProblem problem(int threads) const {
    return {
        .dtype = DType::bf16, .in = {n, h, w, cin}, .cout = cout, .kernel = kernel, .epilogue = e, .threads = threads};
  }
};

/// What is computed, and with what.
struct Run {
  const Layer& layer;
  Array x, weight, bias;
  Held held_x, held_weight, held_bias;

  Run(const Layer& l, Random& random, const std::function<void(Array&)>& change = {})
      : layer(l),
        x(truncated(random.array(Fill::reals, l.n, l.cin, l.h, l.w))),
        weight(truncated(random.array(Fill::reals, l.cout, l.cin, l.kernel, l.kernel))),
        bias(random.array(Fill::reals, 1, l.cout, 1, 1)) {
    if (change) change(x);
    held_x = put_bf16(x);
    held_weight = put(DType::f32, weight, {0, 1, 2, 3});
    held_bias = put_vector(DType::f32, bias);
  }

  Outputs operator()(int threads) const {
    const int64_t step = layer.e.pool ? 2 : 1, oh = layer.h / step, ow = layer.w / step;
    Outputs out{make_nhwc(DType::bf16, layer.n, layer.cout, oh, ow), nullptr};
    if (mask_planes(layer.e) > 0) {
      out.mask = std::make_unique<Held>(make_mask(layer.e, layer.n, layer.cout, oh, ow));
    }
    const cpu::ConvPlan plan = cpu::choose(layer.problem(threads));
    CHECK_EQUAL(plan.algorithm->name, std::string("tiles"));
    const HeldWorkspace workspace(plan.workspace_bytes);
    const Tensor& w = held_weight;
    plan.run({.in = {.data = held_x.view.data, .extent = plan.problem.in},
              .weight = {w.data, w.size(0), w.size(1), w.size(2), w.stride(0), w.stride(1), w.stride(2), w.stride(3)},
              .bias = held_bias.view.data,
              .out = {.y = out.y.view.data,
                      .h = oh,
                      .w = ow,
                      .c = layer.cout,
                      .relu = layer.e.relu,
                      .pool = layer.e.pool,
                      .mask = out.mask ? out.mask->view.as<uint8_t>() : nullptr},
              .workspace = workspace.memory.data()});
    return out;
  }
};

/// y within the rounding of sums in float and of what is stored, and the mask that belongs to it.
void check_values(const Run& run, const Outputs& out) {
  const Layer& l = run.layer;
  const Array z = conv(run.x, run.weight, &run.bias);
  const Array expected = select(z, l.e, false).y, by_mask = out.mask ? gather(z, *out.mask, l.e) : expected;
  const double sums = 1e-6 * std::sqrt(static_cast<double>(l.kernel * l.kernel * l.cin));
  bool reported = false;
  for_each_element(out.y, [&](int64_t at, size_t i) {
    const double got = value_of(out.y.view.as<uint16_t>()[at]);
    for (double want : {expected.values[i], by_mask.values[i]}) {
      const bool same = is_near(got, want, sums + std::fabs(want) / 256);
      CHECK(same || std::exchange(reported, true), l.name(), ", element ", i, " is ", got, ", expected ", want);
    }
  });
}

bool same(const Outputs& a, const Outputs& b) {
  return a.y.same_bytes(b.y) && (!a.mask || a.mask->same_bytes(*b.mask));
}

std::vector<Layer> layers() {
  std::vector<Layer> all;
  for (int64_t kernel : {1, 3}) {
    for (const Epilogue& e : epilogues) {
      all.push_back({2, 6, 37, 40, 33, kernel, e});
      all.push_back({1, 5, 16, 3, 64, kernel, e});
      all.push_back({3, 2, 3, 130, 5, kernel, e});
      all.push_back({0, 4, 4, 8, 8, kernel, e});
    }
    all.push_back({1, 1, 1, 1, 1, kernel, {}});
  }
  all.push_back({1, 14, 14, 512, 160, 3, {.relu = true}});  // several tasks in each direction
  return all;
}

void check_numbers() {
  Random random(21);
  for (const Layer& layer : layers()) {
    const Run run(layer, random);
    const Outputs out = run(1);
    check_values(run, out);
    for (int threads : {2, 3}) CHECK(same(run(threads), out), layer.name(), ", ", threads, " threads");
  }
}

/// NaN and infinities reach their own pixels and windows alone, channels that fill up a block do not spread them, and
/// of equal values the first is the maximum.
void check_special() {
  Random random(22);
  constexpr double infinity = std::numeric_limits<double>::infinity();
  for (const Layer& layer : layers()) {
    for (double value : {std::nan(""), infinity, -infinity}) {
      if (!sampled()) continue;
      const Run run(layer, random, [&](Array& x) {
        if (!x.values.empty()) x.values[x.values.size() / 2] = value;
      });
      check_values(run, run(1));
    }
    const Run zeros(layer, random, [](Array& x) { std::fill(x.values.begin(), x.values.end(), 0); });
    const Outputs out = zeros(1);
    if (out.mask)
      check_mask_bits(*out.mask, layer.e, select(conv(zeros.x, zeros.weight, &zeros.bias), layer.e, false),
                      layer.name());
  }
}

/// The first two layers in one step, in strips, make the bits that they make one after the other.
void check_block1() {
  Random random(24);
  for (const auto& [h, w] : {std::pair<int64_t, int64_t>{35, 64}, {33, 18}, {3, 2}, {2, 5}}) {
    Engine engine({.bf16 = true, .threads = 1, .batch = 2, .size = 64});
    for (const auto& [cin, cout] : {std::pair<int64_t, int64_t>{3, 33}, {33, 40}}) {
      engine.add_conv(put(DType::f32, random.array(Fill::reals, cout, cin, 3, 3), {0, 1, 2, 3}), nullptr);
      engine.add_relu();
    }
    engine.add_max_pool(false);
    engine.add_conv(put(DType::f32, random.array(Fill::reals, 8, 40, 1, 1), {0, 1, 2, 3}), nullptr);
    CHECK(engine.algorithms() == std::vector<std::string>(3, "tiles"));
    const Held x = put(DType::f32, random.array(Fill::reals, 2, 3, h, w));
    const auto run = [&](bool fused, int threads) {  // layers 4 and 5; an output within block 1 keeps its layers apart
      std::vector<Held> held;
      std::vector<std::pair<int64_t, Tensor>> outputs;
      for (int64_t layer : fused ? std::vector<int64_t>{4, 5} : std::vector<int64_t>{4, 5, 1}) {
        const std::vector<int64_t> shape = engine.output_shape(layer, 2, 3, h, w);
        held.push_back(make(DType::f32, shape, nhwc_order));
        outputs.emplace_back(layer, held.back().view);
      }
      std::sort(outputs.begin(), outputs.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
      engine.run(x, outputs, {threads});
      return held;
    };
    const std::vector<Held> apart = run(false, 1);
    for (int threads : {1, 2, 3}) {
      const std::vector<Held> fused = run(true, threads);
      for (size_t i : {0, 1}) CHECK(fused[i].same_bytes(apart[i]), h, " x ", w, ", output ", i, ", threads ", threads);
    }
  }
}

/// Channels that fill up a block are 0 after any input: what a ReLU cuts does not come back from them as NaN.
void check_filling() {
  Random random(25);
  Engine engine({.bf16 = true});
  Array weight(33, 3, 3, 3);
  std::fill(weight.values.begin(), weight.values.end(), -1);
  engine.add_conv(put(DType::f32, weight, {0, 1, 2, 3}), nullptr);
  engine.add_relu();
  engine.add_conv(put(DType::f32, random.array(Fill::reals, 8, 33, 3, 3), {0, 1, 2, 3}), nullptr);
  Array x(1, 3, 8, 8);
  x.at(0, 1, 4, 4) = std::numeric_limits<double>::infinity();
  const Held held = put(DType::f32, x), y = make_nhwc(DType::f32, 1, 8, 8, 8);
  engine.run(held, {{2, y}}, {1});
  CHECK_SAME(y, Array(1, 8, 8, 8), "the ReLU of minus infinity");
}

/// The processor's tiles and those in software make the same bits of whole layers.
void check_hardware() {
  if (cpu::find_amx() != cpu::Amx::permitted) {
    std::cout << "skipped: layers on the processor's tiles: " << cpu::describe(cpu::find_amx()) << "\n";
    return;
  }
  Random random(23);
  for (const Layer& layer : layers()) {
    const Run run(layer, random);
    set_cpu_isa("amx");
    const Outputs hardware = run(2);
    set_cpu_isa("amx-emulated");
    CHECK(same(hardware, run(2)), layer.name());
  }
}

}  // namespace
}  // namespace vggfast::test

int main() {
  using namespace vggfast::test;
  for (const std::string& isa : vggfast::cpu_isas()) {
    if (!isa.starts_with("amx")) continue;
    vggfast::set_cpu_isa(isa);
    check_numbers();
    check_special();
    check_block1();
    check_filling();
  }
  check_hardware();
  return result();
}
