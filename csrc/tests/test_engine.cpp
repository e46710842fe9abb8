// Engine against naive loops in double, every layer's output: fused and standalone layers, dense and linear heads,
// strided images, bfloat16, threads, groups of images that leave a remainder, shapes that come and go, errors.
#include <algorithm>
#include <functional>

#include "reference.h"
#include "vggfast/conv.h"
#include "vggfast/engine.h"

namespace vggfast::test {
namespace {

/// An engine and, layer by layer, what it is to compute.
struct Net {
  Engine engine;
  std::vector<std::function<Array(const Array&)>> layers;
  std::vector<Held> weights;
  Random random{3};

  explicit Net(EngineOptions options = {}) : engine(options) {}

  /// Weights that keep the activations' size.
  Array draw(int64_t out, int64_t in, int64_t kernel) {
    Array w = random.array(Fill::reals, out, in, kernel, kernel);
    const double scale = std::sqrt(6.0 / static_cast<double>(in * kernel * kernel));
    for (double& v : w.values) v = static_cast<float>(v * scale);
    return w;
  }
  Net& conv(int64_t in, int64_t out, int64_t kernel) {
    const Array w = draw(out, in, kernel), b = random.array(Fill::reals, 1, out, 1, 1);
    weights.push_back(put(DType::f32, w, {1, 3, 2, 0}, 2));
    weights.push_back(put_vector(DType::f32, b));
    engine.add_conv(weights[weights.size() - 2], &weights.back().view);
    layers.push_back([=](const Array& x) { return test::conv(x, w, &b); });
    return *this;
  }
  Net& linear(int64_t in, int64_t out) {
    const Array w = draw(out, in, 1);
    Held held = make(DType::f32, {out, in}, {1, 0});
    write(held, w);
    engine.add_linear(held, nullptr);  // copied: `held` goes
    layers.push_back([=](const Array& x) { return test::conv(x, w, nullptr); });
    return *this;
  }
  Net& relu() {
    engine.add_relu();
    layers.push_back([](const Array& x) { return select(x, {.relu = true}, false).y; });
    return *this;
  }
  Net& pool(bool ceil_mode) {
    engine.add_max_pool(ceil_mode);
    layers.push_back([=](const Array& x) { return select(x, {.relu = false, .pool = true}, ceil_mode).y; });
    return *this;
  }
  Net& flatten(int64_t size) {
    engine.add_flatten(size);
    layers.push_back([=](const Array& x) {
      Array rows(x.n, x.c * size * size, 1, 1);
      for (int64_t n = 0; n < x.n; ++n)
        for (int64_t i = 0; i < x.c * size * size; ++i) {
          const int64_t row = i / size % size, column = i % size;
          double sum = 0, cells = 0;
          for (int64_t y = row * x.h / size; y < (row * x.h + x.h + size - 1) / size; ++y)
            for (int64_t z = column * x.w / size; z < (column * x.w + x.w + size - 1) / size; ++z, ++cells)
              sum += x.at(n, i / size / size, y, z);
          rows.at(n, i, 0, 0) = sum / cells;
        }
      return rows;
    });
    return *this;
  }
  Net& windows(int64_t size) {
    engine.add_windows(size);
    layers.push_back([=](const Array& x) {
      const int64_t down = x.h - size + 1, across = x.w - size + 1;
      Array rows(x.n * down * across, x.c * size * size, 1, 1);
      for (int64_t r = 0; r < rows.n; ++r)
        for (int64_t i = 0; i < rows.c; ++i)
          rows.at(r, i, 0, 0) =
              x.at(r / (down * across), i / size / size, r / across % down + i / size % size, r % across + i % size);
      return rows;
    });
    return *this;
  }
  Net& row_mean(int64_t images) {
    engine.add_row_mean();
    layers.push_back([=](const Array& x) {
      Array means(images, x.c, 1, 1);
      for (int64_t r = 0; r < x.n; ++r)
        for (int64_t c = 0; c < x.c; ++c)
          means.at(r * images / x.n, c, 0, 0) +=
              x.at(r, c, 0, 0) * static_cast<double>(images) / static_cast<double>(x.n);
      return means;
    });
    return *this;
  }

