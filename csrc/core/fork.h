// What a child by fork finds of its parent's other threads: what they held, and nobody who would ever let go of it. So
// nothing here is held while a process forks: what is made once is made without a lock, the pool's lock is free then
// (memory.cpp), and what a call of an engine held is left alone (engine.cpp).
#pragma once

#include <atomic>

namespace vggfast {

/// Forks between this process and the one that loaded the core.
int forks();

/// What `make` returns, kept by `kept`. Threads that come first at once may each make one, of which one is kept.
template <class T, class Make>
const T& made_once(std::atomic<const T*>& kept, Make make) {
  const T* found = kept.load(std::memory_order_acquire);
  if (found) return *found;
  const T* const made = new T(make());
  if (kept.compare_exchange_strong(found, made)) return *made;
  delete made;
  return *found;
}

}  // namespace vggfast
