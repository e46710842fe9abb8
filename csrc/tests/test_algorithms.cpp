// The table of convolution algorithms: each computes what it says that it supports, in memory of exactly the size that
// it asks for, from weights as they lie and from weights packed for images of other extents; and choose() takes one
// that supports the problem, the cheapest, or the one that was asked for.
#include <algorithm>
#include <map>

#include "bf16.h"
#include "conv_cases.h"
#include "cpu/algorithms/conv_algorithm.h"

namespace vggfast::test {
namespace {

using cpu::ConvAlgorithm;
using cpu::ConvInput;
using cpu::ConvPlan;
using cpu::ConvProblem;
using cpu::Pass;
using View = cpu::WeightView<void>;

constexpr int threads = 2;

std::string describe(const ConvProblem& p, const ConvAlgorithm& algorithm) {
  std::ostringstream text;
  text << cpu_isa() << " " << algorithm.name << ", pass " << static_cast<int>(p.pass) << ", " << name_of(p.dtype)
       << " (" << p.in.n << ", " << p.in.c << ", " << p.in.h << ", " << p.in.w << ") to " << p.cout << ", kernel "
       << p.kernel << ", relu " << p.epilogue.relu << " pool " << p.epilogue.pool << " masked " << p.masked
       << " packed " << p.packed << " bf16 weights " << p.bf16_weights;
  return text.str();
}

/// Every problem of a pass that a case makes, whether or not anybody supports it.
std::vector<ConvProblem> problems_of(const Case& c, Pass pass) {
  std::vector<ConvProblem> problems;
  const int64_t in = pass == Pass::dgrad ? c.cout : c.cin, out = pass == Pass::dgrad ? c.cin : c.cout;
  for (DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    for (const Epilogue& e : epilogues) {
      for (int way : {0, 1, 2}) {
        problems.push_back({.pass = pass,
                            .dtype = dtype,
                            .in = {c.n, c.h, c.w, in},
                            .cout = out,
                            .kernel = c.kernel,
                            .epilogue = e,
                            .masked = pass != Pass::fprop && mask_planes(e) > 0,
                            .packed = way > 0,
                            .bf16_weights = way > 1,
                            .threads = threads});
      }
    }
  }
  return problems;
}

Held put_activation(DType dtype, const Array& a) { return dtype == DType::bf16 ? put_bf16(a) : put(dtype, a); }

Held to_float(const Held& held) {
  if (held.view.dtype != DType::bf16) return {nullptr, held.view};
  Held wide = make(DType::f32, held.view.shape, nhwc_order);
  for_each_element(held, [&](int64_t at, size_t) {
    wide.view.as<float>()[at] = static_cast<float>(value_of(held.view.as<uint16_t>()[at]));
  });
  return wide;
}

/// Compares sums of `terms` products of small integers.
void check_sums(const Held& got, const Array& expected, int64_t terms, const ConvProblem& p,
                const ConvAlgorithm& algorithm, const char* what) {
  const Held values = to_float(got);
  const double usual = 4 * std::sqrt(static_cast<double>(terms));  // the deviation of such a sum
  Array allowed = expected;                                        // in roundings
  for (double& v : allowed.values) {
    const double stored = got.view.dtype == DType::bf16 ? std::fabs(v) / 256 / epsilon(DType::f32) : 0;
    v = algorithm.roundings * usual + stored;
  }
  CHECK_NEAR(values.view, expected, 1, allowed, what, " of ", describe(p, algorithm));
}

View view_of(const Held& weight) {
  const Tensor& w = weight;
  return {w.data, w.size(0), w.size(1), w.size(2), w.stride(0), w.stride(1), w.stride(2), w.stride(3)};
}

/// What pack() writes, for images of other extents than the problem's.
std::unique_ptr<Buffer> pack(const ConvProblem& p, const ConvAlgorithm& algorithm, const Held& weight,
                             const Held& bias) {
  ConvProblem other = p;
  other.in = {1, 8, 6, p.in.c};
  const size_t bytes = algorithm.packed_bytes(other);
  CHECK_EQUAL(bytes, algorithm.packed_bytes(p), describe(p, algorithm));
  auto packed = std::make_unique<Buffer>(bytes);
  algorithm.pack(other, cpu::cast<float>(view_of(weight)), bias.view.as<float>(), packed->data());
  return packed;
}

void check_fprop(const Problem& problem, const ConvProblem& p, const ConvAlgorithm& algorithm) {
  const DType weights = p.dtype == DType::f64 ? DType::f64 : DType::f32;
  const Held x = put_activation(p.dtype, problem.x), weight = put(weights, problem.weight, {0, 1, 2, 3});
  const Held bias = put_vector(weights, problem.bias);
  const Chosen expected = select(problem.z[1], p.epilogue, false);
  const Held y = make_nhwc(p.dtype, p.in.n, p.cout, expected.y.h, expected.y.w);
  // Weights that are packed beforehand are for inference, which needs no mask.
  std::unique_ptr<Held> mask;
  if (!p.packed && mask_planes(p.epilogue) > 0) {
    mask = std::make_unique<Held>(make_mask(p.epilogue, p.in.n, p.cout, expected.y.h, expected.y.w));
  }
  const ConvPlan plan = cpu::plan_with(algorithm, p);
  const std::unique_ptr<Buffer> packed = p.packed ? pack(p, algorithm, weight, bias) : nullptr;
  CHECK_EQUAL(plan.packed_bytes, packed ? packed->bytes() : 0, describe(p, algorithm));
  const HeldWorkspace workspace(plan.workspace_bytes);
  plan.run({.in = {.data = x.view.data, .extent = p.in},
            .packed = packed ? packed->data() : nullptr,
            .weight = p.packed ? View{} : view_of(weight),
            .bias = p.packed ? nullptr : bias.view.data,
            .out = {.y = y.view.data,
                    .h = expected.y.h,
                    .w = expected.y.w,
                    .c = p.cout,
                    .relu = p.epilogue.relu,
                    .pool = p.epilogue.pool,
                    .mask = mask ? mask->view.as<uint8_t>() : nullptr},
            .workspace = workspace.memory.data()});
  if (mask)
    check_sums(y, gather(problem.z[1], *mask, p.epilogue), p.kernel * p.kernel * p.in.c, p, algorithm, "y by its mask");
  check_sums(y, expected.y, p.kernel * p.kernel * p.in.c, p, algorithm, "y");
}

/// gy as an algorithm reads it, and what is held for that.
struct GradientInput {
  Held gy;
  std::unique_ptr<Held> mask;
  ConvInput<void> in;

