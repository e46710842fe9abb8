// Linear layers of bfloat16 on tiles against loops in double: rows, outputs and inputs below, at and above those of a
// tile, a register block and what is multiplied at a time; NaN, infinities; FC layers of an engine; equal bits for any
// number of threads and from the processor's tiles.
#include <iostream>

#include "bf16.h"
#include "cpu/isa/amx.h"
#include "reference.h"
#include "vggfast/conv.h"
#include "vggfast/engine.h"
#include "vggfast/linear.h"

namespace vggfast::test {
namespace {

struct Shape {
  int64_t rows, inputs, outputs;
};

struct Matrix {
  int64_t rows, columns;
  std::vector<double> values;

  Matrix(int64_t r, int64_t c) : rows(r), columns(c), values(static_cast<size_t>(r * c)) {}
  Matrix(int64_t r, int64_t c, Random& random) : Matrix(r, c) {
    for (double& v : values) v = rounded_to_bf16(random.real());
  }
  double& at(int64_t r, int64_t c) { return values[static_cast<size_t>(r * columns + c)]; }
  double at(int64_t r, int64_t c) const { return const_cast<Matrix*>(this)->at(r, c); }
  Held held() const {
    Held out = make(DType::bf16, {rows, columns}, {0, 1});
    for (size_t i = 0; i < values.size(); ++i) out.view.as<uint16_t>()[i] = bits_of(values[i]);
    return out;
  }
  Matrix transposed() const {
    Matrix out(columns, rows);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) out.at(c, r) = at(r, c);
    return out;
  }
};

/// a b, and the same of absolute values.
std::pair<Matrix, Matrix> product(const Matrix& a, const Matrix& b, const Matrix* bias = nullptr) {
  Matrix out(a.rows, b.columns), sizes(a.rows, b.columns);
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t c = 0; c < b.columns; ++c) {
      double sum = bias ? bias->at(0, c) : 0, size = std::fabs(sum);
      for (int64_t k = 0; k < a.columns; ++k) {
        sum += a.at(r, k) * b.at(k, c);
        size += std::fabs(a.at(r, k) * b.at(k, c));
      }
      out.at(r, c) = sum;
      sizes.at(r, c) = size;
    }
  return {out, sizes};
}

/// Each value within the rounding of a sum in float and, where it is stored as bfloat16, of that.
void check_near(const std::vector<double>& got, const std::pair<Matrix, Matrix>& expected, double stored,
                const std::string& name) {
  bool reported = false;
  for (size_t i = 0; i < got.size(); ++i) {
    const double want = expected.first.values[i], size = expected.second.values[i];
    const bool same = is_near(got[i], want, 1e-6 * size + stored * std::fabs(want));
    CHECK(same || std::exchange(reported, true), name, ", element ", i, " is ", got[i], ", expected ", want);
  }
}

void check_bf16(const Held& got, const std::pair<Matrix, Matrix>& expected, const std::string& name) {
  std::vector<double> values;
  for (int64_t i = 0; i < got.view.numel(); ++i) values.push_back(value_of(got.view.as<uint16_t>()[i]));
  check_near(values, expected, 1.0 / 256, name);
}

/// x, weight, bias and gy of a layer, and its four results.
struct Layer {
  Matrix x, weight, bias, gy;

  Layer(const Shape& s, Random& random)
      : x(s.rows, s.inputs, random),
        weight(s.outputs, s.inputs, random),
        bias(1, s.outputs, random),
        gy(s.rows, s.outputs, random) {}

  std::string name() const { return describe({x.rows, x.columns, weight.rows}); }

