// conv_fprop, conv_dgrad and conv_wgrad against naive loops: channels, kernels, extents, epilogues, strided weights,
// threads, the sizes of workspaces, and the kernels' sums of real numbers.
#include "reference.h"
#include "vggfast/conv.h"

namespace vggfast::test {
namespace {

constexpr double roundings = 8;  // of the sum of the products' magnitudes: what real numbers may be off

struct Case {
  int64_t n, h, w, cin, cout, kernel;
  Fill fill = Fill::integers;
  bool threads = false;  // whether several numbers of threads and all layouts of weights are tried

  std::string name() const {
    std::ostringstream text;
    text << "x (" << n << ", " << cin << ", " << h << ", " << w << ") to " << cout << " channels, kernel " << kernel;
    return text.str();
  }
};

/// How weights may lie in memory: Order, and the gap of a slice.
struct Layout {
  const char* name;
  Order order;
  int64_t gap = 1;
};
const std::vector<Layout> layouts{{"contiguous", {0, 1, 2, 3}},
                                  {"channels_last", {0, 2, 3, 1}},
                                  {"transposed", {1, 0, 2, 3}},
                                  {"every other of reversed axes", {3, 2, 1, 0}, 2}};

/// A case's inputs and what is to come of them. `size_*`: the same sums, of magnitudes.
struct Problem {
  Case c;
  Array x, weight, bias, gy;
  Array z[2], size_z[2];  // without bias, with bias
  Array gx, size_gx, gw, size_gw, gb, size_gb;

  Problem(const Case& given, Random random)
      : c(given),
        x(random.array(c.fill, c.n, c.cin, c.h, c.w)),
        weight(random.array(c.fill, c.cout, c.cin, c.kernel, c.kernel)),
        bias(random.array(c.fill, 1, c.cout, 1, 1)),
        gy(random.array(c.fill, c.n, c.cout, c.h, c.w)),
        z{conv(x, weight, nullptr), conv(x, weight, &bias)},
        size_z{magnitude([&](auto f) { return conv(f(x), f(weight), nullptr); }), magnitude([&](auto f) {
                 const Array size = f(bias);
                 return conv(f(x), f(weight), &size);
               })},
        gx(conv_input_gradient(gy, weight)),
        size_gx(magnitude([&](auto f) { return conv_input_gradient(f(gy), f(weight)); })),
        gw(conv_weight_gradient(x, gy, c.kernel)),
        size_gw(magnitude([&](auto f) { return conv_weight_gradient(f(x), f(gy), c.kernel); })),
        gb(channel_sums(gy)),
        size_gb(magnitude([&](auto f) { return channel_sums(f(gy)); })) {}

  double allowed() const { return c.fill == Fill::integers ? 0 : roundings; }
  std::vector<int> thread_counts() const { return c.threads ? std::vector<int>{1, 2, 3} : std::vector<int>{1}; }

