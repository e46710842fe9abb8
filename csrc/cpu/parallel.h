// Dividing the work of an op among threads.
#pragma once

#include <cstdint>
#include <functional>

namespace vggfast::cpu {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Calls body(task, worker) once for each task of [0, tasks), on up to `threads` threads; worker < threads names the
/// thread. Tasks are handed out as threads come free, so a task must not depend on who runs it. What `body` throws
/// first is thrown here, and tasks that nobody has begun are left out.
void parallel_for(int64_t tasks, int threads, const std::function<void(int64_t task, int worker)>& body);

/// The same for ranges: body(begin, end, worker) over [0, units), in pieces of at least `grain`.
void parallel_ranges(int64_t units, int64_t grain, int threads,
                     const std::function<void(int64_t begin, int64_t end, int worker)>& body);

}  // namespace vggfast::cpu