  std::vector<Held> run(int threads) const {
    const Context context{threads};
    const Held hx = x.held(), hw = weight.held(), hgy = gy.held(), row = bias.held();
    Tensor hb = row.view;
    hb.shape = {weight.rows};
    hb.strides = {1};
    std::vector<Held> out;
    for (const auto& [r, c] :
         {std::pair{x.rows, weight.rows}, {x.rows, weight.rows}, {x.rows, x.columns}, {weight.rows, x.columns}}) {
      out.push_back(make(DType::bf16, {r, c}, {0, 1}));
    }
    const HeldWorkspace forward(linear_fprop_workspace(hx, hw, context));
    linear_fprop(hx, hw, nullptr, out[0], forward, context);
    linear_fprop(hx, hw, &hb, out[1], forward, context);
    linear_dgrad(hgy, hw, out[2], HeldWorkspace(linear_dgrad_workspace(hgy, hw, context)), context);
    linear_wgrad(hx, hgy, out[3], HeldWorkspace(linear_wgrad_workspace(hx, hgy, context)), context);
    return out;
  }

  void check(const std::vector<Held>& got, const std::string& what) const {
    check_bf16(got[0], product(x, weight.transposed()), "y of " + name() + what);
    check_bf16(got[1], product(x, weight.transposed(), &bias), "y with a bias of " + name() + what);
    check_bf16(got[2], product(gy, weight), "gx of " + name() + what);
    check_bf16(got[3], product(gy.transposed(), x), "gw of " + name() + what);
  }
};

std::vector<Shape> shapes() {
  std::vector<Shape> all{{0, 5, 3},     {3, 0, 5},      {3, 5, 0},    {1, 0, 2}, {300, 33, 35},
                         {257, 64, 16}, {2, 1100, 100}, {65281, 3, 1}};  // 255 groups of 256 rows, and one of one row
  const int64_t rows[] = {1, 2, 15, 16, 17, 32, 33, 49, 65}, inputs[] = {1, 31, 32, 33, 64, 95, 1024, 1057, 300},
                outputs[] = {1, 15, 16, 17, 31, 32, 33, 130, 300};
  for (size_t i = 0; i < std::size(rows); ++i) {
    all.push_back({rows[i], inputs[i], outputs[(4 * i) % 9]});
    all.push_back({rows[i], inputs[(2 * i + 3) % 9], outputs[(5 * i + 2) % 9]});
  }
  return all;
}

void check_numbers() {
  Random random(31);
  for (const Shape& s : shapes()) {
    const Layer layer(s, random);
    const std::vector<Held> first = layer.run(1);
    layer.check(first, "");
    for (int threads : {0, 2, 3}) {
      const std::vector<Held> again = layer.run(threads);
      for (size_t i = 0; i < first.size(); ++i) {
        CHECK(again[i].same_bytes(first[i]), layer.name(), ", result ", i, ", threads ", threads);
      }
    }
  }
}

/// NaN and infinities reach their own sums alone: not those of what fills up a tile, nor of a row's next one.
void check_special() {
  Random random(32);
  constexpr double infinity = std::numeric_limits<double>::infinity();
  for (const Shape& s : {Shape{1, 45, 37}, {3, 45, 37}, {18, 33, 40}}) {
    for (double value : {std::nan(""), infinity, -infinity}) {
      Layer layer(s, random);
      for (Matrix* m : {&layer.x, &layer.weight, &layer.gy}) m->at(m->rows - 1, m->columns - 1) = value;
      layer.check(layer.run(2), " with " + std::to_string(value));
    }
  }
}

/// A gradient that is large enough for being written past the caches, at a row's end and beyond its alignment too.
void check_streams() {
  for (const int64_t inputs : {2048, 2050}) {
    Random random(33);
    const Layer layer({1, inputs, 2700}, random);
    const Held gw = std::move(layer.run(2)[3]);
    check_bf16(gw, product(layer.gy.transposed(), layer.x), "large gw");
  }
}

