// Winograd's F(2 x 2), F(4 x 4), F(6 x 6), forward and backward, through masks too, against naive loops in double:
// channels around the vectors' widths and over 128 (partial sums), extents below, at and above a tile, whatever layout,
// any number of threads; that what is not finite stays within its tile; and the choice of an algorithm.
#include "conv_cases.h"

namespace vggfast::test {
namespace {

struct Algorithm {
  const char* name;
  double roundings;  // what the worst of many sums may be off
};
constexpr Algorithm algorithms[] = {{"winograd2", 128}, {"winograd4", 256}, {"winograd6", 1024}, {"auto", 1024}};

template <class Body>
void for_each_algorithm(Body body) {
  for (const std::string& isa : cpu_isas()) {
    set_cpu_isa(isa);
    for (const Algorithm& algorithm : algorithms) {
      set_conv_algorithm(algorithm.name);
      body(algorithm, isa + " " + algorithm.name);
    }
  }
}

void run(const Case& c) {
  static size_t turn = 0;
  ++turn;
  if (!sampled()) return;
  const Problem problem(c, {{}, epilogues[1 + turn % 3]}, Random(static_cast<unsigned>(turn)));
  for_each_algorithm([&](const Algorithm& algorithm, const std::string& setting) {
    check_all({problem, DType::f32, setting + ": " + c.name(), algorithm.roundings, turn});
  });
}

void run_all() {
  const int64_t channels[] = {1, 3, 5, 16, 17, 31, 33, 48, 130}, extents[] = {1, 2, 3, 5, 6, 7, 13};
  const Rounding tile = Rounding::tile;
  size_t i = 0;
  for (size_t shift : {2, 5}) {
    for (size_t from = 0; from < std::size(channels); ++from, ++i) {
      const int64_t h = extents[i % 7], w = extents[(i / 3 + 4) % 7];
      run({2, h, w, channels[from], channels[(from + shift) % 9], 3, tile});
    }
  }
  for (int64_t h : extents) {
    for (int64_t w : extents) run({1, h, w, 3, 5, 3, tile});
  }
  for (const auto& [n, h, w] : {std::array<int64_t, 3>{0, 5, 3}, {0, 0, 0}, {1, 0, 3}, {2, 3, 0}, {3, 7, 4}}) {
    run({n, h, w, 5, 17, 3, tile});
  }
  // Small images, several of which may share tiles, and one that is left over.
  for (int64_t n : {3, 4, 5}) {
    for (const auto& [h, w] : {std::array<int64_t, 2>{1, 1}, {2, 7}, {7, 7}, {13, 8}, {14, 14}}) {
      run({.n = n, .h = h, .w = w, .cin = 5, .cout = 17, .kernel = 3, .rounding = tile, .threads = n == 5 && h == 13});
    }
  }
  // Several tasks of tiles; so few tiles that tasks share the channels; 1x1 by products alone.
  run({.n = 3, .h = 33, .w = 31, .cin = 5, .cout = 33, .kernel = 3, .rounding = tile, .threads = true});
  run({.n = 1, .h = 5, .w = 6, .cin = 17, .cout = 130, .kernel = 3, .rounding = tile, .threads = true});
  run({.n = 3, .h = 13, .w = 6, .cin = 130, .cout = 33, .kernel = 1, .rounding = tile, .threads = true});
}

/// So many tiles that wgrad sums over several chunks of them.
void check_chunks() {
  const Case c{.n = 1, .h = 209, .w = 207, .cin = 2, .cout = 17, .kernel = 3, .rounding = Rounding::tile};
  const Problem problem(c, {epilogues[3]}, Random(4));
  for_each_algorithm([&](const Algorithm& algorithm, const std::string& setting) {
    check_wgrad({problem, DType::f32, setting + ": " + c.name(), algorithm.roundings, 0}, problem.gradients[0]);
  });
}

/// So many weights that L3 does not hold them: products of all output channels are kept at a time.
void check_many_weights() {
  const Case c{.n = 1, .h = 3, .w = 2, .cin = 300, .cout = 690, .kernel = 3, .rounding = Rounding::tile};
  const Problem problem(c, {}, Random(8));
  for_each_algorithm([&](const Algorithm& algorithm, const std::string& setting) {
    if (std::string(algorithm.name) != "winograd6") return;
    const Way way{problem, DType::f32, setting + ": " + c.name(), algorithm.roundings, 0};
    const Held x = put(way.dtype, problem.x), weight = put(way.dtype, problem.weight);
    check_epilogue(way, x, weight, true, {.relu = true}, true, "contiguous");
  });
}

/// What is not finite reaches the pixels of the tiles that read it, and no others: never more than 6 x 6 here.
void check_special(double special) {
  const Case c{.n = 2, .h = 14, .w = 15, .cin = 5, .cout = 17, .kernel = 3, .rounding = Rounding::tile};
  Problem p(c, {{}}, Random(5));
  Gradient& gradient = p.gradients[0];
  p.x.at(0, 1, 0, 0) = gradient.gy.y.at(0, 3, 0, 0) = special;
  for_each_algorithm([&](const Algorithm& algorithm, const std::string& setting) {
    const Way way{p, DType::f32, setting, algorithm.roundings, 0};
    const Held x = put(way.dtype, p.x), weight = put(way.dtype, p.weight), gy = put(way.dtype, gradient.gy.y);
    const Held gx = make_nhwc(way.dtype, c.n, c.cin, c.h, c.w), gw = make(way.dtype, p.weight.shape(), {0, 1, 2, 3});
    const HeldWorkspace dgrad(conv_dgrad_workspace(gy, {}, weight, c.h, c.w, {1}));
    const HeldWorkspace wgrad(conv_wgrad_workspace(x, gy, {}, 3, {1}));
    conv_dgrad(gy, {}, weight, gx, dgrad, {1});
    conv_wgrad(x, gy, {}, gw, nullptr, wgrad, {1});
    const auto check = [&](const Tensor& got, Array expected, double terms, const char* name) {
      CHECK(!std::isfinite(read(got, 0)), setting, " ", name, " with ", special);
      Array size(expected.n, expected.c, expected.h, expected.w);
      for_each_element(got, [&](int64_t at, size_t i) {
        const int64_t y = static_cast<int64_t>(i) / c.w % c.h, column = static_cast<int64_t>(i) % c.w;
        const bool near = i < expected.values.size() / 2 && y < 6 && column < 6;  // of the first image
        size.values[i] = std::sqrt(terms) / 3;
        if (near) expected.values[i] = read(got, at);
      });
      CHECK_NEAR(got, expected, algorithm.roundings, size, setting, " ", name, " with ", special);
    };
    const Outputs out = run_fprop(way, x, weight, nullptr, {}, false, 1);
    check(out.y, p.z[0], 9 * c.cin, "fprop");
    check(gx, gradient.gx, 9 * c.cout, "dgrad");
    CHECK(!std::isfinite(read(gw, gw.view.stride(1) + 3 * gw.view.stride(0))), setting, " wgrad with ", special);
  });
}

/// No threads means one, in the workspaces too.
void check_no_threads() {
  const Case c{.n = 1, .h = 5, .w = 4, .cin = 3, .cout = 7, .kernel = 3, .rounding = Rounding::tile};
  const Problem p(c, {{}}, Random(6));
  const Gradient& gradient = p.gradients[0];
  for_each_algorithm([&](const Algorithm& algorithm, const std::string& setting) {
    const Way way{p, DType::f32, setting, algorithm.roundings, 0};
    const Held x = put(way.dtype, p.x), weight = put(way.dtype, p.weight), gy = put(way.dtype, gradient.gy.y);
    const Held gx = make_nhwc(way.dtype, c.n, c.cin, c.h, c.w);
    const Outputs out = run_fprop(way, x, weight, nullptr, {}, false, 0);
    CHECK_NEAR(out.y, p.z[0], algorithm.roundings, p.size_z[0], setting, " fprop with 0 threads");
    const HeldWorkspace workspace(conv_dgrad_workspace(gy, {}, weight, c.h, c.w, {0}));
    conv_dgrad(gy, {}, weight, gx, workspace, {0});
    CHECK_NEAR(gx, gradient.gx, algorithm.roundings, gradient.size_gx, setting, " dgrad with 0 threads");
  });
}

/// All that a convolution computes in a context, as bytes.
std::string computed(const Problem& p, const Context& context) {
  const Case& c = p.c;
  const Held x = put(DType::f32, p.x), weight = put(DType::f32, p.weight), gy = put(DType::f32, p.gradients[0].gy.y);
  const Held y = make_nhwc(DType::f32, c.n, c.cout, c.h, c.w), gx = make_nhwc(DType::f32, c.n, c.cin, c.h, c.w);
  const Held gw = make(DType::f32, p.weight.shape(), {0, 1, 2, 3});
  const HeldWorkspace fprop(conv_fprop_workspace(x, weight, {}, context));
  const HeldWorkspace dgrad(conv_dgrad_workspace(gy, {}, weight, c.h, c.w, context));
  const HeldWorkspace wgrad(conv_wgrad_workspace(x, gy, {}, 3, context));
  conv_fprop(x, weight, nullptr, {}, y, nullptr, fprop, context);
  conv_dgrad(gy, {}, weight, gx, dgrad, context);
  conv_wgrad(x, gy, {}, gw, nullptr, wgrad, context);
  std::string bytes;
  for (const Held* held : {&y, &gx, &gw}) {
    const Tensor& t = *held;
    bytes.append(static_cast<const char*>(t.data), static_cast<size_t>(t.numel()) * sizeof(float));
  }
  return bytes;
}

/// A call that says whether it is exact computes what "direct" or "auto" does, whatever is set.
void check_exact_calls() {
  const Case c{.n = 1, .h = 16, .w = 15, .cin = 64, .cout = 64, .kernel = 3, .rounding = Rounding::tile};
  const Problem p(c, {{}}, Random(9));
  set_conv_algorithm("direct");
  const std::string direct = computed(p, {1});
  set_conv_algorithm("auto");
  const std::string fastest = computed(p, {1});
  CHECK(direct != fastest);
  for (const char* set : {"auto", "direct", "winograd2"}) {
    set_conv_algorithm(set);
    CHECK(computed(p, {.exact = true}) == direct, "exact, while ", set, " is set");
    CHECK(computed(p, {.exact = false}) == fastest, "not exact, while ", set, " is set");
    CHECK_EQUAL(conv_algorithm(), set);
  }
}

/// An algorithm counts for float32 alone; an unknown one is refused, and changes nothing.
void check_choice() {
  for (const char* name : {"auto", "direct", "winograd2", "winograd4", "winograd6"}) {
    set_conv_algorithm(name);
    CHECK_EQUAL(conv_algorithm(), name);
    set_cpu_isa("portable");
    CHECK_ERROR(set_conv_algorithm("bf16x6"),
                "algorithm must be one of auto, direct, winograd2, winograd4, winograd6 on portable, got 'bf16x6'");
    set_cpu_isa("amx-emulated");
    CHECK_ERROR(set_conv_algorithm(""), ", winograd6, bf16x3, bf16x6 on amx-emulated, got ''");
    CHECK_EQUAL(conv_algorithm(), name, "after an unknown one was asked for");
  }
  const Case c{.n = 2, .h = 7, .w = 5, .cin = 3, .cout = 9, .kernel = 3};
  const Problem p(c, {{}, epilogues[3]}, Random(7));
  for_each_algorithm([&](const Algorithm&, const std::string& setting) {
    check_all({p, DType::f64, setting + " in float64: " + c.name(), 0, 0});
  });
}

}  // namespace
}  // namespace vggfast::test

int main() {
  using namespace vggfast::test;
  check_choice();
  check_exact_calls();
  run_all();
  check_chunks();
  check_many_weights();
  check_special(std::numeric_limits<double>::quiet_NaN());
  check_special(std::numeric_limits<double>::infinity());
  check_no_threads();
  return result();
}
