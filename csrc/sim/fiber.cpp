#include "sim/fiber.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdint>
#include <new>

namespace vggfast::sim {
namespace {

constexpr size_t stack_bytes = 128 << 10;
constexpr size_t most_fibers = 4096;

jmp_buf scheduler;

/// One reservation for all stacks; a page is there once it is touched.
char* stacks() {
  static char* const base = [] {
    void* all = mmap(nullptr, stack_bytes * most_fibers, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) throw std::bad_alloc();
    return static_cast<char*>(all);
  }();
  return base;
}

}  // namespace

bool Fiber::owns(const void* address) {
  return static_cast<size_t>(static_cast<const char*>(address) - stacks()) < stack_bytes * most_fibers;
}

void Fiber::start(void (*body)(void*), void* argument, size_t slot) {
  if (slot >= most_fibers) throw std::bad_alloc();
  body_ = body;
  argument_ = argument;
  fresh_ = !idle_ || slot != slot_;
  idle_ = false;
  slot_ = slot;
}

void Fiber::enter(unsigned low, unsigned high) {
  Fiber* self = reinterpret_cast<Fiber*>(uintptr_t(low) | uintptr_t(high) << 32);
  for (;;) {
    self->body_(self->argument_);
    self->idle_ = true;
    self->suspend();
  }
}

void Fiber::resume() {
  if (_setjmp(scheduler)) return;
  if (!fresh_) _longjmp(place_, 1);
  fresh_ = false;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack = {.ss_sp = stacks() + slot_ * stack_bytes, .ss_flags = 0, .ss_size = stack_bytes};
  context.uc_link = nullptr;
  const uintptr_t self = reinterpret_cast<uintptr_t>(this);
  makecontext(&context, reinterpret_cast<void (*)()>(&Fiber::enter), 2, unsigned(self), unsigned(self >> 32));
  setcontext(&context);
}

void Fiber::suspend() {
  if (!_setjmp(place_)) _longjmp(scheduler, 1);
}

}  // namespace vggfast::sim