/// An engine's FC layers in bfloat16 are sums of rounded rows and rounded weights, with float rows out.
void check_engine() {
  Random random(34);
  for (int64_t images : {1, 2, 17, 40}) {
    for (const auto& [inputs, outputs] : {std::pair<int64_t, int64_t>{40, 37}, {1088, 70}, {7, 1000}}) {
      Matrix x(images, inputs), weight(outputs, inputs), bias(1, outputs, random);
      for (double& v : x.values) v = static_cast<float>(random.real());
      for (double& v : weight.values) v = static_cast<float>(random.real());
      const Held w = make(DType::f32, {outputs, inputs}, {1, 0}), b = make_vector(DType::f32, outputs);
      const Held image = make(DType::f32, {images, inputs, 1, 1}, {0, 1, 2, 3});
      for (int64_t r = 0; r < outputs; ++r) {
        b.view.as<float>()[r] = static_cast<float>(bias.at(0, r));
        for (int64_t c = 0; c < inputs; ++c) w.view.as<float>()[c * outputs + r] = static_cast<float>(weight.at(r, c));
      }
      for (size_t i = 0; i < x.values.size(); ++i) image.view.as<float>()[i] = static_cast<float>(x.values[i]);
      for (double& v : x.values) v = rounded_to_bf16(v);
      for (double& v : weight.values) v = rounded_to_bf16(v);
      std::pair<Matrix, Matrix> expected = product(x, weight.transposed(), &bias);
      for (bool relu : {false, true}) {
        Engine engine({.bf16 = true, .bf16_weights = true});
        engine.add_flatten(1);
        engine.add_linear(w, &b.view);
        if (relu) engine.add_relu();
        for (double& v : expected.first.values) v = relu ? std::max(v, 0.0) : v;
        const Held y = make(DType::f32, {images, outputs}, {0, 1});
        engine.run(image, {{relu ? 2 : 1, y}}, {2});
        const float* values = y.view.as<float>();
        check_near({values, values + images * outputs}, expected, 0,
                   "engine of " + describe({images, inputs, outputs}));
        for (int threads : {1, 3}) {
          const Held again = make(DType::f32, {images, outputs}, {0, 1});
          engine.run(image, {{relu ? 2 : 1, again}}, {threads});
          CHECK(again.same_bytes(y), "engine, threads ", threads);
        }
      }
    }
  }
}

void check_errors() {
  const Held x = make(DType::bf16, {2, 5}, {0, 1}), weight = make(DType::bf16, {3, 5}, {0, 1});
  const Held y = make(DType::bf16, {2, 3}, {0, 1}), gw = make(DType::f32, {3, 5}, {0, 1});
  const HeldWorkspace room(linear_fprop_workspace(x, weight, {1}));
  CHECK_ERROR(linear_fprop(x, gw, nullptr, y, room, {1}), "weight must be bfloat16, got float32");
  CHECK_ERROR(linear_wgrad(x, y, gw, {}, {1}), "gw must be bfloat16, got float32");
  CHECK_ERROR(linear_fprop(x, weight, nullptr, y, {}, {1}), "workspace must have at least ");
  CHECK_ERROR((void)linear_dgrad_workspace(make_vector(DType::bf16, 3), weight, {1}), "gy must have 2 axes, got ");
  const std::string isa = cpu_isa();
  set_cpu_isa("portable");
  CHECK_ERROR(linear_fprop(x, weight, nullptr, y, {}, {1}),
              "x must be float32, or bfloat16 on instruction set amx or amx-emulated, got bfloat16 on portable");
  set_cpu_isa(isa);
}

/// The processor's tiles and those in software make the same bits.
void check_hardware() {
  if (cpu::find_amx() != cpu::Amx::permitted) {
    std::cout << "skipped: layers on the processor's tiles: " << cpu::describe(cpu::find_amx()) << "\n";
    return;
  }
  Random random(35);
  for (const Shape& s : shapes()) {
    const Layer layer(s, random);
    set_cpu_isa("amx");
    const std::vector<Held> hardware = layer.run(2);
    set_cpu_isa("amx-emulated");
    const std::vector<Held> software = layer.run(2);
    for (size_t i = 0; i < software.size(); ++i) CHECK(software[i].same_bytes(hardware[i]), layer.name(), ", ", i);
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
    check_streams();
    check_engine();
    check_errors();
  }
  check_hardware();
  return result();
}
