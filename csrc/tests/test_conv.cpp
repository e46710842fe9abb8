// conv_fprop, conv_dgrad and conv_wgrad against naive loops, where nothing but the products is summed (direct, and 1x1
// by "auto"): channels, kernels, extents, epilogues and their masks, strided weights, threads, the sizes of
// workspaces, and the kernels' sums of real numbers.
#include "conv_cases.h"

namespace vggfast::test {
namespace {

constexpr double roundings = 8;  // of the sum of the products' magnitudes: what real numbers may be off

void run(const Case& c) {
  static size_t turn = 0;
  ++turn;
  if (!sampled()) return;
  const Problem problem(c, {{}, epilogues[1 + turn % 3]}, Random(static_cast<unsigned>(turn)));
  for_each_setting([&](DType dtype, const std::string& setting) {
    for (const char* algorithm : {"direct", "auto"}) {
      const bool same = std::string(algorithm) == "direct" || (c.kernel == 1 && dtype == DType::f32);
      if (!same) continue;
      set_conv_algorithm(algorithm);
      check_all({problem, dtype, setting + " " + algorithm + ": " + c.name(), roundings, turn});
    }
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
    // RGB, rows longer than one of the first layer's segments.
    run({.n = 2, .h = 5, .w = 61, .cin = 3, .cout = 33, .kernel = kernel, .threads = true});
    run({.n = 3, .h = 14, .w = 19, .cin = 7, .cout = 70, .kernel = kernel, .threads = true});
    // So many weights that a task takes some blocks only; so many units that wgrad need not split its rows.
    run({.n = 1, .h = 3, .w = 6, .cin = 300, .cout = 100, .kernel = kernel});
    run({.n = 2, .h = 21, .w = 33, .cin = 70, .cout = 65, .kernel = kernel});
    // Rows longer than one of wgrad's chunks, several of them in a group.
    run({.n = 1, .h = 130, .w = 260, .cin = 1, .cout = 2, .kernel = kernel});
    const Rounding own = Rounding::own;
    run({.n = 2, .h = 9, .w = 7, .cin = 33, .cout = 17, .kernel = kernel, .rounding = own, .threads = true});
    run({.n = 3, .h = 20, .w = 50, .cin = 3, .cout = 18, .kernel = kernel, .rounding = own});
    run({.n = 1, .h = 12, .w = 12, .cin = 70, .cout = 33, .kernel = kernel, .rounding = own});
  }
}

}  // namespace
}  // namespace vggfast::test

int main() {
  vggfast::test::run_all();
  return vggfast::test::result();
}
