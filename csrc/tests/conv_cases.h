// What test_conv.cpp and test_winograd.cpp share: a convolution's inputs, what is to come of them by naive loops, and
// the comparison with conv_fprop, conv_dgrad and conv_wgrad, by whatever algorithm is set.
#pragma once

#include "reference.h"
#include "vggfast/conv.h"

namespace vggfast::test {

/// What an element's rounding is measured by.
enum class Rounding {
  none,  // integers: there is none
  own,   // the sum of its own products' magnitudes
  tile,  // what a sum of so many products usually comes to: Winograd's pixels share their tile's rounding
};

struct Case {
  int64_t n, h, w, cin, cout, kernel;
  Rounding rounding = Rounding::none;
  bool threads = false;  // whether several numbers of threads and all layouts of weights are tried

  Fill fill() const { return rounding == Rounding::none ? Fill::integers : Fill::reals; }
  std::string name() const {
    std::ostringstream text;
    text << "x (" << n << ", " << cin << ", " << h << ", " << w << ") to " << cout << " channels, kernel " << kernel;
    return text.str();
  }
  /// Magnitudes for a tensor like `like` of sums of `terms` products.
  template <class Sum>
  Array magnitude(Array like, int64_t terms, Sum sum) const {
    if (rounding == Rounding::own) return sum(absolute);
    const double usual = std::sqrt(static_cast<double>(terms)) / 3;  // the deviation of products of [-1, 1] numbers
    for (double& v : like.values) v = rounding == Rounding::tile ? usual : 0;
    return like;
  }
};

/// How weights may lie in memory: Order, and the gap of a slice.
struct Layout {
  const char* name;
  Order order;
  int64_t gap = 1;
};
inline const std::vector<Layout> layouts{{"contiguous", {0, 1, 2, 3}},
                                         {"channels_last", {0, 2, 3, 1}},
                                         {"transposed", {1, 0, 2, 3}},
                                         {"every other of reversed axes", {3, 2, 1, 0}, 2}};
inline constexpr Epilogue epilogues[] = {{}, {.relu = true}, {.pool = true}, {.relu = true, .pool = true}};

/// The gradient of an epilogue's output, with NaN where ReLU cut, and what is to come of it.
struct Gradient {
  Epilogue e;
  Chosen gy;
  Array gx, size_gx, gw, size_gw, gb, size_gb;

  Gradient(const Case& c, const Array& x, const Array& weight, Epilogue epilogue, Random& random)
      : Gradient(c, x, weight, epilogue,
                 choose(random.array(c.fill(), c.n, c.cout, c.h, c.w), epilogue, false, random)) {
    for (size_t i = 0; i < gy.y.values.size(); ++i) {
      if (gy.from.values[i] < 0) gy.y.values[i] = std::numeric_limits<double>::quiet_NaN();
    }
  }

 private:
  Gradient(const Case& c, const Array& x, const Array& weight, Epilogue epilogue, Chosen chosen)
      : Gradient(c, x, weight, epilogue, chosen, scatter(chosen.y, chosen.from, epilogue, c.h, c.w)) {}
  Gradient(const Case& c, const Array& x, const Array& weight, Epilogue epilogue, const Chosen& chosen, const Array& gz)
      : e(epilogue),
        gy(chosen),
        gx(conv_input_gradient(gz, weight)),
        size_gx(c.magnitude(gx, c.kernel * c.kernel * c.cout,
                            [&](auto f) { return conv_input_gradient(f(gz), f(weight)); })),
        gw(conv_weight_gradient(x, gz, c.kernel)),
        size_gw(c.magnitude(gw, c.n * c.h * c.w, [&](auto f) { return conv_weight_gradient(f(x), f(gz), c.kernel); })),
        gb(channel_sums(gz)),
        size_gb(c.magnitude(gb, 3 * c.n * c.h * c.w, [&](auto f) { return channel_sums(f(gz)); })) {}
};

/// A case's inputs and what is to come of them. `size_*`: the sums of magnitudes that roundings are measured by.
struct Problem {
  Case c;
  Array x, weight, bias;
  Array z[2], size_z[2];  // without bias, with bias
  std::vector<Gradient> gradients;

