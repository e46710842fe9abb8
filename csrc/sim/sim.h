// A simulated GPU for tests: it runs the kernels of csrc/cuda on the CPU, a fiber for each thread, in random order, and
// stops at what a real one lets pass: races, copies not waited for, memory never written or not the kernel's, threads
// that wait for each other. Kernels are compiled with -fsanitize=thread, whose calls at every load and store end here
// (hooks.cpp); instructions arrive through the twins of csrc/cuda/ptx (instructions.h). One launch at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>

#include "sim/cuda.h"

namespace vggfast::sim {

/// What a kernel did wrong: the text names kernel, block, thread and line.
class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Settings {
  uint64_t seed = 0;           // of the order of threads and of the moments at which copies land
  int64_t blocks = INT64_MAX;  // of a launch that are run, spread over the grid; counters are scaled up to all
  int num_sms = 132;           // as many as an H200 has; fewer make blocks that stay compute more tiles
  // How many clusters of so many blocks, an SM each, run at once: what was seen on an H100 of 132 SMs, or guessed of 4.
  std::map<int, int> clusters = {{2, 66}, {4, 32}, {8, 15}};
  int late_warp = -1;  // of each block: it runs only when nobody else can, and no copy is under way
};
Settings& settings();
/// The same of the settings, where the SMs suffice for so many.
int resident_clusters(unsigned blocks);

struct Launch {
  const char* kernel;
  dim3 grid;
  dim3 block;
  dim3 cluster = 1;
  size_t shared_bytes = 0;
  bool persistent = false;  // all clusters must run at once
  bool dependent = false;   // it may start before the launch before it has ended (programmatic dependent launch)
};
/// Runs `body` as every thread of the grid; a cluster's blocks run together, clusters one after the other.
/// `body` calls begin_watching() before the kernel. Throws Fault.
void launch(const Launch& launch, const std::function<void()>& body);

/// What the host waits for: all launches so far have ended, and what they wrote is there.
void synchronize();

/// From here on, the running thread's loads and stores are the kernel's.
void begin_watching();

constexpr size_t most_shared_bytes = 227 << 10;

/// Global memory: an address range that kernels may touch while this lives.
class Global {
 public:
  Global(const void* data, size_t bytes);
  ~Global();
  Global(const Global&) = delete;
  Global& operator=(const Global&) = delete;

 private:
  uintptr_t begin_, end_;
};

/// What the launches of a kernel asked for, in bytes and multiply-adds.
struct Counters {
  int64_t launches = 0, blocks = 0, threads = 0;
  int64_t global_read = 0, global_written = 0;  // by every thread, before any cache
  int64_t global_distinct = 0;                  // what each block reads once or more: a perfect L1's misses. Only where
                                                // Settings::blocks leaves some out
  int64_t shared_read = 0, shared_written = 0;  // matrix operands, and asynchronous copies, included
  int64_t multiply_adds = 0;                    // of matrix instructions
  int64_t barriers = 0;                         // of blocks
  int64_t launching = 0;                        // blocks that let the next kernel start before their end
};
/// By kernel, since the last clear().
std::map<std::string, Counters>& counters();

}  // namespace vggfast::sim