  GradientInput(const Gradient& g, const ConvProblem& p, cpu::Extent extent) : gy(put_activation(p.dtype, g.gy.y)) {
    in = {.data = gy.view.data, .extent = extent};
    if (!p.masked) return;
    mask = std::make_unique<Held>(put_mask(g.e, g.gy.from, g.gy.window, false));
    in.mask = mask->view.as<uint8_t>();
    in.relu = g.e.relu;
    in.pool = g.e.pool;
    in.stored_h = g.gy.y.h;
    in.stored_w = g.gy.y.w;
  }
};

void check_dgrad(const Problem& problem, const Gradient& gradient, const ConvProblem& p,
                 const ConvAlgorithm& algorithm) {
  const GradientInput input(gradient, p, p.in);
  const DType weights = p.dtype == DType::f64 ? DType::f64 : DType::f32;
  const Held weight = put(weights, problem.weight, {0, 1, 2, 3});
  const Held gx = make_nhwc(p.dtype, p.in.n, p.cout, p.in.h, p.in.w);
  const View w = view_of(weight);
  const int64_t last = (p.kernel - 1) * (w.stride_row + w.stride_column) * static_cast<int64_t>(size_of(weights));
  const ConvPlan plan = cpu::plan_with(algorithm, p);
  const HeldWorkspace workspace(plan.workspace_bytes);
  plan.run({.in = input.in,
            .weight = {static_cast<const std::byte*>(w.data) + last, w.in, w.out, w.kernel, w.stride_in, w.stride_out,
                       -w.stride_row, -w.stride_column},
            .out = {.y = gx.view.data, .h = p.in.h, .w = p.in.w, .c = p.cout},
            .workspace = workspace.memory.data()});
  check_sums(gx, gradient.gx, p.kernel * p.kernel * p.in.c, p, algorithm, "gx");
}

void check_wgrad(const Problem& problem, const Gradient& gradient, const ConvProblem& p,
                 const ConvAlgorithm& algorithm) {
  const GradientInput input(gradient, p, {p.in.n, p.in.h, p.in.w, p.cout});
  const DType weights = p.dtype == DType::f64 ? DType::f64 : DType::f32;
  const Held x = put_activation(p.dtype, problem.x), gw = make(weights, problem.weight.shape(), {0, 1, 2, 3});
  const Held gb = make_vector(weights, p.cout);
  const ConvPlan plan = cpu::plan_with(algorithm, p);
  const HeldWorkspace workspace(plan.workspace_bytes);
  plan.run_wgrad({.x = {.data = x.view.data, .extent = p.in},
                  .gy = input.in,
                  .shape = view_of(gw),
                  .gw = gw.view.data,
                  .gb = gb.view.data,
                  .workspace = workspace.memory.data()});
  const int64_t pixels = p.in.n * p.in.h * p.in.w;
  check_sums(gw, gradient.gw, pixels, p, algorithm, "gw");
  check_sums(gb, gradient.gb, pixels, p, algorithm, "gb");
}

/// How often each algorithm ran, by pass.
using Runs = std::map<std::pair<const ConvAlgorithm*, Pass>, int>;

void check_supported(const Case& c, Runs& runs) {
  const Problem problem(c, {std::begin(epilogues), std::end(epilogues)}, Random(3));
  for (Pass pass : {Pass::fprop, Pass::dgrad, Pass::wgrad}) {
    for (const ConvProblem& p : problems_of(c, pass)) {
      for (const ConvAlgorithm* algorithm : cpu::conv_algorithms) {
        if (!algorithm->supports(p)) continue;
        ++runs[{algorithm, pass}];
        const auto same = [&](const Gradient& g) { return g.e.relu == p.epilogue.relu && g.e.pool == p.epilogue.pool; };
        const Gradient& gradient = *std::find_if(problem.gradients.begin(), problem.gradients.end(), same);
        if (pass == Pass::fprop) check_fprop(problem, p, *algorithm);
        if (pass == Pass::dgrad) check_dgrad(problem, gradient, p, *algorithm);
        if (pass == Pass::wgrad) check_wgrad(problem, gradient, p, *algorithm);
      }
    }
  }
}

void check_results() {
  for (const std::string& isa : cpu_isas()) {
    set_cpu_isa(isa);
    Runs runs;
    for (int64_t kernel : {1, 3}) {
      check_supported({2, 9, 7, 3, 18, kernel}, runs);
      check_supported({3, 6, 14, 33, 5, kernel}, runs);
      check_supported({1, 20, 22, 17, 40, kernel}, runs);
      check_supported({1, 2, 2, 130, 70, kernel}, runs);
      check_supported({0, 5, 3, 3, 4, kernel}, runs);
    }
    for (const ConvAlgorithm* algorithm : cpu::conv_algorithms) {
      const bool able = !algorithm->on_tiles || isa.starts_with("amx");
      const auto ran = [&](Pass pass) { return runs[std::pair(algorithm, pass)] > 0; };
      CHECK_EQUAL(ran(Pass::fprop), able && algorithm->run, algorithm->name, " on ", isa);
      const bool both = algorithm->on_tiles && algorithm->run && algorithm != &cpu::tiles_stem_conv;
      CHECK(!both || ran(Pass::dgrad) == able, "dgrad by ", algorithm->name, " on ", isa);
      CHECK_EQUAL(ran(Pass::wgrad), able && algorithm->run_wgrad, algorithm->name, " on ", isa);
    }
  }
}

/// FC layers: of few rows, other numbers of blocks are multiplied together. Sums of integers are exact; of reals, each
/// row has the same bits however many rows there are, and whatever the number of threads.
void check_rows(Fill fill) {
  constexpr int64_t most = 13, cin = 150, cout = 300;
  Random random(7);
  const Array inputs = random.array(fill, most, cin, 1, 1), weights = random.array(fill, cout, cin, 1, 1);
  const Array biases = random.array(fill, 1, cout, 1, 1), sums = conv(inputs, weights, &biases);
  const Held x = put(DType::f32, inputs), weight = put(DType::f32, weights, {0, 1, 2, 3});
  const Held bias = put_vector(DType::f32, biases);
  for (const std::string& isa : cpu_isas()) {
    set_cpu_isa(isa);
    for (bool bf16_weights : {false, true}) {
      ConvProblem p{.in = {1, 1, 1, cin}, .cout = cout, .kernel = 1, .packed = true, .bf16_weights = bf16_weights};
      const std::unique_ptr<Buffer> packed = pack(p, cpu::pointwise_conv, weight, bias);
      const auto outputs_of = [&](int64_t rows, int of_threads) {
        p.in.n = rows;
        p.threads = of_threads;
        std::vector<float> y(static_cast<size_t>(rows * cout));
        const ConvPlan plan = cpu::plan_with(cpu::pointwise_conv, p);
        const HeldWorkspace workspace(plan.workspace_bytes);
        plan.run({.in = {.data = x.view.data, .extent = p.in},
                  .packed = packed->data(),
                  .out = {.y = y.data(), .h = 1, .w = 1, .c = cout},
                  .workspace = workspace.memory.data()});
        return y;
      };
      std::vector<float> expected = outputs_of(most, 1);
      if (fill == Fill::integers) expected.assign(sums.values.begin(), sums.values.end());
      for (int64_t rows = 1; rows <= most; ++rows) {
        for (int of_threads : {1, 2, 3}) {
          const std::vector<float> y = outputs_of(rows, of_threads);
          CHECK(std::equal(y.begin(), y.end(), expected.begin()), isa, " ", rows, " rows, ", of_threads,
                " threads, bf16 weights ", bf16_weights, ", fill ", static_cast<int>(fill));
        }
      }
    }
  }
}

double total(const ConvAlgorithm& algorithm, const ConvProblem& p) {
  const cpu::ConvEstimate cost = algorithm.cost(p);
  return static_cast<double>(cost.multiply_adds) + cost.other;
}

void check_choice(const ConvProblem& p, const std::string& setting) {
  std::vector<const ConvAlgorithm*> able, asked;
  for (const ConvAlgorithm* algorithm : cpu::conv_algorithms) {
    if (!algorithm->supports(p)) continue;
    able.push_back(algorithm);
    if (algorithm->name == setting) asked.push_back(algorithm);
  }
  if (able.empty()) {
    CHECK_ERROR(cpu::choose(p), "no algorithm supports a convolution of kernel", name_of(p.dtype));
    return;
  }
  const ConvPlan plan = cpu::choose(p);
  const ConvAlgorithm& chosen = *plan.algorithm;
  const std::string name = setting + ": " + describe(p, chosen);
  CHECK(chosen.supports(p), name);
  CHECK_EQUAL(plan.workspace_bytes, chosen.workspace_bytes(p), name);
  CHECK_EQUAL(plan.packed_bytes, p.packed ? chosen.packed_bytes(p) : 0, name);
  if (!asked.empty()) CHECK_EQUAL(chosen.name, setting, name);
  const bool exact = setting == "direct" || setting == "bf16x6";
  // What was asked for, else for these two the most exact, else any: of these the cheapest.
  for (const ConvAlgorithm* other : asked.empty() ? able : asked) {
    if (exact && asked.empty()) {
      CHECK(chosen.roundings <= other->roundings, name, ", and ", other->name, " is more exact");
    } else {
      CHECK(total(chosen, p) <= total(*other, p), name, ", and ", other->name, " costs less");
    }
  }
}

void check_choices() {
  const int64_t channels[] = {1, 3, 16, 64, 100, 512}, extents[] = {0, 1, 2, 7, 14, 57, 224};
  Random random(11);
  const auto any = [&](const auto& values) {
    return values[static_cast<size_t>(random.integer(0, static_cast<int>(std::size(values)) - 1))];
  };
  for (const std::string& isa : cpu_isas()) {
    set_cpu_isa(isa);
    for (const std::string& setting : conv_algorithms()) {
      set_conv_algorithm(setting);
      for (int i = 0; i < 60; ++i) {
        const Case c{any(std::array<int64_t, 4>{0, 1, 8, 33}), any(extents), any(extents), any(channels), any(channels),
                     any(std::array<int64_t, 2>{1, 3})};
        for (Pass pass : {Pass::fprop, Pass::dgrad, Pass::wgrad}) {
          for (ConvProblem p : problems_of(c, pass)) {
            check_choice(p, setting);
            p.exact = true;
            check_choice(p, "direct");
            p.exact = false;
            check_choice(p, "auto");
          }
        }
      }
    }
  }
  set_conv_algorithm("auto");
}

/// What VGG's layers run by: the first one by its own kernel, 1x1 ones by products alone, the others by Winograd.
void check_layers() {
  const auto chosen = [](int64_t cin, int64_t kernel, Epilogue e = {}, DType dtype = DType::f32) {
    return cpu::choose(
               {.dtype = dtype, .in = {8, 56, 56, cin}, .cout = 64, .kernel = kernel, .epilogue = e, .threads = 1})
        .algorithm;
  };
  set_conv_algorithm("auto");
  CHECK(chosen(3, 3) == &cpu::stem_conv);
  CHECK(chosen(64, 1) == &cpu::pointwise_conv);
  CHECK(chosen(64, 1, {.pool = true}) == &cpu::direct_conv, "a pool behind a 1x1 convolution, whose tile is one pixel");
  CHECK(chosen(64, 3) == &cpu::winograd6_conv);
  CHECK(chosen(64, 3, {}, DType::f64) == &cpu::direct_conv);
  set_conv_algorithm("direct");
  CHECK(chosen(3, 3) == &cpu::stem_conv);
  CHECK(chosen(64, 1) == &cpu::direct_conv);
  CHECK(chosen(64, 3) == &cpu::direct_conv);
  set_conv_algorithm("winograd4");
  CHECK(chosen(3, 3) == &cpu::winograd4_conv);
  CHECK(chosen(64, 1) == &cpu::pointwise_conv);
  set_cpu_isa("amx-emulated");
  set_conv_algorithm("bf16x3");
  CHECK(chosen(64, 3, {.pool = true}) == &cpu::bf16x3_conv);
  set_conv_algorithm("bf16x6");
  CHECK(chosen(3, 3) == &cpu::bf16x6_conv);
  CHECK(chosen(64, 3, {}, DType::f64) == &cpu::direct_conv);
  set_cpu_isa("portable");
  CHECK(chosen(64, 3) == &cpu::direct_conv, "bf16x6 without tiles");
  set_conv_algorithm("auto");
}

}  // namespace
}  // namespace vggfast::test

int main() {
  using namespace vggfast::test;
  check_results();
  check_rows(Fill::integers);
  check_rows(Fill::reals);
  check_choices();
  check_layers();
  return result();
}