  Problem(const Case& given, const std::vector<Epilogue>& of_gradients, Random random)
      : c(given),
        x(random.array(c.fill(), c.n, c.cin, c.h, c.w)),
        weight(random.array(c.fill(), c.cout, c.cin, c.kernel, c.kernel)),
        bias(random.array(c.fill(), 1, c.cout, 1, 1)),
        z{conv(x, weight, nullptr), conv(x, weight, &bias)},
        size_z{sizes(nullptr), sizes(&bias)} {
    for (const Epilogue& e : of_gradients) gradients.emplace_back(c, x, weight, e, random);
  }
  std::vector<int> thread_counts() const { return c.threads ? std::vector<int>{1, 2, 3} : std::vector<int>{1}; }

 private:
  Array sizes(const Array* b) const {
    return c.magnitude(z[0], c.kernel * c.kernel * c.cin, [&](auto f) {
      const Array size = b ? f(*b) : Array(1, c.cout, 1, 1);
      return conv(f(x), f(weight), &size);
    });
  }
};

/// One way to compute a problem: the dtype, its name, and what it may be off.
struct Way {
  const Problem& p;
  DType dtype;
  std::string name;
  double roundings;
  size_t turn;

  /// The layouts to try: one, another for each `turn`, unless the case tries threads too.
  std::vector<Layout> weight_layouts() const {
    return p.c.threads ? layouts : std::vector<Layout>{layouts[turn % layouts.size()]};
  }
};

struct Outputs {
  Held y;
  std::unique_ptr<Held> mask;
};

inline Outputs run_fprop(const Way& way, const Tensor& x, const Tensor& weight, const Tensor* bias, Epilogue e,
                         bool keep, int threads) {
  const Case& c = way.p.c;
  const int64_t step = e.pool ? 2 : 1, oh = c.h / step, ow = c.w / step;
  Outputs out{make_nhwc(way.dtype, c.n, c.cout, oh, ow), nullptr};
  if (keep) out.mask = std::make_unique<Held>(make_mask(e, c.n, c.cout, oh, ow));
  const HeldWorkspace workspace(conv_fprop_workspace(x, weight, e, {threads}));
  conv_fprop(x, weight, bias, e, out.y, keep ? &out.mask->view : nullptr, workspace, {threads});
  return out;
}

inline void check_epilogue(const Way& way, const Tensor& x, const Tensor& weight, bool with_bias, Epilogue e, bool keep,
                           const std::string& layout) {
  const Problem& p = way.p;
  const Held bias = put_vector(way.dtype, p.bias);
  const Outputs first = run_fprop(way, x, weight, with_bias ? &bias.view : nullptr, e, keep, 1);
  const Chosen expected = select(p.z[with_bias], e, false);
  const Array size = select(p.size_z[with_bias], {.relu = false, .pool = e.pool}, false).y;
  std::ostringstream text;
  text << way.name << " fprop " << layout << " bias " << with_bias << " relu " << e.relu << " pool " << e.pool
       << " mask " << keep;
  const std::string name = text.str();
  CHECK_NEAR(first.y, expected.y, way.roundings, size, name);
  if (keep && p.c.rounding == Rounding::none) check_mask_bits(*first.mask, e, expected, name);
  // Real numbers may round to another order of nearly equal sums: what was selected is then nearly the maximum.
  if (keep && p.c.rounding != Rounding::none) {
    const Array taken = gather(p.z[with_bias], *first.mask, e);
    CHECK_NEAR(first.y, taken, way.roundings, size, name, ", by its mask");
  }
  for (int threads : p.thread_counts()) {
    const Outputs again = run_fprop(way, x, weight, with_bias ? &bias.view : nullptr, e, keep, threads);
    CHECK(again.y.same_bytes(first.y), name, " threads ", threads);
    CHECK(!keep || again.mask->same_bytes(*first.mask), name, " threads ", threads);
  }
}

inline void check_fprop(const Way& way) {
  const Case& c = way.p.c;
  const Held x = put(way.dtype, way.p.x);
  for (const Layout& layout : way.weight_layouts()) {
    const Held weight = put(way.dtype, way.p.weight, layout.order, layout.gap);
    for (const Epilogue& e : epilogues) {
      for (bool with_bias : {false, true}) {
        // Of the many cases that round, each takes one of both.
        if (c.rounding == Rounding::tile && !c.threads && with_bias != (way.turn % 2 == 1)) continue;
        check_epilogue(way, x, weight, with_bias, e, false, layout.name);
        if (mask_planes(e) > 0) check_epilogue(way, x, weight, with_bias, e, true, layout.name);
      }
    }
  }
}

/// A gradient as the ops take it.
struct HeldGradient {
  Held gy;
  std::unique_ptr<Held> mask;
  std::string name;