  std::vector<Array> forward(const Array& x) const {
    std::vector<Array> outputs{x};
    for (const auto& layer : layers) outputs.push_back(layer(outputs.back()));
    outputs.erase(outputs.begin());
    return outputs;
  }
};

using Outputs = std::vector<std::pair<int64_t, Held>>;

Outputs run(Engine& engine, const Tensor& x, const std::vector<int64_t>& layers, int threads) {
  Outputs held;
  std::vector<std::pair<int64_t, Tensor>> views;
  for (int64_t layer : layers) {
    const auto shape = engine.output_shape(layer, x.size(0), x.size(1), x.size(2), x.size(3));
    held.emplace_back(layer, make(DType::f32, shape, shape.size() == 4 ? nhwc_order : Order{0, 1}));
    views.emplace_back(layer, held.back().second.view);
  }
  engine.run(x, views, {threads});
  return held;
}

void check_outputs(const Outputs& got, const std::vector<Array>& expected, double bound, const std::string& name) {
  for (const auto& [layer, held] : got) {
    const Array& want = expected.at(static_cast<size_t>(layer));
    Array size = want;
    double most = 0;
    for (double v : want.values) most = std::max(most, std::fabs(v));
    for (double& v : size.values) v = most;
    CHECK_NEAR(held, want, bound / epsilon(DType::f32), size, name, ", layer ", layer);
  }
}

struct Kind {
  const char* name;
  EngineOptions options;
  double bound;  // of an error, against the largest output
};
const Kind kinds[] = {{"fp32", {}, 2e-5},
                      {"fp32 for batches", {.batch = 64}, 2e-5},
                      {"fp32 by direct", {}, 2e-6},
                      {"bf16 weights", {.bf16 = false, .bf16_weights = true}, 1e-2},
                      {"bf16", {.bf16 = true, .bf16_weights = true}, 3e-2},
                      {"bf16 by direct", {.bf16 = true, .bf16_weights = true}, 3e-2}};

/// Calls body(kind, name) for each instruction set and each kind of engine.
template <class Body>
void for_each_kind(Body body) {
  for (const std::string& isa : cpu_isas()) {
    set_cpu_isa(isa);
    for (const Kind& kind : kinds) {
      const std::string name = kind.name;
      set_conv_algorithm(name.ends_with("direct") ? "direct" : "auto");
      body(kind, isa + " " + name);
    }
  }
  set_conv_algorithm("auto");
}

/// What build(net, images) makes, on images of these extents: the last output alone, and all of them.
template <class Build>
void check_net(int64_t n, int64_t c, int64_t h, int64_t w, Build build, const std::string& what) {
  Random random(9);
  const Array x = random.array(Fill::reals, n, c, h, w);
  for_each_kind([&](const Kind& kind, const std::string& setting) {
    const std::string name = setting + " " + what + " of " + describe({n, c, h, w});
    Net net(kind.options);
    build(net, n);
    const std::vector<Array> expected = net.forward(x);
    std::vector<int64_t> all(net.layers.size());
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int64_t>(i);
    for (const std::vector<int64_t>& layers : {std::vector<int64_t>{all.back()}, all}) {
      const Held image = put(DType::f32, x), strided = put(DType::f32, x, {3, 1, 0, 2}, 3);
      const Outputs first = run(net.engine, image, layers, 1);
      check_outputs(first, expected, kind.bound, name);
      for (int threads : {1, 2, 3}) {
        const Outputs again = run(net.engine, threads == 2 ? strided : image, layers, threads);
        for (size_t i = 0; i < first.size(); ++i) {
          CHECK(again[i].second.same_bytes(first[i].second), name, ", layer ", first[i].first, ", threads ", threads);
        }
      }
    }
  });
}

void check_trunks() {
  const auto plain = [](Net& net, int64_t) {
    net.conv(3, 17, 3).relu().pool(false).conv(17, 5, 3).relu().conv(5, 33, 3).pool(false).relu();
  };
  // 1x1 with and without a pool behind it, pools that cut windows, layers that nothing precedes.
  const auto odd = [](Net& net, int64_t) {
    net.relu().pool(true).conv(3, 9, 1).relu().pool(false).conv(9, 6, 1).pool(true).relu().relu().conv(6, 4, 3);
  };
  for (int64_t n : {0, 1, 3}) {
    check_net(n, 3, 13, 10, plain, "plain");
    check_net(n, 3, 15, 8, odd, "odd");
  }
}

void check_heads() {
  for (int64_t n : {0, 1, 3}) {
    for (int64_t size : {1, 2, 3}) {
      const auto linear = [=](Net& net, int64_t) {
        net.conv(2, 6, 3).relu().pool(false).flatten(size).linear(6 * size * size, 20).relu().linear(20, 7);
      };
      const auto dense = [=](Net& net, int64_t images) {
        net.conv(2, 6, 3)
            .relu()
            .pool(false)
            .windows(size)
            .linear(6 * size * size, 20)
            .relu()
            .linear(20, 7)
            .row_mean(std::max<int64_t>(images, 1));
      };
      const auto bare = [=](Net& net, int64_t) {
        net.conv(2, 6, 3).flatten(size).relu().linear(6 * size * size, 9).relu().relu();
      };
      check_net(n, 2, 7, 11, linear, "linear head");
      if (n > 0) check_net(n, 2, 7, 11, dense, "dense head");
      check_net(n, 2, 2, 2, bare, "a ReLU before the linear head, two behind it");
    }
  }
}

/// Images so large that some, but not all of them make a group: a result is that of the image alone.
void check_remainders() {
  constexpr int64_t images = 5, channels = 500;
  for (const char* algorithm : {"winograd6", "direct"}) {
    set_conv_algorithm(algorithm);
    for (const auto& [h, w] : {std::array<int64_t, 2>{54, 60}, {42, 60}}) {
      const Held all = make_nhwc(DType::f32, images, channels, h, w);
      for (int64_t i = 0; i < all.view.numel(); ++i)
        all.view.as<float>()[i] = static_cast<float>(i * 7919 % 1009 - 504);
      const auto part = [&](int64_t first, int64_t n) {
        Tensor t = all;
        t.shape[0] = n;
        t.data = t.as<float>() + first * t.stride(0);
        return t;
      };
      std::vector<Outputs> alone;
      for (int64_t i = 0; i < images; ++i) {
        Net net;
        alone.push_back(run(net.conv(channels, 8, 3).relu().conv(8, 9, 3).pool(false).engine, part(i, 1), {1, 3}, 1));
      }
      for (int64_t n = 2; n <= images; ++n) {
        Net net;  // each its own, so that none has the arena of another number of images
        net.conv(channels, 8, 3).relu().conv(8, 9, 3).pool(false);
        const Outputs together = run(net.engine, part(0, n), {1, 3}, 1 + static_cast<int>(n % 2));
        for (size_t layer : {0, 1}) {
          for (int64_t i = 0; i < n; ++i) {
            const Held& one = alone[static_cast<size_t>(i)][layer].second;
            const auto* bytes = static_cast<const unsigned char*>(together[layer].second.memory->data());
            const size_t count = one.memory->bytes();
            CHECK(std::memcmp(bytes + static_cast<size_t>(i) * count, one.memory->data(), count) == 0, "image ", i,
                  " of ", n, ", ", h, " x ", w, " by ", algorithm);
          }
        }
      }
    }
  }
}

/// More shapes than plans are kept, and the first ones again; memory does not grow by what was seen before.
void check_many_shapes() {
  Net net;
  net.conv(1, 3, 3).relu().pool(false).flatten(1).linear(3, 2);
  size_t bytes = 0;
  for (int round = 0; round < 3; ++round) {
    for (int64_t extent = 40; extent >= 2; extent -= 2) {
      Random random(static_cast<unsigned>(extent));
      const Array x = random.array(Fill::reals, 1, 1, extent, extent + round);
      check_outputs(run(net.engine, put(DType::f32, x), {2, 4}, 1), net.forward(x), 2e-5, "many shapes");
    }
    CHECK(round == 0 || net.engine.bytes() == bytes, net.engine.bytes(), " bytes after ", bytes);
    bytes = net.engine.bytes();
  }
}

/// A plan of one number of channels serves no other: a network without weights takes any.
void check_channels() {
  Net net;
  net.pool(false).relu();
  for (int64_t channels : {3, 8, 3, 1}) {
    Random random(static_cast<unsigned>(channels));
    const Array x = random.array(Fill::reals, 2, channels, 9, 8);
    check_outputs(run(net.engine, put(DType::f32, x), {0, 1}, 1), net.forward(x), 0, "channels");
  }
}

/// What a run takes is what was said before it.
void check_workspace() {
  for (int threads : {1, 2}) {
    for (int64_t layer : {2, 4}) {
      Net net;
      net.conv(3, 16, 3).relu().pool(false).conv(16, 40, 3).relu();
      const Held x = make_nhwc(DType::f32, 3, 3, 200, 301);
      const size_t said = net.engine.workspace(layer, 3, 3, 200, 301, {threads}), before = net.engine.bytes();
      run(net.engine, x, {layer}, threads);
      const size_t taken = net.engine.bytes() - before;
      CHECK(taken == said, taken, " bytes taken, ", said, " said");
    }
  }
}

void check_errors() {
  Net net;
  net.conv(3, 4, 3).relu().pool(false).flatten(2).linear(16, 5);
  Engine& engine = net.engine;
  const Held x = make_nhwc(DType::f32, 2, 3, 6, 6), y = make(DType::f32, {2, 5}, {0, 1});
  const Held wide = make(DType::f64, {2, 3, 6, 6}, {0, 1, 2, 3}), flat = make(DType::f32, {2, 108}, {0, 1});
  const Held small = make_nhwc(DType::f32, 2, 3, 1, 6), nchw = make(DType::f32, {2, 4, 6, 6}, {0, 1, 2, 3});
  const Context one{1};
  const auto shape = [&](int64_t layer, const Tensor& t) {
    (void)engine.output_shape(layer, t.size(0), t.size(1), t.size(2), t.size(3));
  };
  CHECK_ERROR(shape(5, x), "layer must be 0 to 4, got 5");
  CHECK_ERROR(shape(-1, x), "layer must be 0 to 4, got -1");
  CHECK_ERROR(shape(4, make_nhwc(DType::f32, 1, 2, 6, 6)), "x must have 3 channels, got 2");
  CHECK_ERROR(shape(4, small), "x is too small: a max-pool needs at least 2 x 2 pixels, got 1 x 6");
  CHECK_ERROR(engine.run(wide, {{4, y}}, one), "x must be float32 (N, C, H, W) on cpu, got float64");
  CHECK_ERROR(engine.run(flat, {{4, y}}, one), "x must be float32 (N, C, H, W) on cpu, got float32 of shape (2, 108)");
  CHECK_ERROR((void)engine.workspace(5, 1, 3, 6, 6, one), "layer must be 0 to 4, got 5");
  CHECK_ERROR((void)engine.output_shape(0, int64_t{1} << 40, 3, int64_t{1} << 40, 1),
              "x must be of fewer than 2^56 values, got (1099511627776, 3, 1099511627776, 1)");
  CHECK_ERROR((void)engine.workspace(0, -1, 3, 6, 6, one), "x must have extents of at least 0, got (-1, 3, 6, 6)");
  CHECK_ERROR(engine.add_flatten(0), "size must be at least 1, got 0");
  CHECK_ERROR(engine.run(x, {}, one), "outputs must name at least one layer, got none");
  CHECK_ERROR(engine.run(x, {{4, y}, {4, y}}, one), "outputs must be in the order of the layers, got layer 4 after 4");
  CHECK_ERROR(engine.run(x, {{3, y}}, one), "output must have shape (2, 16), got (2, 5)");
  CHECK_ERROR(engine.run(x, {{0, nchw}}, one), "output must be dense NHWC (channels_last), got strides");
  CHECK_ERROR(engine.add_conv(y, nullptr), "weight must be float32 of 4 axes on cpu, got float32 of shape (2, 5)");
  CHECK_ERROR(engine.add_conv(x, nullptr),
              "weight must have shape (Cout, Cin, 3, 3) or (Cout, Cin, 1, 1), got (2, 3, 6, 6)");
  CHECK_ERROR(engine.add_linear(y, &y.view), "bias must have shape (2), got (2, 5)");
  CHECK_ERROR(engine.add_linear(wide, nullptr), "weight must be float32 of 2 axes on cpu, got float64");
  const Held bytes = make(DType::i8, {1, 1}, {0, 1}), unit = put_vector(DType::f32, Array(1, 1, 1, 1));
  CHECK_ERROR(Engine({.bf16 = true}).add_quantised_linear(bytes, nullptr, unit, 1),
              "bf16 must be false for layers of 8 bits, which read float32 or uint8, got true");

  const std::vector<std::string> isas = cpu_isas();
  for (const std::string& isa : isas) {
    set_cpu_isa(isa);
    Net other;
    other.conv(3, 4, 3);
    for (const std::string& now : isas) {
      set_cpu_isa(now);
      const Held out = make_nhwc(DType::f32, 2, 4, 6, 6);
      const std::string packed = "packed for " + isa + ", and " + now + " is set now: build another engine";
      if (now == isa) {
        other.engine.run(x, {{0, out}}, one);
      } else {
        CHECK_ERROR(other.engine.run(x, {{0, out}}, one), packed.c_str());
      }
    }
  }
}

}  // namespace
}  // namespace vggfast::test

int main() {
  using namespace vggfast::test;
  check_workspace();
  check_errors();
  check_trunks();
  check_heads();
  check_many_shapes();
  check_channels();
  check_remainders();
  return result();
}
