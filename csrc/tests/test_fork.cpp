// A child by fork computes what its parent did, while the parent's other threads compute, allocate and use the engine
// that the child uses.
#include <dlfcn.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/parallel.h"
#include "vggfast/engine.h"
#include "vggfast/memory.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define VGGFAST_SANITIZED 1
#endif

namespace {
void* runtime = nullptr;    // libgomp
bool cannot_pause = false;  // as of runtimes before OpenMP 5
}  // namespace

// Found before the runtime's own.
extern "C" [[gnu::visibility("default")]] int omp_pause_resource_all(int kind) {
  const auto pause = reinterpret_cast<int (*)(int)>(runtime ? dlsym(runtime, "omp_pause_resource_all") : nullptr);
  return pause && !cannot_pause ? pause(kind) : -1;
}

namespace vggfast::test {
namespace {

constexpr int children = 5, threads = 2, deadline = 60;  // seconds

/// The exit status of a child that runs `body`, or the number of the signal that ended it, negated.
int in_child(const std::function<bool()>& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body() ? 0 : 1);
  int status = 0;
  for (int waited = 0; waitpid(child, &status, WNOHANG) == 0; ++waited) {
    if (waited == deadline * 100) kill(child, SIGKILL);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

bool all_run() {
  std::vector<std::atomic<int>> seen(100);
  cpu::parallel_for(100, threads, [&](int64_t task, int) { ++seen[static_cast<size_t>(task)]; });
  return std::all_of(seen.begin(), seen.end(), [](const std::atomic<int>& count) { return count == 1; });
}

/// An engine that doubles images of 8 channels.
class Doubling {
 public:
  Doubling() {
    std::vector<float> weight(channels * channels);
    for (size_t i = 0; i < channels; ++i) weight[i * (channels + 1)] = 2;
    engine_.add_conv(view(weight, {channels, channels, 1, 1}), nullptr);
  }

  bool runs(int64_t side) {
    std::vector<float> x(static_cast<size_t>(channels * side * side), 3), y(x.size());
    engine_.run(view(x, {1, channels, side, side}), {{0, view(y, {1, channels, side, side})}}, {.threads = threads});
    return std::all_of(y.begin(), y.end(), [](float value) { return value == 6; });
  }

 private:
  static constexpr int64_t channels = 8;

  static Tensor view(std::vector<float>& values, const std::vector<int64_t>& shape) {  // NHWC
    const int64_t c = shape[1], h = shape[2], w = shape[3];
    return {.data = values.data(), .shape = shape, .strides = {h * w * c, 1, w * c, c}};
  }

  Engine engine_{{}};
};

/// Threads that call `bodies` again and again until it goes.
class Busy {
 public:
  explicit Busy(const std::vector<std::function<void()>>& bodies) {
    for (const auto& body : bodies) {
      threads_.emplace_back([this, body] {
        while (!stopped_) body();
      });
    }
  }
  ~Busy() {
    stopped_ = true;
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  std::atomic<bool> stopped_{false};
  std::vector<std::thread> threads_;
};

void check_busy_parent() {
  Doubling engine;
  const auto takes_and_gives = [] { CachedBuffer(size_t{3} << 20); };
  const auto computes = [&] { return all_run() && engine.runs(8) && CachedBuffer(1).data() != nullptr; };
  CHECK(computes());
  const Busy busy({takes_and_gives, takes_and_gives, [&] { engine.runs(32); }, [] { all_run(); }});
  for (int i = 0; i < children; ++i) {
    CHECK_EQUAL(in_child([&] { return computes() && computes(); }), 0, "child ", i);
    CHECK(computes(), "after child ", i);
  }
  CHECK_EQUAL(in_child([&] { return computes() && in_child(computes) == 0 && computes(); }), 0, "a child's child");
}

/// Of a thread whose pool cannot end.
void check_pool_that_stays() {
  CHECK(all_run());
  cannot_pause = true;
  CHECK_EQUAL(in_child([] {
                cannot_pause = false;
                return all_run() && in_child(all_run) == 0;
              }),
              0);
  CHECK(all_run(), "after a child");
}

}  // namespace
}  // namespace vggfast::test

int main() {
#if defined(VGGFAST_SANITIZED)
  std::cout << "skipped: a child of a process with threads may find the sanitizer's own allocator locked\n";
  return 0;
#endif
  runtime = dlopen("libgomp.so.1", RTLD_NOW | RTLD_GLOBAL);
  vggfast::test::check_busy_parent();
  vggfast::test::check_pool_that_stays();
  return vggfast::test::result();
}
