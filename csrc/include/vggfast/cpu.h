// The CPU back end's instruction sets and threads.
#pragma once

#include <string>
#include <vector>

namespace vggfast {

/// The instruction sets of this build that the processor and its operating system can run, slowest first. The first,
/// amx-emulated, computes what amx does, to the bit, on any processor: for tests.
std::vector<std::string> cpu_isas();
/// The instruction set in use: at first that of the environment variable VGGFAST_CPU_ISA, else the last of cpu_isas().
std::string cpu_isa();
/// Makes every op use the instruction set `name` from now on. Throws Error where it is not one of cpu_isas().
void set_cpu_isa(const std::string& name);

/// Whether the processor has AMX and the system lets us use it, in words.
std::string amx_support();

/// The path of the OpenMP runtime whose threads are used, or "none".
std::string openmp_runtime();

}  // namespace vggfast
