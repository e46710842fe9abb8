// The CPU back end's instruction sets and threads.
#pragma once

#include <string>
#include <vector>

namespace vggfast {

/// Instruction sets compiled in that this processor and its operating system run, slowest first.
std::vector<std::string> cpu_isas();
/// The one in use: VGGFAST_CPU_ISA where it is set, else the last of cpu_isas().
std::string cpu_isa();
/// Uses `name` from now on; throws Error where it is not one of cpu_isas().
void set_cpu_isa(const std::string& name);

/// The OpenMP runtime whose threads are used, as a path, or "none".
std::string openmp_runtime();

}  // namespace vggfast
