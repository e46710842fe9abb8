#include "sim/global_memory.h"
#include "sim/instructions.h"
#include "sim/machine.h"

namespace vggfast::sim {
namespace {

template <class T>
T add(T* address, T value, const void* site) {
  update_global(address, sizeof(T), site);
  const T before = *address;
  *address = before + value;
  return before;
}

}  // namespace

unsigned atomic_add(unsigned* address, unsigned value) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  return add(address, value, site);
}

}  // namespace vggfast::sim