  HeldGradient(const Way& way, const Gradient& g) : gy(put(way.dtype, g.gy.y)) {
    std::ostringstream text;
    text << way.name << " of relu " << g.e.relu << " pool " << g.e.pool;
    name = text.str();
    if (mask_planes(g.e) == 0) return;
    const bool padding = way.turn % 2;  // bits that belong to no channel mean nothing, whatever they are
    mask = std::make_unique<Held>(put_mask(g.e, g.gy.from, g.gy.window, padding));
  }
  Masked masked(Epilogue e) const { return mask ? Masked{.mask = &mask->view, .epilogue = e} : Masked{}; }
};

inline void check_dgrad(const Way& way, const Gradient& gradient) {
  const Case& c = way.p.c;
  const HeldGradient held(way, gradient);
  const Masked masked = held.masked(gradient.e);
  for (const Layout& layout : way.weight_layouts()) {
    const Held weight = put(way.dtype, way.p.weight, layout.order, layout.gap);
    std::unique_ptr<Held> first;
    for (int threads : way.p.thread_counts()) {
      auto gx = std::make_unique<Held>(make_nhwc(way.dtype, c.n, c.cin, c.h, c.w));
      const HeldWorkspace workspace(conv_dgrad_workspace(held.gy, masked, weight, c.h, c.w, {threads}));
      conv_dgrad(held.gy, masked, weight, *gx, workspace, {threads});
      CHECK_NEAR(*gx, gradient.gx, way.roundings, gradient.size_gx, held.name, " dgrad ", layout.name, " threads ",
                 threads);
      CHECK(!first || gx->same_bytes(*first), held.name, " dgrad ", layout.name, " threads ", threads);
      first = std::move(gx);
    }
  }
}

inline void check_wgrad(const Way& way, const Gradient& gradient) {
  const Case& c = way.p.c;
  const HeldGradient held(way, gradient);
  const Masked masked = held.masked(gradient.e);
  const Held x = put(way.dtype, way.p.x);
  for (const Layout& layout : way.weight_layouts()) {
    for (bool with_bias : {false, true}) {
      std::unique_ptr<Held> first, first_bias;
      for (int threads : way.p.thread_counts()) {
        auto gw = std::make_unique<Held>(make(way.dtype, way.p.weight.shape(), layout.order, layout.gap));
        auto gb = std::make_unique<Held>(make_vector(way.dtype, c.cout));
        const HeldWorkspace workspace(conv_wgrad_workspace(x, held.gy, masked, c.kernel, {threads}));
        conv_wgrad(x, held.gy, masked, *gw, with_bias ? &gb->view : nullptr, workspace, {threads});
        CHECK_NEAR(*gw, gradient.gw, way.roundings, gradient.size_gw, held.name, " wgrad ", layout.name, " threads ",
                   threads);
        if (with_bias) {
          CHECK_NEAR(*gb, gradient.gb, way.roundings, gradient.size_gb, held.name, " wgrad bias threads ", threads);
        }
        CHECK(!first || gw->same_bytes(*first), held.name, " wgrad ", layout.name, " threads ", threads);
        CHECK(!first || gb->same_bytes(*first_bias), held.name, " wgrad bias threads ", threads);
        first = std::move(gw);
        first_bias = std::move(gb);
      }
    }
  }
}

/// All of a problem, by the algorithm and the instruction set in use.
inline void check_all(const Way& way) {
  check_fprop(way);
  for (const Gradient& gradient : way.p.gradients) {
    check_dgrad(way, gradient);
    check_wgrad(way, gradient);
  }
}

}  // namespace vggfast::test