 private:
  /// Sums of integers are compared exactly: any values of the right shape do for their magnitudes.
  template <class Sum>
  Array magnitude(Sum sum) const {
    return c.fill == Fill::integers ? sum([](const Array& a) { return Array(a.n, a.c, a.h, a.w); }) : sum(absolute);
  }
};

/// The layouts that a case is to try: one, another for each `turn`, unless it tries threads too.
std::vector<Layout> layouts_of(const Problem& p, size_t turn) {
  return p.c.threads ? layouts : std::vector<Layout>{layouts[turn % layouts.size()]};
}

struct Outputs {
  Held y;
  std::unique_ptr<Held> selection;
};

Outputs run_fprop(const Problem& p, DType dtype, const Tensor& x, const Tensor& weight, const Tensor* bias, Epilogue e,
                  bool keep, int threads) {
  const int64_t step = e.pool ? 2 : 1, oh = p.c.h / step, ow = p.c.w / step;
  Outputs out{make_nhwc(dtype, p.c.n, p.c.cout, oh, ow), nullptr};
  if (keep) out.selection = std::make_unique<Held>(make_selection(e, p.c.n, p.c.cout, oh, ow));
  const HeldWorkspace workspace(conv_fprop_workspace(x, weight));
  conv_fprop(x, weight, bias, e, out.y, keep ? &out.selection->view : nullptr, workspace, {threads});
  return out;
}

void check_epilogue(const Problem& p, DType dtype, const Tensor& x, const Tensor& weight, bool with_bias, Epilogue e,
                    bool keep, const std::string& name) {
  const Held bias = put_vector(dtype, p.bias);
  const Outputs first = run_fprop(p, dtype, x, weight, with_bias ? &bias.view : nullptr, e, keep, 1);
  const Selected wanted = select(p.z[with_bias], e, false);
  const Array size = select(p.size_z[with_bias], {.relu = false, .pool = e.pool}, false).y;
  const auto flags = [&] {
    std::ostringstream text;
    text << name << " bias " << with_bias << " relu " << e.relu << " pool " << e.pool << " selection " << keep;
    return text.str();
  };
  CHECK_NEAR(first.y, wanted.y, p.allowed(), size, flags());
  // Real numbers may round to another order of nearly equal sums, integers not.
  if (keep && p.c.fill == Fill::integers) check_selection_bits(*first.selection, e, wanted, flags());
  for (int threads : p.thread_counts()) {
    const Outputs again = run_fprop(p, dtype, x, weight, with_bias ? &bias.view : nullptr, e, keep, threads);
    CHECK(again.y.same_bytes(first.y), flags(), " threads ", threads);
    CHECK(!keep || again.selection->same_bytes(*first.selection), flags(), " threads ", threads);
  }
}

void check_fprop(const Problem& p, DType dtype, size_t turn, const std::string& name) {
  const Held x = put(dtype, p.x);
  for (const Layout& layout : layouts_of(p, turn)) {
    const Held weight = put(dtype, p.weight, layout.order, layout.gap);
    for (int flags = 0; flags < 16; ++flags) {
      const Epilogue e{.relu = (flags & 1) != 0, .pool = (flags & 2) != 0};
      const bool with_bias = flags & 4, keep = flags & 8;
      if (keep && selection_planes(e) == 0) continue;
      check_epilogue(p, dtype, x, weight, with_bias, e, keep, name + " fprop " + layout.name);
    }
  }
}

void check_dgrad(const Problem& p, DType dtype, size_t turn, const std::string& name) {
  const Held gy = put(dtype, p.gy);
  for (const Layout& layout : layouts_of(p, turn)) {
    const Held weight = put(dtype, p.weight, layout.order, layout.gap);
    std::unique_ptr<Held> first;
    for (int threads : p.thread_counts()) {
      Held gx = make_nhwc(dtype, p.c.n, p.c.cin, p.c.h, p.c.w);
      const HeldWorkspace workspace(conv_dgrad_workspace(gy, weight));
      conv_dgrad(gy, weight, gx, workspace, {threads});
      CHECK_NEAR(gx, p.gx, p.allowed(), p.size_gx, name, " dgrad ", layout.name, " threads ", threads);
      if (!first)
        first = std::make_unique<Held>(std::move(gx));
      else
        CHECK(gx.same_bytes(*first), name, " dgrad ", layout.name, " threads ", threads);
    }
  }
}

void check_wgrad(const Problem& p, DType dtype, size_t turn, const std::string& name) {
  const Held x = put(dtype, p.x), gy = put(dtype, p.gy);
  for (const Layout& layout : layouts_of(p, turn)) {
    for (bool with_bias : {false, true}) {
      std::unique_ptr<Held> first, first_bias;
      for (int threads : p.thread_counts()) {
        auto gw =
            std::make_unique<Held>(make(dtype, {p.c.cout, p.c.cin, p.c.kernel, p.c.kernel}, layout.order, layout.gap));
        auto gb = std::make_unique<Held>(make_vector(dtype, p.c.cout));
        const HeldWorkspace workspace(conv_wgrad_workspace(x, gy, p.c.kernel));
        conv_wgrad(x, gy, *gw, with_bias ? &gb->view : nullptr, workspace, {threads});
        CHECK_NEAR(*gw, p.gw, p.allowed(), p.size_gw, name, " wgrad ", layout.name, " threads ", threads);
        if (with_bias) CHECK_NEAR(*gb, p.gb, p.allowed(), p.size_gb, name, " wgrad bias threads ", threads);
        if (!first) {
          first = std::move(gw);
          first_bias = std::move(gb);
          continue;
        }
        CHECK(gw->same_bytes(*first), name, " wgrad ", layout.name, " threads ", threads);
        CHECK(gb->same_bytes(*first_bias), name, " wgrad bias threads ", threads);
      }
    }
  }
}

void run(const Case& c) {
  static size_t turn = 0;
  const Problem problem(c, Random(static_cast<unsigned>(++turn)));
  for_each_setting([&](DType dtype, const std::string& setting) {
    const std::string name = setting + ": " + c.name();
    check_fprop(problem, dtype, turn, name);
    check_dgrad(problem, dtype, turn, name);
    check_wgrad(problem, dtype, turn, name);
  });
}

void run_all() {
  const int64_t channels[] = {1, 3, 7, 17, 33, 70};
  for (int64_t kernel : {1, 3}) {
    for (int64_t cin : channels) {
      for (int64_t cout : channels) run({2, 5, 3, cin, cout, kernel});
    }
    // Extents: none, one, odd, below a tile; (0, 3) and (3, 0) are images without pixels.
    const int64_t extents[][3] = {{0, 5, 3}, {0, 0, 0}, {1, 1, 1}, {1, 1, 8}, {1, 7, 1},
                                  {2, 2, 2}, {3, 5, 7}, {1, 0, 3}, {2, 3, 0}, {2, 13, 11}};
    for (const auto& [n, h, w] : extents) run({n, h, w, 3, 17, kernel});
    run({.n = 3, .h = 14, .w = 19, .cin = 7, .cout = 70, .kernel = kernel, .threads = true});
    // So many weights that a task takes some blocks only; so many units that wgrad need not split its rows.
    run({.n = 1, .h = 3, .w = 6, .cin = 300, .cout = 100, .kernel = kernel});
    run({.n = 2, .h = 21, .w = 33, .cin = 70, .cout = 65, .kernel = kernel});
    // Rows longer than one of wgrad's chunks, several of them in a group.
    run({.n = 1, .h = 130, .w = 260, .cin = 1, .cout = 2, .kernel = kernel});
    run({.n = 2, .h = 9, .w = 7, .cin = 33, .cout = 17, .kernel = kernel, .fill = Fill::reals, .threads = true});
    run({.n = 1, .h = 12, .w = 12, .cin = 70, .cout = 33, .kernel = kernel, .fill = Fill::reals});
  }
}

}  // namespace
}  // namespace vggfast::test

int main() {
  vggfast::test::run_all();
  return vggfast::test::result();
}
