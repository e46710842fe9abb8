// What others of the simulator need of mbarriers.
#pragma once

#include "sim/machine.h"

namespace vggfast::sim {

/// The mbarrier there; faults where none is, or where the running thread cannot know of its init.
MBarrier& mbarrier_at(Block& block, const void* address, const char* verb, const void* site);
/// As mbarrier_at, of a barrier on which TMA will count bytes.
MBarrier& mbarrier_of_load(Block& block, const void* address, const void* site);
/// `bytes` that `by` asked for at `site`, at the moment `asked`, have come, and were written at `when`.
void complete_transaction(MBarrier& barrier, size_t bytes, Moment asked, Moment when, const Thread& by,
                          const void* site);

/// mapa.
void* peer_address(const void* pointer, unsigned rank, const void* site);

}  // namespace vggfast::sim
