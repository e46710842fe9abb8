#include "cpu/algorithms/choose.h"

#include <atomic>
#include <string>

#include "cpu/algorithms/stem.h"
#include "cpu/algorithms/winograd.h"
#include "vggfast/conv.h"
#include "vggfast/error.h"

namespace vggfast {
namespace {

constexpr int automatic = -1;

struct Named {
  const char* name;
  int m;
};
constexpr Named algorithms[] = {
    {"auto", automatic}, {"direct", cpu::direct}, {"winograd2", 2}, {"winograd4", 4}, {"winograd6", 6}};

std::atomic<int>& wanted() {
  static std::atomic<int> m{automatic};
  return m;
}

}  // namespace

void set_conv_algorithm(const std::string& name) {
  std::string allowed;
  for (const Named& algorithm : algorithms) {
    if (name == algorithm.name) {
      wanted() = algorithm.m;
      return;
    }
    allowed += std::string(allowed.empty() ? "" : ", ") + algorithm.name;
  }
  fail("algorithm is '", name, "': one of ", allowed, " is wanted");
}

std::string conv_algorithm() {
  for (const Named& algorithm : algorithms) {
    if (algorithm.m == wanted()) return algorithm.name;
  }
  return "auto";
}

ConvCost conv_cost(const std::string& pass, int64_t n, int64_t cin, int64_t h, int64_t w, int64_t cout,
                   int64_t kernel) {
  VGGFAST_CHECK(pass == "fprop" || pass == "dgrad" || pass == "wgrad", "pass is '", pass,
                "': fprop, dgrad or wgrad is wanted");
  VGGFAST_CHECK(kernel == 1 || kernel == 3, "kernel is ", kernel, ": 1 or 3 is wanted");
  const cpu::Pass which = pass == "fprop" ? cpu::Pass::fprop : pass == "dgrad" ? cpu::Pass::dgrad : cpu::Pass::wgrad;
  const cpu::Extent in{n, h, w, cin};
  const int m = cpu::choose_algorithm(which, in, cout, kernel, false);
  if (m <= cpu::direct) {
    return {cpu::name_of(m), n * h * w * kernel * kernel * cin * cout};
  }
  const int64_t points = m == 1 ? 1 : (m + 2) * (m + 2);
  return {cpu::name_of(m), points * cpu::Winograd(m, cin, cout).tiles(in) * cin * cout};
}

namespace cpu {
namespace {

/// Estimates, in multiply-adds of the direct convolution: per point of a tile, what moving one channel through a
/// transform costs; and per point of one pair of channels, what its transformed weights cost to pack, or to stream.
constexpr double transform_cost = 14, pack_cost = 35, stream_cost = 9;

double cost(int m, Extent in, int64_t cout, bool packed) {
  const double points = (m + 2) * (m + 2), weights = static_cast<double>(in.c * cout);
  const double tiles = static_cast<double>(Winograd(m, in.c, cout).tiles(in));
  const double channels = static_cast<double>(in.c + cout);
  return points * (tiles * (weights + transform_cost * channels) + weights * (packed ? stream_cost : pack_cost));
}

}  // namespace

int choose_algorithm(Pass pass, Extent in, int64_t cout, int64_t kernel, bool packed) {
  const int m = wanted();
  if (m <= direct && pass != Pass::dgrad && Stem::suits(in.c, kernel)) return stem;
  if (m == direct) return direct;
  if (kernel == 1) return 1;
  if (m != automatic) return m;
  int best = 2;
  for (int candidate : {4, 6}) {
    if (cost(candidate, in, cout, packed) < cost(best, in, cout, packed)) best = candidate;
  }
  return best;
}

std::string name_of(int algorithm) {
  if (algorithm <= direct) return "direct";
  return algorithm == 1 ? "1x1" : "winograd" + std::to_string(algorithm);
}

}  // namespace cpu
}  // namespace vggfast
