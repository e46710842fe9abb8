// cp.async: a copy lands at any moment between its issue and the wait of the thread that issued it; only from that wait
// on is it that thread's write.
#include <cstring>

#include "sim/global_memory.h"
#include "sim/instructions.h"
#include "sim/machine.h"

namespace vggfast::sim {
namespace {

void land(Copy& copy) {
  if (copy.landed) return;
  copy.landed = true;
  std::memset(copy.to, 0, copy.bytes);
  if (copy.source_bytes) std::memcpy(copy.to, copy.from, copy.source_bytes);
}

}  // namespace

void cp_async(void* to, const void* from, unsigned bytes, unsigned source_bytes) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  if (bytes != 4 && bytes != 8 && bytes != 16) fault(site, "cp.async must copy 4, 8 or 16 bytes, got ", bytes);
  if (source_bytes > bytes)
    fault(site, "cp.async must copy from a source of at most ", bytes, " bytes, got ", source_bytes);
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes) {
    fault(site, "cp.async must copy from and to multiples of ", bytes, " bytes, got ", from, " and ", to);
  }
  if (source_bytes) read_global(from, source_bytes, site);
  self().block->shared.expect(to, bytes, site);
  Copy copy{static_cast<char*>(to), static_cast<const char*>(from), bytes, source_bytes, site, false};
  if (machine.random() % 2) land(copy);
  self().open_copies.push_back(copy);
}

void cp_async_commit_group() {
  const Quiet quiet;
  self().copy_groups.push_back(std::move(self().open_copies));
  self().open_copies.clear();
}

void cp_async_wait_group(unsigned still_in_flight) {
  const Quiet quiet;
  Thread& me = self();
  while (me.copy_groups.size() > still_in_flight) {
    for (Copy& copy : me.copy_groups.front()) {
      land(copy);
      me.block->shared.landed(copy.to, copy.bytes);
    }
    me.copy_groups.pop_front();
  }
}

}  // namespace vggfast::sim
