// A simulated thread's own stack and place in the code. Switching takes some ten nanoseconds: no system call.
#pragma once

#include <csetjmp>
#include <cstddef>

namespace vggfast::sim {

class Fiber {
 public:
  /// Makes resume() begin `body(argument)`; whatever ran before is forgotten.
  void start(void (*body)(void*), void* argument, size_t slot);
  /// From the scheduler: goes on where the fiber left.
  void resume();
  /// From within the fiber: back to the scheduler.
  void suspend();

  /// Whether an address lies on a fiber's stack.
  static bool owns(const void* address);

 private:
  static void enter(unsigned low, unsigned high);

  jmp_buf place_;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  size_t slot_ = 0;
  bool fresh_ = false;  // its stack is to be set up
  bool idle_ = false;   // the last body has returned: the next needs no new stack
};

}  // namespace vggfast::sim
