// Where -fsanitize=thread has every load and store of a kernel report. The thread sanitizer's own runtime is not
// linked.
#include "sim/global_memory.h"
#include "sim/machine.h"

namespace vggfast::sim {
namespace {

void touch(void* address, size_t bytes, bool store, const void* site) {
  if (!machine.watching || Fiber::owns(address)) return;
  const Quiet quiet;
  if (Block* block = block_of(address)) {
    check_peer(*block, block->accesses, site);
    store ? block->shared.write(address, bytes, site) : block->shared.read(address, bytes, site);
  } else {
    store ? write_global(address, bytes, site) : read_global(address, bytes, site);
  }
}

}  // namespace
}  // namespace vggfast::sim

#define HOOK(name, bytes, store) \
  void __tsan_##name(void* address) { vggfast::sim::touch(address, bytes, store, SIM_SITE); }
#define HOOKS(bytes)                        \
  HOOK(read##bytes, bytes, false)           \
  HOOK(write##bytes, bytes, true)           \
  HOOK(unaligned_read##bytes, bytes, false) \
  HOOK(unaligned_write##bytes, bytes, true) \
  HOOK(volatile_read##bytes, bytes, false)  \
  HOOK(volatile_write##bytes, bytes, true)

extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* address, size_t bytes) { vggfast::sim::touch(address, bytes, false, SIM_SITE); }
void __tsan_write_range(void* address, size_t bytes) { vggfast::sim::touch(address, bytes, true, SIM_SITE); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
}
