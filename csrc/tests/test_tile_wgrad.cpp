// Weight gradients on tiles in bfloat16: the operands as they lie; sums against loops in double, with numbers that
// round, NaN and infinities; equal bits for any number of threads and from the processor's tiles.

#include "bf16.h"
#include "cpu/algorithms/conv_algorithm.h"
#include "cpu/isa/amx.h"
#include "cpu/tile_kernels.h"
#include "reference.h"

namespace vggfast::test {
namespace {

using cpu::Bf16;
using cpu::ConvInput;
using cpu::WgradStrips;

// ---- operands -------------------------------------------------------------------------------------------------------

constexpr int64_t couts = 64, cins = 48;  // rounded up to whole blocks, and for gy to pairs of them

struct Operands {
  WgradStrips strips;
  std::vector<uint16_t> values;
  std::vector<float> bias = std::vector<float>(couts);
  bool special[2];  // of gy, of x

  Operands(const Array& x, const Array& gy, int64_t kernel, int64_t first, int64_t rows, int64_t products)
      : strips{.kernel = kernel,
               .pitch = (x.w + (kernel == 1 ? 1 : 2)) / 2 * 2,
               .products = products,
               .cin_blocks = cins / 16,
               .gy_block = products * 512,
               .x_copy = products * 512 + (kernel == 1 ? 0 : ((x.w + 2) / 2 * 2 + 1) * 32),
               .x_block = (kernel == 1 ? 1 : 2) * strips.x_copy,
               .x = couts / 16 * strips.gy_block,
               .strip = strips.x + strips.cin_blocks * strips.x_block},
        values(static_cast<size_t>(strips.strip), 0xffff) {
    const Held held_x = put_bf16(x), held_gy = put_bf16(gy);
    const auto input = [](const Held& held, const Array& a) {
      return ConvInput<Bf16>{.data = held.view.as<Bf16>(), .extent = {a.n, a.h, a.w, a.c}};
    };
    auto* const to = reinterpret_cast<Bf16*>(values.data());
    const cpu::TileKernels& tiles = *cpu::kernels().tiles;
    special[0] = tiles.wgrad_gy(input(held_gy, gy), strips, first, rows, 0, couts / 16, to, bias.data());
    special[1] = tiles.wgrad_x(input(held_x, x), strips, first, rows, 0, 1, to);  // block by block: ranges are kept to
    special[1] |= tiles.wgrad_x(input(held_x, x), strips, first, rows, 1, cins / 16, to);
  }
  double gy(int64_t c, int64_t pixel) const {
    return value(c / 16 * strips.gy_block + pixel / 32 * 512 + c % 16 * 32 + pixel % 32);
  }
  double x(int64_t c, int64_t copy, int64_t pair, int64_t half) const {
    return value(strips.x + c / 16 * strips.x_block + copy * strips.x_copy + pair * 32 + c % 16 * 2 + half);
  }

 private:
  double value(int64_t at) const { return value_of(values[static_cast<size_t>(at)]); }
};

/// A finite value of the map; 0 outside, and for one that is not finite.
double kept(const Array& a, int64_t row, int64_t column, int64_t c) {
  const bool inside = row >= 0 && row < a.n * a.h && column >= 0 && column < a.w && c < a.c;
  const double value = inside ? a.at(row / a.h, c, row % a.h, column) : 0;
  return std::isfinite(value) ? value : 0;
}

/// Rows [first, first + rows) of maps of this width, in so many products.
void check_operands(int64_t kernel, int64_t h, int64_t w, int64_t first, int64_t rows, int64_t products, bool special) {
  Random random(31);
  Array x = random.array(Fill::integers, 3, cins - 15, h, w), gy = random.array(Fill::integers, 3, couts - 31, h, w);
  if (special) {
    x.at(first / h, 3, first % h, 0) = std::nan("");
    gy.at(first / h, 5, first % h, w - 1) = std::numeric_limits<double>::infinity();
  }
  const Operands got(x, gy, kernel, first, rows, products);
  std::ostringstream text;
  text << "operands for kernel " << kernel << ", maps " << h << " x " << w << ", rows from " << first;
  CHECK(got.special[0] == special && got.special[1] == special, text.str());
  const int64_t pitch = got.strips.pitch, ring = kernel / 2, image = first / h;
  int64_t wrong = 0;
  for (int64_t c = 0; c < couts; ++c) {
    double sum = 0;
    for (int64_t pixel = 0; pixel < 32 * products; ++pixel) {
      const int64_t row = pixel / pitch;
      wrong += got.gy(c, pixel) != (row < rows ? kept(gy, first + row, pixel % pitch, c) : 0);
    }
    for (int64_t i = 0; c < gy.c && i < rows * w; ++i) sum += gy.at((first + i / w) / h, c, (first + i / w) % h, i % w);
    wrong += static_cast<double>(got.bias[static_cast<size_t>(c)]) != sum;
  }
  for (int64_t c = 0; c < cins; ++c) {
    for (int64_t at = 0; at < got.strips.x_block / 16; ++at) {
      const int64_t copy = at * 16 / got.strips.x_copy, pixel = at - copy * got.strips.x_copy / 16;
      const int64_t row = first + pixel / pitch - ring, column = pixel % pitch - copy;
      const bool inside = pixel / pitch < rows + 2 * ring && (kernel == 1 || (row >= 0 && row / h == image));
      wrong += got.x(c, copy, pixel / 2, pixel % 2) != (inside ? kept(x, row, column, c) : 0);
    }
  }
  CHECK_EQUAL(wrong, 0, text.str());
}

void check_layouts() {
  for (bool special : {false, true}) {
    for (int64_t w : {1, 2, 15, 16, 33}) {
      check_operands(3, 4, w, 4, 4, (4 * w + 39) / 32, special);  // all of an image
      check_operands(3, 7, w, 2, 3, 5, special);                  // of its middle, with products to spare
      check_operands(3, 5, w, 13, 2, 4, special);                 // at the end of the batch
      check_operands(1, 4, w, 3, 6, 8, special);                  // of three images
    }
  }
}

// ---- gradients ------------------------------------------------------------------------------------------------------

struct Layer {
  int64_t n, h, w, cin, cout, kernel;

