// Layers of 8 bits against naive loops in int64: sums are exact and each rounding is one of float's, so that every bit
// is the same on all instruction sets, on tiles of the processor and in software, for any number of threads.
#include <cmath>
#include <limits>

#include "cpu/algorithms/int8.h"
#include "cpu/algorithms/quantise.h"
#include "cpu/algorithms/tiles.h"
#include "cpu/isa/amx.h"
#include "tensors.h"

namespace vggfast::test {
namespace {

using cpu::Extent;
using cpu::Int8Layer;
using cpu::Int8Output;
using cpu::make_int8_layer;

struct Case {
  Extent in;
  int64_t cout, kernel;
};

float random_float(Random& random) { return static_cast<float>(random.real()); }

/// Weights and inputs that fill their range, its ends often.
struct Layer {
  std::vector<int8_t> weight;  // (kernel, kernel, cin, cout): views have any strides
  std::vector<float> unit, bias;
  cpu::WeightView<int8_t> view;

  Layer(int64_t cin, int64_t cout, int64_t kernel, Random& random)
      : weight(static_cast<size_t>(cout * cin * kernel * kernel)),
        unit(static_cast<size_t>(cout)),
        bias(static_cast<size_t>(cout)),
        view{weight.data(), cout, cin, kernel, 1, cout, kernel * cin * cout, cin * cout} {
    for (int8_t& w : weight) w = static_cast<int8_t>(std::clamp(random.integer(-190, 190), -128, 127));
    for (float& u : unit) u = std::ldexp(1 + std::fabs(random_float(random)), -15);
    for (float& b : bias) b = random_float(random);
  }
  int64_t at(int64_t out, int64_t in, int64_t r, int64_t s) const {
    return view.data[out * view.stride_out + in * view.stride_in + r * view.stride_row + s * view.stride_column];
  }
};

std::vector<uint8_t> random_inputs(int64_t count, Random& random) {
  std::vector<uint8_t> x(static_cast<size_t>(count));
  for (uint8_t& v : x) v = static_cast<uint8_t>(std::clamp(random.integer(-120, 300), 0, 255));
  return x;
}

uint8_t rounded(float y, float inverse) {
  return static_cast<uint8_t>(std::clamp(std::nearbyint(y * inverse), 0.0f, 255.0f));
}

/// The layer in float, before ReLU and pool, NHWC.
std::vector<float> products(const Layer& layer, const std::vector<uint8_t>& x, const Case& c, bool biased) {
  const Extent& in = c.in;
  std::vector<float> y;
  for (int64_t n = 0; n < in.n; ++n)
    for (int64_t row = 0; row < in.h; ++row)
      for (int64_t column = 0; column < in.w; ++column)
        for (int64_t out = 0; out < c.cout; ++out) {
          int64_t sum = 0;
          for (int64_t r = 0; r < c.kernel; ++r)
            for (int64_t s = 0; s < c.kernel; ++s) {
              const int64_t yy = row + r - c.kernel / 2, xx = column + s - c.kernel / 2;
              if (yy < 0 || yy >= in.h || xx < 0 || xx >= in.w) continue;
              for (int64_t i = 0; i < in.c; ++i)
                sum += x[static_cast<size_t>(((n * in.h + yy) * in.w + xx) * in.c + i)] * layer.at(out, i, r, s);
            }
          const float product = static_cast<float>(sum) * layer.unit[static_cast<size_t>(out)];
          y.push_back(product + (biased ? layer.bias[static_cast<size_t>(out)] : 0));
        }
  return y;
}

std::vector<float> activated(std::vector<float> y, const Case& c, bool relu, bool pool) {
  if (relu)
    for (float& v : y) v = std::max(v, 0.0f);
  if (!pool) return y;
  std::vector<float> out;
  for (int64_t n = 0; n < c.in.n; ++n)
    for (int64_t row = 0; row + 1 < c.in.h; row += 2)
      for (int64_t column = 0; column + 1 < c.in.w; column += 2)
        for (int64_t k = 0; k < c.cout; ++k) {
          const auto at = [&](int64_t i, int64_t j) {
            return y[static_cast<size_t>(((n * c.in.h + row + i) * c.in.w + column + j) * c.cout + k)];
          };
          out.push_back(std::max(std::max(at(0, 0), at(0, 1)), std::max(at(1, 0), at(1, 1))));
        }
  return out;
}

template <class T>
void check_values(const Buffer& got, const std::vector<T>& wanted, const std::string& name) {
  const bool same = got.bytes() == wanted.size() * sizeof(T) &&
                    (wanted.empty() || std::memcmp(got.data(), wanted.data(), got.bytes()) == 0);
  size_t at = 0;
  while (!same && at + 1 < wanted.size() && static_cast<const T*>(got.data())[at] == wanted[at]) ++at;
  CHECK(same, name, ": value ", at, " of ", wanted.size(), " is ",
        wanted.empty() ? 0.0 : static_cast<double>(static_cast<const T*>(got.data())[at]), ", expected ",
        wanted.empty() ? 0.0 : static_cast<double>(wanted[at]));
}

size_t map_bytes(const Extent& e, bool blocked) {
  return blocked ? cpu::blocked_bytes<uint8_t>(e) : static_cast<size_t>(e.n * e.h * e.w * e.c);
}

/// A map in blocks is `wanted`, NHWC, in a ring of zeros; channels past the last one are not looked at.
void check_blocks(const Buffer& got, const std::vector<uint8_t>& wanted, const Extent& e, const std::string& name) {
  const auto map = cpu::blocked_map<uint8_t>(got.data(), e);
  int64_t wrong = 0;
  for (int64_t n = 0; n < e.n; ++n)
    for (int64_t y = -1; y <= e.h; ++y)
      for (int64_t x = -1; x <= e.w; ++x)
        for (int64_t c = 0; c < e.c; ++c) {
          const bool inside = y >= 0 && y < e.h && x >= 0 && x < e.w;
          const uint8_t want = inside ? wanted[static_cast<size_t>(((n * e.h + y) * e.w + x) * e.c + c)] : 0;
          const int64_t block = c / map.channels, channel = c % map.channels;
          wrong += map.data[n * map.image + block * map.plane + (y + 1) * map.row + (x + 1) * map.channels + channel] !=
                   want;
        }
  CHECK(wrong == 0, name, ", uint8 in blocks: ", wrong, " values are wrong");
}

/// Runs body(name, threads) on every instruction set, for several numbers of threads.
template <class Body>
void for_each_way(const std::string& what, Body body) {
  for (const std::string& isa : cpu_isas()) {
    set_cpu_isa(isa);
    for (int threads : {1, 2, 3}) body(isa + " " + what + ", threads " + std::to_string(threads), threads);
  }
}

/// Every algorithm for a convolution of these weights on the instruction set in use.
std::vector<std::unique_ptr<const Int8Layer>> layers_of(const Case& c, const cpu::WeightView<int8_t>& weight) {
  std::vector<std::unique_ptr<const Int8Layer>> layers;
  layers.push_back(make_int8_layer({c.in, c.cout, c.kernel}, weight));
  const std::string chosen = layers.front()->name();
  if (c.kernel != 3 || !cpu::int8_winograd_is_exact(weight)) {
    CHECK(chosen != "int8 winograd4", chosen, " was chosen for sums that it cannot have");
  } else if (chosen != "int8 winograd4") {
    layers.push_back(cpu::make_winograd_int8_layer({c.in, c.cout, c.kernel}));
  } else {
    layers.push_back(cpu::make_direct_int8_layer({c.in, c.cout, c.kernel}));
  }
  return layers;
}

void check_conv(const Case& c, Random& random) {
  if (!sampled()) return;
  const Layer layer(c.in.c, c.cout, c.kernel, random);
  const auto x = random_inputs(c.in.n * c.in.h * c.in.w * c.in.c, random);
  const std::vector<float> reals(x.begin(), x.end());
  std::ostringstream shape;
  shape << "conv " << describe({c.in.n, c.in.c, c.in.h, c.in.w}) << " to " << c.cout << ", kernel " << c.kernel;
  for (const bool biased : {true, false}) {
    const std::vector<float> y = products(layer, x, c, biased);
    for (const bool relu : {false, true}) {
      for (const bool pool : {false, true}) {
        const std::vector<float> wanted = activated(y, c, relu, pool);
        float most = 0;
        for (const float v : wanted) most = std::max(most, v);
        const float inverse = 300 / std::max(most, 1.0f);  // the largest are cut
        std::vector<uint8_t> bytes;
        for (const float v : wanted) bytes.push_back(rounded(v, inverse));
        for_each_way(
            shape.str() + (relu ? ", relu" : "") + (pool ? ", pool" : ""), [&](const std::string& name, int threads) {
              for (const auto& run : layers_of(c, layer.view)) {
                const std::string named = name + ", " + run->name();
                const bool blocks = run->takes_blocks();
                const Buffer packed(run->packed_bytes()), scratch(run->conv_workspace(c.in, pool, threads));
                run->pack(layer.view, layer.unit.data(), biased ? layer.bias.data() : nullptr, packed.data(), threads);
                const Buffer input(map_bytes(c.in, blocks));
                auto* const values = static_cast<uint8_t*>(input.data());
                cpu::quantise(reals.data(), c.in, 1, values, blocks, threads);
                const int64_t window = pool ? 2 : 1;
                const Buffer floats(wanted.size() * sizeof(float)), rounds(wanted.size());
                Int8Output out{floats.data(), c.in.h / window, c.in.w / window, c.cout, relu, pool};
                run->conv(values, c.in, packed.data(), out, scratch.data(), threads);
                out.y = rounds.data();
                out.inverse = inverse;
                run->conv(values, c.in, packed.data(), out, scratch.data(), threads);
                check_values(floats, wanted, named + ", float32");
                check_values(rounds, bytes, named + ", uint8");
                if (!blocks || wanted.empty()) continue;
                const Extent extent{c.in.n, out.h, out.w, out.c};
                const Buffer map(map_bytes(extent, true));
                out.y = map.data();
                out.blocked = true;
                run->conv(values, c.in, packed.data(), out, scratch.data(), threads);
                check_blocks(map, bytes, extent, named);
              }
            });
      }
    }
  }
}

void check_linear(int64_t rows, int64_t cin, int64_t cout, Random& random) {
  const Layer layer(cin, cout, 1, random);
  const Case c{{rows, 1, 1, cin}, cout, 1};
  const auto x = random_inputs(rows * cin, random);
  Buffer input(x.size());
  std::copy(x.begin(), x.end(), static_cast<uint8_t*>(input.data()));
  const std::vector<float> wanted = activated(products(layer, x, c, true), c, true, false);
  std::vector<uint8_t> bytes;
  for (const float v : wanted) bytes.push_back(rounded(v, 20));
  for_each_way("linear " + describe({rows, cin, cout}), [&](const std::string& name, int threads) {
    const auto run = make_int8_layer({.in = {rows, 1, 1, cin}, .cout = cout, .rows = true}, layer.view);
    const Buffer packed(run->packed_bytes()), scratch(run->linear_workspace(rows, threads));
    run->pack(layer.view, layer.unit.data(), layer.bias.data(), packed.data(), threads);
    const Buffer floats(wanted.size() * sizeof(float)), rounds(wanted.size());
    Int8Output out{floats.data(), 1, 1, cout, true};
    const auto* values = static_cast<const uint8_t*>(input.data());
    run->linear(values, rows, packed.data(), out, scratch.data(), threads);
    out.y = rounds.data();
    out.inverse = 20;
    run->linear(values, rows, packed.data(), out, scratch.data(), threads);
    check_values(floats, wanted, name + ", float32");
    check_values(rounds, bytes, name + ", uint8");
  });
}

void check_quantise() {
  constexpr float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> from{0,      0.5f,  1.5f, 2.5f,  0.49999997f, 127.5f, 254.5f, 254.50002f, 255,
                                255.5f, 1e30f, inf,  -0.5f, -1e30f,      -inf,   NAN,    1e-40f,     -0.0f,
                                3,      4,     5,    6,     7,           8,      9,      10,         11};
  const std::vector<uint8_t> wanted{0, 0, 2, 2, 0, 128, 254, 255, 255, 255, 255, 255, 0, 0,
                                    0, 0, 0, 0, 3, 4,   5,   6,   7,   8,   9,   10,  11};
  for (const std::string& isa : cpu_isas()) {
    set_cpu_isa(isa);
    const Buffer to(from.size());
    cpu::kernels().int8->quantise(from.data(), static_cast<int64_t>(from.size()), 1, static_cast<uint8_t*>(to.data()));
    check_values(to, wanted, isa + " quantise");
  }
}

/// The largest sum that a layer may have, on both sides.
void check_extremes() {
  const int64_t cin = Int8Layer::most_terms;
  Random random(1);
  Layer layer(cin, 2, 1, random);
  for (int64_t i = 0; i < cin; ++i) {
    layer.weight[static_cast<size_t>(2 * i)] = -128;
    layer.weight[static_cast<size_t>(2 * i + 1)] = 127;
  }
  layer.unit = {1, 1};
  const std::vector<uint8_t> x(static_cast<size_t>(2 * cin), 255);
  for_each_way("the largest sums", [&](const std::string& name, int threads) {
    const auto run = make_int8_layer({.in = {1, 1, 1, cin}, .cout = 2, .rows = true}, layer.view);
    const Buffer packed(run->packed_bytes());
    run->pack(layer.view, layer.unit.data(), nullptr, packed.data(), threads);
    for (const int64_t rows : {1, 2}) {
      const Buffer scratch(run->linear_workspace(rows, threads)), y(static_cast<size_t>(rows) * 2 * sizeof(float));
      run->linear(x.data(), rows, packed.data(), {y.data(), 1, 1, 2}, scratch.data(), threads);
      std::vector<float> wanted;
      for (int64_t row = 0; row < rows; ++row) {
        wanted.push_back(static_cast<float>(-255 * 128 * cin));
        wanted.push_back(static_cast<float>(255 * 127 * cin));
      }
      check_values(y, wanted, name);
    }
  });
}

/// A 3x3 convolution of weights whose largest sum of 255s is `largest` * 255, of either sign and of both at once.
Layer layer_of_sum(int64_t largest, Random& random) {
  const int64_t cin = largest / (9 * 127) + 1;
  Layer layer(cin, 3, 3, random);
  int64_t left = largest, below = largest;
  for (int64_t tap = 0; tap < 9 * cin; ++tap) {
    int8_t* const weight = layer.weight.data() + 3 * tap;
    weight[0] = static_cast<int8_t>(std::min<int64_t>(left, 127));
    weight[1] = static_cast<int8_t>(-std::min<int64_t>(below, 128));
    weight[2] = static_cast<int8_t>(tap % 2 ? 127 : -128);
    left -= weight[0];
    below += weight[1];
  }
  layer.unit = {1, 1, 1};
  return layer;
}

/// Winograd's sums up to the largest that they can have, and its being left alone beyond.
void check_winograd_range() {
  constexpr int64_t largest = ((int64_t{1} << 25) - 1) / 255;
  Random random(2);
  const Layer layer = layer_of_sum(largest, random), beyond = layer_of_sum(largest + 1, random);
  CHECK(cpu::int8_winograd_is_exact(layer.view), "sums of ", largest, " * 255 are within 2^25");
  CHECK(!cpu::int8_winograd_is_exact(beyond.view), "sums of ", largest + 1, " * 255 are not within 2^25");
  const Case c{{1, 5, 6, layer.view.in}, 3, 3};
  const std::vector<uint8_t> x(static_cast<size_t>(5 * 6 * layer.view.in), 255);
  const std::vector<float> wanted = products(layer, x, c, false);
  CHECK(std::count(wanted.begin(), wanted.end(), static_cast<float>(largest * 255)) == 12, "no sum is the largest");
  for_each_way("Winograd's largest sums", [&](const std::string& name, int threads) {
    const auto run = cpu::make_winograd_int8_layer({c.in, c.cout, c.kernel});
    const Buffer packed(run->packed_bytes()), scratch(run->conv_workspace(c.in, false, threads));
    const Buffer y(wanted.size() * sizeof(float));
    run->pack(layer.view, layer.unit.data(), nullptr, packed.data(), threads);
    run->conv(x.data(), c.in, packed.data(), {y.data(), c.in.h, c.in.w, c.cout}, scratch.data(), threads);
    check_values(y, wanted, name);
    bool refused = false;
    try {
      run->linear_workspace(1, threads);
    } catch (const Error& error) {
      refused = std::string(error.what()).find("int8 winograd4 has no linear layers") == 0;
    }
    CHECK(refused, name, ": a linear layer was not refused");
  });
}

/// Which algorithm computes a convolution of these channels, all weights 1.
std::string chosen(int64_t cin, int64_t cout, int64_t kernel, int64_t size, int8_t weight = 1) {
  const std::vector<int8_t> weights(static_cast<size_t>(cout * cin * kernel * kernel), weight);
  const cpu::WeightView<int8_t> view{weights.data(), cout, cin, kernel, 1, cout, kernel * cin * cout, cin * cout};
  return make_int8_layer({{1, size, size, cin}, cout, kernel}, view)->name();
}

void check_choice() {
  for (const std::string& isa : cpu_isas()) {
    set_cpu_isa(isa);
    const bool tiles = cpu::kernels().int8_tiles;
    const std::string direct = tiles ? "int8 tiles" : "int8", winograd = tiles ? direct : "int8 winograd4";
    const auto check = [&](const std::string& found, const std::string& wanted, const char* what) {
      CHECK(found == wanted, isa, ": ", found, " computes ", what, ", expected ", wanted);
    };
    check(chosen(128, 128, 3, 56), winograd, "a layer of VGG");
    check(chosen(3, 64, 3, 224), direct, "a first layer");
    check(chosen(128, 128, 1, 56), direct, "a 1x1 convolution");
    check(chosen(128, 128, 3, 1), direct, "maps of one pixel");
    check(chosen(128, 128, 3, 56, 127), direct, "sums that may leave 2^25");
  }
}

void run_all() {
  Random random(5);
  for (const int64_t kernel : {1, 3}) {
    const Case cases[] = {{{1, 1, 1, 1}, 1, kernel},    {{2, 5, 7, 3}, 5, kernel},    {{1, 9, 14, 4}, 32, kernel},
                          {{3, 2, 13, 130}, 9, kernel}, {{1, 6, 29, 8}, 130, kernel}, {{1, 3, 2, 5}, 64, kernel},
                          {{2, 1, 9, 6}, 17, kernel},   {{1, 8, 1, 7}, 33, kernel},   {{0, 4, 4, 8}, 16, kernel},
                          {{2, 40, 5, 64}, 7, kernel}};
    for (const Case& c : cases) check_conv(c, random);
  }
  check_conv({{1, 4, 30, 512}, 70, 3}, random);
  for (const int64_t near : {16, 32, 64}) {  // the sizes of tiles and of blocks
    for (const int64_t beside : {-1, 0, 1}) {
      check_conv({{1, 3, near / 2 + beside, near + beside}, near - beside, 3}, random);
      check_linear(near / 2 + beside, near + beside, near - beside, random);
    }
  }
  for (const int64_t rows : {0, 1, 2, 5, 14, 15, 31, 129}) {
    for (const int64_t cin : {1, 4, 131, 1030}) check_linear(rows, cin, 1 + (rows + cin) % 70, random);
  }
  check_linear(150, 1100, 130, random);
  check_quantise();
  check_extremes();
  check_winograd_range();
  check_choice();
  if (cpu::find_amx() != cpu::Amx::permitted) {
    std::cout << "skipped: layers on the processor's tiles: " << cpu::describe(cpu::find_amx()) << "\n";
  }
}

}  // namespace
}  // namespace vggfast::test

int main() {
  vggfast::test::run_all();
  return vggfast::test::result();
}
