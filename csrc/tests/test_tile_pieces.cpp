// Convolution of floats in pieces of bfloat16: the pieces, bit by bit; fprop and dgrad against loops in double, with
// numbers that round, with infinities, NaN and the largest numbers, and with numbers so small that pieces of them are
// lost; equal bits for any number of threads and from the processor's tiles.
#include <bit>

#include "bf16.h"
#include "conv_cases.h"
#include "cpu/algorithms/conv_algorithm.h"
#include "cpu/isa/amx.h"
#include "cpu/tile_kernels.h"

namespace vggfast::test {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity(), most = std::numeric_limits<float>::max();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

struct Algorithm {
  const char* name;
  int pieces;
  Rounding rounding;  // of sums, and how often
  double roundings;
};
/// Sums of 6 products are as exact as direct ones are to be; those of 3 leave up to 2^-15 of each product.
constexpr Algorithm algorithms[] = {{"bf16x3", 2, Rounding::tile, 256}, {"bf16x6", 3, Rounding::own, 8}};

template <class Body>
void for_each_algorithm(Body body) {
  for (const std::string& isa : cpu_isas()) {
    if (!isa.starts_with("amx")) continue;
    set_cpu_isa(isa);
    for (const Algorithm& algorithm : algorithms) {
      set_conv_algorithm(algorithm.name);
      body(algorithm, isa + " " + algorithm.name);
    }
  }
}

/// The pieces that a number's map has. Denormals are zeros before they are rounded, and what rounding would make
/// infinite is cut instead.
std::vector<float> pieces_of(float x, int pieces) {
  std::vector<float> found;
  if (!std::isfinite(x)) {
    found.assign(static_cast<size_t>(pieces), 0);
    found.front() = x > 0 ? 1.0f : -1.0f;
    found.back() = x;
    return found;
  }
  for (float rest = x; pieces > 0; --pieces) {
    const bool denormal = std::fabs(rest) < std::numeric_limits<float>::min();
    float next = denormal ? std::copysign(0.0f, rest) : rounded_to_bf16(rest);
    if (std::isinf(next)) next = std::copysign(0x1.fep127f, rest);
    found.push_back(next);
    rest -= next;
  }
  return found;
}

/// What rounds to a zero or to denormals, to the largest number or beyond; what is not finite; any bits.
std::vector<float> numbers() {
  std::vector<float> all{0.0f,        -0.0f,        infinity, -infinity, nan,         -nan,          most,
                         -most,       0x1.fep127f,  1e38f,    -3.39e38f, 0x1.ffp127f, 0x1.feffp127f, 0x1p-126f,
                         0x1.fp-127f, 0x1.ffp-127f, -1e-45f,  1.0f,      0x1.01p0f};
  Random random(31);
  const auto half = [&] { return static_cast<uint32_t>(random.integer(0, 0xffff)); };
  while (all.size() < 4096) all.push_back(std::bit_cast<float>(half() << 16 | half()));
  return all;
}

void check_pieces() {
  const std::vector<float> from = numbers();
  const size_t count = from.size();
  for_each_algorithm([&](const Algorithm& algorithm, const std::string& setting) {
    const auto pieces = static_cast<size_t>(algorithm.pieces);
    std::vector<cpu::Bf16> got(pieces * count);
    cpu::kernels().tiles->split(from.data(), static_cast<int64_t>(count), algorithm.pieces, got.data(),
                                static_cast<int64_t>(count));
    for (size_t i = 0; i < count; ++i) {
      const std::vector<float> expected = pieces_of(from[i], algorithm.pieces);
      double sum = 0;
      for (size_t piece = 0; piece < pieces; ++piece) {
        const auto is = static_cast<float>(value_of(got[piece * count + i].bits));
        const bool same = std::bit_cast<uint32_t>(is) == std::bit_cast<uint32_t>(expected[piece]);
        CHECK(same || (std::isnan(is) && std::isnan(expected[piece])), setting, ", piece ", piece, " of ", from[i],
              " is ", is, ", expected ", expected[piece]);
        sum += is;
      }
      if (!std::isfinite(from[i])) continue;
      const double lost = pieces == 3 ? 0x1p-126 : std::max(0x1p-126, std::fabs(from[i]) * 0x1p-16);
      CHECK(std::fabs(sum - from[i]) < lost, setting, ": pieces of ", from[i], " add up to ", sum);
      CHECK(pieces < 3 || std::fabs(from[i]) < 0x1p-102f || sum == from[i], setting, ": pieces of ", from[i]);
    }
  });
}

/// Maps in blocks are of layers that keep bfloat16.
void check_refusals() {
  for_each_algorithm([](const Algorithm& algorithm, const std::string& setting) {
    const cpu::ConvAlgorithm& conv = algorithm.pieces == 2 ? cpu::bf16x3_conv : cpu::bf16x6_conv;
    cpu::ConvProblem p{.in = {1, 4, 4, 32}, .cout = 32, .kernel = 3, .packed = true};
    CHECK(conv.supports(p), setting);
    p.blocked_in = true;
    CHECK(!conv.supports(p), setting, ": x in blocks");
    std::swap(p.blocked_in, p.blocked_out);
    CHECK(!conv.supports(p), setting, ": y in blocks");
  });
}

void run(Case c) {
  static size_t turn = 0;
  ++turn;
  if (!sampled()) return;
  for_each_algorithm([&](const Algorithm& algorithm, const std::string& setting) {
    c.rounding = algorithm.rounding;
    const Problem problem(c, {{}, epilogues[1 + turn % 3]}, Random(static_cast<unsigned>(turn)));
    const Way way{problem, DType::f32, setting + ": " + c.name(), algorithm.roundings, turn};
    CHECK_EQUAL(conv_cost("fprop", c.n, c.cin, c.h, c.w, c.cout, c.kernel).algorithm, algorithm.name);
    CHECK_EQUAL(conv_cost("dgrad", c.n, c.cout, c.h, c.w, c.cin, c.kernel).algorithm, algorithm.name);
    check_fprop(way);
    for (const Gradient& gradient : problem.gradients) check_dgrad(way, gradient);
  });
}

void run_all() {
  for (int64_t kernel : {1, 3}) {
    const int64_t channels[] = {1, 3, 31, 33, 70}, extents[] = {1, 2, 5, 17};
    for (size_t i = 0; i < std::size(channels); ++i) {
      run({1, extents[i % 4], extents[(i + 1) % 4], channels[i], channels[(i + 2) % 5], kernel});
    }
    for (const auto& [n, h, w] : {std::array<int64_t, 3>{0, 5, 3}, {0, 0, 0}, {1, 0, 3}, {2, 3, 0}}) {
      run({n, h, w, 5, 17, kernel});
    }
    run({.n = 2, .h = 3, .w = 18, .cin = 5, .cout = 33, .kernel = kernel, .threads = true});
  }
  run({.n = 1, .h = 2, .w = 3, .cin = 130, .cout = 130, .kernel = 3});  // several tasks of output channels
}

/// fprop of x by weight, without a bias.
Held sums_of(const Array& x, const Array& weight) {
  const Held in = put(DType::f32, x), w = put(DType::f32, weight);
  Held y = make_nhwc(DType::f32, x.n, weight.n, x.h, x.w);
  const HeldWorkspace workspace(conv_fprop_workspace(in, w, {}, {1}));
  conv_fprop(in, w, nullptr, {}, y, nullptr, workspace, {1});
  return y;
}

/// Every product of two of these numbers is what it is in float: infinite, NaN, or the number. One beyond the largest
/// may be NaN, too, for its pieces' products may be infinities of both signs.
void check_special_products() {
  const float all[] = {0.0f, -0.0f,   1.0f,     -1.0f,       1.003f, -0.7f,   infinity, -infinity,
                       nan,  3.4e38f, -3.4e38f, 0x1.ffp127f, 1e-10f, -3e-15f, 1e30f,    255.0f};
  const auto count = static_cast<int64_t>(std::size(all));
  Array x(1, 1, 1, count), weight(count, 1, 1, 1);
  for (int64_t i = 0; i < count; ++i) x.at(0, 0, 0, i) = weight.at(i, 0, 0, 0) = all[i];
  for_each_algorithm([&](const Algorithm& algorithm, const std::string& setting) {
    const Held y = sums_of(x, weight);
    Array expected(1, count, 1, count), size = expected;
    for_each_element(y, [&](int64_t at, size_t i) {
      const float a = all[i / std::size(all)], b = all[i % std::size(all)];
      const bool beyond = std::isfinite(a) && std::isfinite(b) && std::isinf(a * b);
      CHECK(!beyond || !std::isfinite(read(y, at)), setting, ": ", a, " times ", b, " is ", read(y, at));
      expected.values[i] = beyond ? read(y, at) : a * b;
      size.values[i] = beyond ? 0 : std::fabs(a * b);
    });
    CHECK_NEAR(y, expected, algorithm.roundings, size, setting, " of special numbers");
  });
}

/// What is not finite, in x or in the weights or in both, reaches its own pixels alone, and makes of them what it makes
/// of direct sums.
void check_special() {
  const Case c{.n = 2, .h = 4, .w = 7, .cin = 35, .cout = 33, .kernel = 3};
  for (double in_x : {0.5, std::nan(""), double{infinity}, -double{infinity}, 3.4e38}) {
    for (double in_weight : {0.5, 0.0, std::nan(""), double{infinity}, -double{infinity}}) {
      Random random(33);
      Array x = random.array(Fill::reals, c.n, c.cin, c.h, c.w);
      Array weight = random.array(Fill::reals, c.cout, c.cin, c.kernel, c.kernel);
      x.at(0, 3, 2, 5) = in_x;
      weight.at(5, 3, 1, 1) = in_weight;  // of the centre: it meets no padding
      const Array expected = conv(x, weight, nullptr);
      const auto finite = [](double v) { return std::isfinite(v) ? std::fabs(v) : 0; };
      Array size_x = x, size_weight = weight;
      for (double& v : size_x.values) v = finite(v);
      for (double& v : size_weight.values) v = finite(v);
      const Array size = conv(size_x, size_weight, nullptr);
      for_each_algorithm([&](const Algorithm& algorithm, const std::string& setting) {
        CHECK_NEAR(sums_of(x, weight), expected, algorithm.roundings, size, setting, " with ", in_x, " in x and ",
                   in_weight, " in the weights");
      });
    }
  }
}

/// Down to 2^-102 (2^-109 in 2 pieces) numbers keep their bits; below, what lies under 2^-126 is lost.
void check_small() {
  const Case c{.n = 1, .h = 5, .w = 18, .cin = 40, .cout = 33, .kernel = 3};
  Random random(34);
  const Array x = random.array(Fill::reals, c.n, c.cin, c.h, c.w);
  const Array weight = random.array(Fill::reals, c.cout, c.cin, c.kernel, c.kernel);
  for_each_algorithm([&](const Algorithm& algorithm, const std::string& setting) {
    for (const auto& [of_x, of_weight] : {std::pair{-95, 0}, {0, -95}, {-60, -35}, {100, -95}, {-115, 0}, {-140, 0}}) {
      Array small = x, light = weight;
      for (double& v : small.values) v = static_cast<float>(std::ldexp(v, of_x));
      for (double& v : light.values) v = static_cast<float>(std::ldexp(v, of_weight));
      const Held y = sums_of(small, light);
      const Array expected = conv(small, light, nullptr);
      Array size = conv(absolute(small), absolute(light), nullptr);
      // Each of the terms, which are less than 1 but for the scale, may lose a piece or a product.
      const double lost = 2 * 9 * c.cin * 0x1p-126 / (algorithm.roundings * epsilon(DType::f32));
      for (double& v : size.values) v += of_x + of_weight < -100 ? lost : 0;
      CHECK_NEAR(y, expected, algorithm.roundings, size, setting, " of 2^", of_x, " and 2^", of_weight);
      if (of_x == -140) CHECK_SAME(y, Array(c.n, c.cout, c.h, c.w), setting, " of denormals");
    }
  });
}

/// The processor's tiles and those in software make the same bits.
void check_hardware() {
  if (cpu::find_amx() != cpu::Amx::permitted) {
    std::cout << "skipped: pieces on the processor's tiles: " << cpu::describe(cpu::find_amx()) << "\n";
    return;
  }
  const Case c{.n = 2, .h = 6, .w = 37, .cin = 40, .cout = 33, .kernel = 3, .rounding = Rounding::own};
  const Problem p(c, {}, Random(35));
  for (const Algorithm& algorithm : algorithms) {
    set_cpu_isa("amx");
    set_conv_algorithm(algorithm.name);
    const Held hardware = sums_of(p.x, p.weight);
    set_cpu_isa("amx-emulated");
    CHECK(hardware.same_bytes(sums_of(p.x, p.weight)), algorithm.name);
  }
}

}  // namespace
}  // namespace vggfast::test

int main() {
  using namespace vggfast::test;
  check_pieces();
  check_refusals();
  run_all();
  check_special_products();
  check_special();
  check_small();
  check_hardware();
  return result();
}