  std::string name() const {
    std::ostringstream text;
    text << cpu_isa() << " (" << n << ", " << cin << ", " << h << ", " << w << ") to " << cout << ", kernel " << kernel;
    return text.str();
  }
  cpu::ConvProblem problem(int64_t images, int threads) const {
    return {.pass = cpu::Pass::wgrad,
            .dtype = DType::bf16,
            .in = {images, h, w, cin},
            .cout = cout,
            .kernel = kernel,
            .threads = threads};
  }
};

struct Gradients {
  Held gw, gb;

  Gradients(const Layer& l, const Array& x, const Array& gy, int threads)
      : gw(make(DType::f32, {l.cout, l.cin, l.kernel, l.kernel}, {0, 1, 2, 3})), gb(make_vector(DType::f32, l.cout)) {
    const Held held_x = put_bf16(x), held_gy = put_bf16(gy);
    const cpu::ConvPlan plan = cpu::choose(l.problem(l.n, threads));
    CHECK(plan.algorithm == &cpu::tiles_wgrad_conv);
    const HeldWorkspace workspace(plan.workspace_bytes);
    const Tensor& w = gw;
    plan.run_wgrad({.x = {.data = held_x.view.data, .extent = plan.problem.in},
                    .gy = {.data = held_gy.view.data, .extent = {l.n, l.h, l.w, l.cout}},
                    .shape = {nullptr, l.cout, l.cin, l.kernel, w.stride(0), w.stride(1), w.stride(2), w.stride(3)},
                    .gw = w.data,
                    .gb = gb.view.data,
                    .workspace = workspace.memory.data()});
  }
  bool same(const Gradients& other) const { return gw.same_bytes(other.gw) && gb.same_bytes(other.gb); }
};

std::vector<Layer> layers() {
  std::vector<Layer> all;
  for (int64_t kernel : {1, 3}) {
    all.push_back({2, 40, 9, 20, 33, kernel});  // several strips of an image
    all.push_back({70, 3, 5, 40, 8, kernel});   // several images to a group, several groups to a part
    all.push_back({1, 5, 16, 3, 64, kernel});
    all.push_back({3, 2, 3, 130, 5, kernel});
    all.push_back({1, 1, 1, 1, 1, kernel});
    all.push_back({0, 4, 4, 8, 8, kernel});
  }
  all.push_back({2, 14, 14, 160, 128, 3});  // so many sums that threads share a group of images
  return all;
}

/// Each sum within its own roundings: of products that are exact, added as floats.
void check_sums(const Layer& l, const Gradients& got, const Array& x, const Array& gy) {
  const auto pixels = static_cast<double>(l.n * l.h * l.w), roundings = 2 + std::sqrt(pixels) / 4;
  CHECK_NEAR(got.gw, conv_weight_gradient(x, gy, l.kernel), roundings,
             conv_weight_gradient(absolute(x), absolute(gy), l.kernel), l.name());
  CHECK_NEAR(got.gb, channel_sums(gy), roundings, channel_sums(absolute(gy)), l.name(), ", gb");
}

void check_numbers() {
  Random random(32);
  for (const Layer& l : layers()) {
    const Array x = truncated(random.array(Fill::reals, l.n, l.cin, l.h, l.w));
    const Array gy = truncated(random.array(Fill::reals, l.n, l.cout, l.h, l.w));
    const Gradients got(l, x, gy, 1);
    check_sums(l, got, x, gy);
    for (int threads : {2, 3}) CHECK(Gradients(l, x, gy, threads).same(got), l.name(), ", ", threads, " threads");
  }
}

/// Channels `some` alone.
Array channels(const Array& a, const std::vector<int64_t>& some) {
  Array out(a.n, static_cast<int64_t>(some.size()), a.h, a.w);
  for (int64_t n = 0; n < a.n; ++n)
    for (size_t c = 0; c < some.size(); ++c)
      for (int64_t i = 0; i < a.h * a.w; ++i) out.at(n, static_cast<int64_t>(c), 0, i) = a.at(n, some[c], 0, i);
  return out;
}

/// So many pixels that threads share several groups: of some channels, the sums of integers are exact.
void check_groups() {
  const Layer l{8, 30, 30, 160, 128, 3};
  Random random(33);
  const Array x = random.array(Fill::integers, l.n, l.cin, l.h, l.w);
  const Array gy = random.array(Fill::integers, l.n, l.cout, l.h, l.w);
  const Gradients got(l, x, gy, 2);
  CHECK(got.same(Gradients(l, x, gy, 3)), l.name());
  const std::vector<int64_t> out{0, 31, 127}, in{0, 17, 159};
  const Array expected = conv_weight_gradient(channels(x, in), channels(gy, out), l.kernel);
  for (size_t o = 0; o < out.size(); ++o)
    for (size_t i = 0; i < in.size(); ++i)
      for (int64_t tap = 0; tap < 9; ++tap) {
        const double sum = got.gw.view.as<float>()[(out[o] * l.cin + in[i]) * 9 + tap];
        CHECK_EQUAL(sum, expected.at(static_cast<int64_t>(o), static_cast<int64_t>(i), 0, tap), l.name());
      }
}

/// Operands are of a group of strips at a time: 720 more images take less than 4 % of their own bytes.
void check_memory() {
  for (const Layer& l : {Layer{0, 224, 224, 64, 64, 3}, Layer{0, 14, 14, 512, 512, 3}, Layer{0, 14, 14, 512, 512, 1}}) {
    const auto bytes_of = [&](int64_t n) { return cpu::choose(l.problem(n, 2)).workspace_bytes; };
    const auto more = static_cast<double>(bytes_of(800)) - static_cast<double>(bytes_of(80));
    CHECK(more < 0.04 * static_cast<double>(720 * l.h * l.w * l.cin * 2), l.name(), ": ", more);
  }
}

/// NaN and infinities reach the sums that they are in, of their own channels and taps, and no other.
void check_special() {
  Random random(34);
  constexpr double infinity = std::numeric_limits<double>::infinity();
  for (const Layer& l : layers()) {
    if (l.n == 0) continue;
    for (double value : {std::nan(""), infinity, -infinity}) {
      for (const std::string where : {"x", "gy", "both"}) {
        if (!sampled()) continue;
        Array x = random.array(Fill::integers, l.n, l.cin, l.h, l.w);
        Array gy = random.array(Fill::integers, l.n, l.cout, l.h, l.w);
        // Corners and edges, where products with what is outside of the image would show.
        const auto put = [&](Array& a) {
          a.at(0, 0, 0, 0) = a.at(l.n - 1, a.c / 2, l.h - 1, l.w - 1) = value;
          a.at(l.n / 2, a.c - 1, l.h / 2, l.w - 1) = -value;
        };
        if (where != "gy") put(x);
        if (where != "x") put(gy);
        const Gradients got(l, x, gy, 2);
        CHECK_SAME(got.gw, conv_weight_gradient(x, gy, l.kernel), l.name(), ", ", value, " in ", where);
        CHECK_SAME(got.gb, channel_sums(gy), l.name(), ", gb, ", value, " in ", where);
      }
    }
  }
}

/// The processor's tiles and those in software make the same bits.
void check_hardware() {
  if (cpu::find_amx() != cpu::Amx::permitted) {
    std::cout << "skipped: gradients on the processor's tiles: " << cpu::describe(cpu::find_amx()) << "\n";
    return;
  }
  Random random(35);
  for (const Layer& l : layers()) {
    const Array x = truncated(random.array(Fill::reals, l.n, l.cin, l.h, l.w));
    const Array gy = truncated(random.array(Fill::reals, l.n, l.cout, l.h, l.w));
    set_cpu_isa("amx");
    const Gradients hardware(l, x, gy, 2);
    set_cpu_isa("amx-emulated");
    CHECK(hardware.same(Gradients(l, x, gy, 2)), l.name());
  }
}

}  // namespace
}  // namespace vggfast::test

int main() {
  using namespace vggfast::test;
  for (const std::string& isa : vggfast::cpu_isas()) {
    if (!isa.starts_with("amx")) continue;
    vggfast::set_cpu_isa(isa);
    check_layouts();
    check_numbers();
    check_groups();
    check_memory();
    check_special();
  }
  check_hardware();
  return result();
}
