// Threads come from the OpenMP runtime that the process has already loaded (in Python, torch's), so that there is one
// pool of threads and not two. It is found by name at run time rather than linked: GOMP_parallel is the entry point of
// libgomp, and LLVM's and Intel's runtimes export it too. Without one, libgomp is loaded; without that, one thread
// works.
#include "cpu/parallel.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>

#include "core/fork.h"
#include "vggfast/cpu.h"

namespace vggfast {
namespace {

using Parallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
using Pause = int (*)(int kind);  // omp_pause_resource_all; 0 where it ended the caller's pool

struct OpenMp {
  Parallel parallel = nullptr;
  Pause pause = nullptr;  // of OpenMP 5
  std::string path = "none";
};

OpenMp in_library(void* library) {
  OpenMp found;
  void* const symbol = dlsym(library, "GOMP_parallel");
  if (!symbol) return found;
  found.parallel = reinterpret_cast<Parallel>(symbol);
  found.pause = reinterpret_cast<Pause>(dlsym(library, "omp_pause_resource_all"));
  if (Dl_info where; dladdr(symbol, &where)) found.path = where.dli_fname;
  return found;
}

OpenMp find_openmp() {
  OpenMp found = in_library(RTLD_DEFAULT);
  if (found.parallel) return found;
  void* const library = dlopen("libgomp.so.1", RTLD_NOW | RTLD_LOCAL);
  return library ? in_library(library) : found;
}

std::atomic<const OpenMp*> kept_openmp{nullptr};

const OpenMp& openmp() { return made_once(kept_openmp, find_openmp); }

/// The threads of the pool of the thread that forks are not in the child, where libgomp would wait for them for ever,
/// in torch's regions as in ours. So they end before: parent and child get new ones, each at its next region.
struct PoolAtFork {
  static inline thread_local bool ends = true, lost = false;

  static void before() {
    const OpenMp* const used = kept_openmp.load();
    const OpenMp runtime = used ? *used : in_library(RTLD_DEFAULT);  // torch may have a pool where we have none
    constexpr int soft = 1;                                          // what threads keep for the program stays
    ends = !runtime.parallel || (!lost && runtime.pause && runtime.pause(soft) == 0);
  }
  static void in_child() { lost = !ends; }
};
[[maybe_unused]] const int registered = pthread_atfork(PoolAtFork::before, nullptr, PoolAtFork::in_child);

struct Region {
  const std::function<void(int64_t, int)>& body;
  int64_t tasks;
  std::atomic<int64_t> next_task{0};
  std::atomic<int> next_worker{0};
  std::atomic_flag failed = {};
  std::exception_ptr error = {};  // the first; it may not leave a thread of the runtime's

  void work() noexcept {
    const int worker = next_worker++;
    try {
      for (int64_t task = next_task++; task < tasks; task = next_task++) body(task, worker);
    } catch (...) {
      next_task = tasks;
      if (!failed.test_and_set()) error = std::current_exception();
    }
  }
};

}  // namespace

std::string openmp_runtime() { return openmp().path; }

void cpu::parallel_for(int64_t tasks, int threads, const std::function<void(int64_t, int)>& body) {
  Region region{.body = body, .tasks = tasks};
  const auto workers = static_cast<unsigned>(std::clamp<int64_t>(tasks, 1, std::max(threads, 1)));
  if (workers == 1 || !openmp().parallel) {
    region.work();
  } else {
    const auto run = [&] {
      openmp().parallel([](void* data) { static_cast<Region*>(data)->work(); }, &region, workers, 0);
    };
    if (PoolAtFork::lost) {
      std::thread(run).join();  // one that has no pool yet, and gets its own
    } else {
      run();
    }
  }
  if (region.error) std::rethrow_exception(region.error);
}

void cpu::parallel_ranges(int64_t units, int64_t grain, int threads,
                          const std::function<void(int64_t, int64_t, int)>& body) {
  constexpr int64_t pieces_per_thread = 8;  // so that a thread that loses its core delays the others little
  const int64_t pieces = std::max(threads, 1) * pieces_per_thread;
  const int64_t piece = std::max<int64_t>({1, grain, (units + pieces - 1) / pieces});
  parallel_for((units + piece - 1) / piece, threads,
               [&](int64_t task, int worker) { body(task * piece, std::min(units, (task + 1) * piece), worker); });
}

}  // namespace vggfast
