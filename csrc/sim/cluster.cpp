// Clusters: their barrier, the shared memory of the other blocks, and what must be over before a block may end.
#include <algorithm>

#include "sim/hopper.h"
#include "sim/mbarrier.h"
#include "sim/tma.h"

namespace vggfast::sim {
namespace {

void end_phase_if_due(ClusterBarrier& barrier) {
  unsigned running = 0;
  for (const auto& block : machine.blocks) running += block->running;
  if (barrier.arrived == 0 || barrier.arrived < running) return;
  ++barrier.phase;
  barrier.arrived = 0;
  barrier.known = barrier.arriving;
  barrier.known_visible = barrier.arriving_visible;
  for (Thread* t : barrier.waiters) wake(*t);
  barrier.waiters.clear();
}

void check_rank(unsigned rank, const void* site) {
  if (rank >= machine.blocks.size()) fault(site, "names block ", rank, " of a cluster of ", machine.blocks.size());
}

/// What others did to this block's memory must be over, and known here, before the memory is gone.
void check_end_of_block(Block& block) {
  const auto is_known = [](uint32_t time, uint16_t who, const Clock& to) { return who < to.size() && to[who] >= time; };
  const auto check_over = [&](const Block::RemoteUses& uses, const Clock& known) {
    for (const auto& [thread, use] : uses) {
      if (is_known(use.time, thread, known)) continue;
      fault(use.site, "the block ends while ", name_of(thread), " may still access its shared memory, here:");
    }
  };
  check_over(block.arrivals, block.exited);
  check_over(block.accesses, block.exited_visible);
  if (block.loads_in_flight) {
    fault(block.load_site, "the block ends with a TMA load into its shared memory in flight, issued");
  }
  for (const auto& [offset, barrier] : block.mbarriers) {
    if (barrier.agent >= barrier.arriving.size()) continue;
    if (is_known(barrier.arriving[barrier.agent], barrier.agent, block.exited)) continue;
    fault(barrier.site,
          "the block ends without having waited for a TMA load into its shared memory, counted on the mbarrier ",
          describe(barrier), "; initialised");
  }
}

}  // namespace

Block* block_of(const void* address) {
  Block* own = self().block;
  if (own->shared.owns(address)) return own;
  for (const auto& block : machine.blocks) {
    if (block->shared.owns(address)) return block.get();
  }
  return nullptr;
}

void check_peer(Block& peer, Block::RemoteUses& uses, const void* site) {
  const Thread& me = self();
  if (&peer == me.block) return;
  if (peer.running == 0)
    fault(site, "accesses the shared memory of block rank ", peer.rank, ", which has come to its end");
  const size_t first = peer.rank * peer.threads;
  bool is_started = false;
  for (size_t i = first; i < first + peer.threads && !is_started; ++i) is_started = me.clock[i] > machine.start;
  if (!is_started) {
    fault(site, "accesses the shared memory of block rank ", peer.rank,
          ", of which nothing tells that it has started: a cluster barrier comes first");
  }
  uses[me.index] = {me.now(), site};
}

void leave() {
  Thread& me = self();
  check_stores_are_read();
  Block& block = *me.block;
  join(block.exited, me.clock);
  join(block.exited_visible, me.visible);
  --block.running;
  if (me.at_cluster_barrier && me.cluster_phase == machine.cluster_barrier.phase) --machine.cluster_barrier.arrived;
  end_phase_if_due(machine.cluster_barrier);
  if (block.running > 0) return;
  check_has_waited(block);
  check_end_of_block(block);
}

void cluster_arrive(bool release) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  Thread& me = self();
  ClusterBarrier& barrier = machine.cluster_barrier;
  if (me.at_cluster_barrier) fault(site, "comes to the cluster's barrier twice without a wait between");
  me.at_cluster_barrier = true;
  me.cluster_phase = barrier.phase;
  join(barrier.arriving, me.clock);
  if (release) join(barrier.arriving_visible, me.visible);
  tick(me);
  ++barrier.arrived;
  end_phase_if_due(barrier);
}

void cluster_wait() {
  const void* site = SIM_SITE;
  const Quiet quiet;
  Thread& me = self();
  ClusterBarrier& barrier = machine.cluster_barrier;
  if (!me.at_cluster_barrier) fault(site, "waits for the cluster's barrier without having come to it");
  if (barrier.phase == me.cluster_phase) {
    barrier.waiters.push_back(&me);
    wait_for("barrier.cluster", site);
  }
  me.at_cluster_barrier = false;
  join(me.clock, barrier.known);
  join(me.visible, barrier.known_visible);
  tick(me);
}

unsigned cluster_rank() { return self().block->rank; }
unsigned cluster_blocks() { return static_cast<unsigned>(machine.blocks.size()); }

void* mapa(const void* pointer, unsigned rank) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  return peer_address(pointer, rank, site);
}

void* peer_address(const void* pointer, unsigned rank, const void* site) {
  check_rank(rank, site);
  const SharedMemory& mine = self().block->shared;
  if (!mine.owns(pointer)) fault(site, "maps ", pointer, ", which is not in the block's shared memory");
  return machine.blocks[rank]->shared.data() + mine.offset_of(pointer);
}

}  // namespace vggfast::sim
