// The choice of an algorithm.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/algorithms/conv_algorithm.h"
#include "vggfast/conv.h"
#include "vggfast/cpu.h"
#include "vggfast/error.h"

namespace vggfast {
namespace {

constexpr const char* automatic = "auto";

/// What set_conv_algorithm asked for: `automatic`, or the name of an algorithm as it stands in the table.
std::atomic<const char*>& setting() {
  static std::atomic<const char*> name{automatic};
  return name;
}

bool same(const char* a, const char* b) { return std::strcmp(a, b) == 0; }

/// What set_conv_algorithm takes on the instruction set in use.
std::vector<const char*> names() {
  std::vector<const char*> found{automatic};
  for (const cpu::ConvAlgorithm* algorithm : cpu::conv_algorithms) {
    const bool known = std::any_of(found.begin(), found.end(), [&](auto name) { return same(name, algorithm->name); });
    const bool able = cpu::kernels().tiles || !algorithm->on_tiles;
    if (algorithm->settable && able && !known) found.push_back(algorithm->name);
  }
  return found;
}

/// Whether the algorithm that was asked for is as exact as direct sums.
bool exact(const char* asked) {
  return std::any_of(std::begin(cpu::conv_algorithms), std::end(cpu::conv_algorithms), [&](const auto* algorithm) {
    return same(algorithm->name, asked) && algorithm->roundings <= cpu::direct_conv.roundings;
  });
}

/// Smaller is better. An algorithm of the name that was asked for comes first; where exactness was asked for and none
/// of that name supports the problem, then the most exact; and then the cheapest.
auto rank(const cpu::ConvAlgorithm& algorithm, const cpu::ConvProblem& problem, const char* asked) {
  const cpu::ConvEstimate cost = algorithm.cost(problem);
  return std::tuple(!same(algorithm.name, asked), exact(asked) ? algorithm.roundings : 0,
                    static_cast<double>(cost.multiply_adds) + cost.other);
}

}  // namespace

void set_conv_algorithm(const std::string& name) {
  std::string allowed;
  for (const char* known : names()) {
    if (name == known) {
      setting() = known;
      return;
    }
    allowed += std::string(allowed.empty() ? "" : ", ") + known;
  }
  fail("algorithm must be one of ", allowed, " on ", cpu_isa(), ", got '", name, "'");
}

std::vector<std::string> conv_algorithms() {
  const std::vector<const char*> found = names();
  return {found.begin(), found.end()};
}

std::string conv_algorithm() { return setting().load(); }

ConvCost conv_cost(const std::string& pass, int64_t n, int64_t cin, int64_t h, int64_t w, int64_t cout,
                   int64_t kernel) {
  VGGFAST_CHECK(pass == "fprop" || pass == "dgrad" || pass == "wgrad", "pass must be one of fprop, dgrad, wgrad, got '",
                pass, "'");
  VGGFAST_CHECK(kernel == 1 || kernel == 3, "kernel must be 1 or 3, got ", kernel);
  check_extents({n, cin, h, w, cout}, "the convolution (n, cin, h, w, cout)");
  const cpu::Pass which = pass == "fprop" ? cpu::Pass::fprop : pass == "dgrad" ? cpu::Pass::dgrad : cpu::Pass::wgrad;
  const cpu::ConvPlan plan = cpu::choose({.pass = which, .in = {n, h, w, cin}, .cout = cout, .kernel = kernel});
  return {plan.algorithm->name, plan.algorithm->cost(plan.problem).multiply_adds};
}

namespace cpu {

ConvPlan plan_with(const ConvAlgorithm& algorithm, const ConvProblem& problem) {
  return {.algorithm = &algorithm,
          .problem = problem,
          .packed_bytes = problem.packed ? algorithm.packed_bytes(problem) : 0,
          .workspace_bytes = algorithm.workspace_bytes(problem)};
}

ConvPlan choose(const ConvProblem& problem) {
  const char* asked = problem.exact ? (*problem.exact ? direct_conv.name : automatic) : setting().load();
  const ConvAlgorithm* best = nullptr;
  for (const ConvAlgorithm* algorithm : conv_algorithms) {
    if (!algorithm->supports(problem)) continue;
    if (!best || rank(*algorithm, problem, asked) < rank(*best, problem, asked)) best = algorithm;
  }
  VGGFAST_CHECK(best, "no algorithm supports a convolution of kernel ", problem.kernel, " on ", name_of(problem.dtype));
  return plan_with(*best, problem);
}

}  // namespace cpu
}  // namespace vggfast
