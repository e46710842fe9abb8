// What the simulator's tests share: launching a kernel that must run clean, or must be stopped with certain words.
#pragma once

#include <string>
#include <vector>

#include "../check.h"
#include "cuda/launch.h"

namespace vggfast::test {

constexpr int seeds = 5;

/// Runs `kernel` in several random orders; the texts of all faults: which of two threads a race is found in depends.
template <class... Params, class... Args>
std::string fault_of(void (*kernel)(Params...), const cuda::Grid& grid, Args... args) {
  std::string faults;
  cuda::Grid alone = grid;  // after all that came before
  alone.dependent = false;
  for (int seed = 0; seed < seeds; ++seed) {
    sim::settings().seed = static_cast<uint64_t>(seed) * 1000;
    try {
      cuda::launch("planted", kernel, alone, {}, args...);
    } catch (const sim::Fault& fault) {
      faults += std::string(fault.what()) + "\n";
    }
  }
  return faults;
}

/// The kernel of a call "(kernel, grid, ...)" as it is written.
inline std::string kernel_of(const std::string& call) {
  size_t end = 1;
  for (int depth = 0; end < call.size() && (depth > 0 || call[end] != ','); ++end) {
    depth += call[end] == '<' ? 1 : call[end] == '>' ? -1 : 0;
  }
  return call.substr(1, end - 1);
}

/// Prints a line: what was planted, and by what words it was found.
inline void check_fault(const char* file, int line, const char* call, const std::string& text,
                        std::initializer_list<const char*> wanted) {
  ++checks;
  const size_t thread = text.find("lane "), words = thread == std::string::npos ? 0 : text.find(": ", thread) + 2;
  std::cout << "caught " << kernel_of(call) << ": " << text.substr(words, text.find("\nsim:") - words) << "\n";
  for (const char* each : wanted) {
    if (text.find(each) == std::string::npos) {
      report(file, line, "the fault is '", text, "', expected '", each, "'");
    }
  }
}

}  // namespace vggfast::test

/// CHECK_FAULT((kernel, grid, arguments...), texts...): each text is in the fault's message.
#define CHECK_FAULT(call, ...) ::vggfast::test::check_fault(__FILE__, __LINE__, #call, fault_of call, {__VA_ARGS__})
#define CHECK_CLEAN(call) CHECK_EQUAL(fault_of call, std::string(), "a correct kernel")
