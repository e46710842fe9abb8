// The CPU back end's instruction sets and threads.
#pragma once

#include <cstdint>
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

/// Instructions on tiles of 1 KB that amx-emulated has executed, in all threads since the process began: what a kernel
/// asks of a processor, for estimates.
struct TileCounts {
  int64_t products = 0, stores = 0;
  int64_t loads[8] = {};  // into each register; convolutions have pixels in 4 and 5, weights in 6 and 7
};
TileCounts tile_counts();

/// The path of the OpenMP runtime whose threads are used, or "none".
std::string openmp_runtime();

}  // namespace vggfast
