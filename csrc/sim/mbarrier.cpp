// mbarrier: phases that end once all arrivals and all announced bytes have come. Who arrives gives what it knows to the
// barrier, who waits takes it; bytes that TMA brings give the moment at which they were written. Of what threads loaded
// and stored, a block's scope gives nothing to another block's threads.
#include "sim/mbarrier.h"

#include <algorithm>

#include "sim/hopper.h"

namespace vggfast::sim {
namespace {

constexpr unsigned most_arrivals = (1 << 20) - 1;
constexpr int64_t most_bytes = (1 << 20) - 1;

void check_address(const void* address, const void* site) {
  if (reinterpret_cast<uintptr_t>(address) % 8)
    fault(site, "an mbarrier must be at a multiple of 8 bytes, got ", address);
}

void end_phase_if_due(MBarrier& barrier) {
  if (barrier.pending > 0 || barrier.transactions != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.expected;
  barrier.known = barrier.arriving;
  for (unsigned scope = 0; scope < 2; ++scope) barrier.known_visible[scope] = barrier.arriving_visible[scope];
  for (Thread* t : barrier.waiters) wake(*t);
  barrier.waiters.clear();
}

void expect(MBarrier& barrier, uint32_t bytes, const void* site) {
  barrier.transactions += bytes;
  if (bytes > most_bytes || barrier.transactions > most_bytes) {
    fault(site, "expects ", bytes, " bytes on an mbarrier: transactions overflow, ", describe(barrier));
  }
}

void arrive(MBarrier& barrier, unsigned count, Scope release, const void* site) {
  if (count == 0 || count > barrier.pending) {
    fault(site, "arrives ", count, " times: too many arrivals on an mbarrier ", describe(barrier));
  }
  Thread& me = self();
  join(barrier.arriving, me.clock);
  const bool by_own_block = me.block == barrier.block;
  if (by_own_block) join(barrier.arriving_visible[int(Scope::block)], me.visible);
  if (by_own_block || release == Scope::cluster) join(barrier.arriving_visible[int(Scope::cluster)], me.visible);
  tick(me);
  barrier.pending -= count;
  end_phase_if_due(barrier);
}

/// Whether the running thread knows of a fence after that moment, of who did it.
bool is_fenced_and_known(const std::vector<uint32_t>& fences, Moment done) {
  const auto fence = std::upper_bound(fences.begin(), fences.end(), done.time);
  return fence != fences.end() && self().knows({*fence, done.thread});
}

}  // namespace

std::string describe(const MBarrier& barrier) {
  std::ostringstream text;
  text << "at byte " << barrier.offset << " of block rank " << barrier.block->rank << ": phase " << barrier.phase
       << " (parity " << barrier.phase % 2 << "), pending arrivals " << barrier.pending << " of " << barrier.expected
       << ", transactions " << barrier.transactions << " bytes";
  return text.str();
}

MBarrier& mbarrier_at(Block& block, const void* address, const char* verb, const void* site) {
  check_address(address, site);
  if (!block.shared.owns(address))
    fault(site, verb, " an mbarrier at ", address, ", outside the block's shared memory");
  const auto found = block.mbarriers.find(block.shared.offset_of(address));
  if (found == block.mbarriers.end()) {
    fault(site, verb, " byte ", block.shared.offset_of(address), " of shared memory: no mbarrier is initialised there");
  }
  MBarrier& barrier = found->second;
  const Thread& by = *machine.threads[barrier.initialised.thread];
  if (!self().after(barrier.initialised) && !is_fenced_and_known(by.init_fences, barrier.initialised)) {
    fault(site, verb, " an mbarrier whose init by ", name_of(barrier.initialised.thread),
          " is not ordered before; initialised at ", where(barrier.site));
  }
  return barrier;
}

MBarrier& mbarrier_of_load(Block& block, const void* address, const void* site) {
  MBarrier& barrier = mbarrier_at(block, address, "a TMA load completes on", site);
  const Thread& by = *machine.threads[barrier.initialised.thread];
  if (!is_fenced_and_known(by.fences, barrier.initialised) &&
      !is_fenced_and_known(by.init_fences, barrier.initialised)) {
    fault(site, "a TMA load completes on an mbarrier after whose init ", name_of(by),
          " did neither fence.mbarrier_init nor fence.proxy.async; initialised at ", where(barrier.site));
  }
  return barrier;
}

void complete_transaction(MBarrier& barrier, size_t bytes, Moment asked, Moment when, const Thread& by,
                          const void* site) {
  barrier.transactions -= static_cast<int64_t>(bytes);
  if (barrier.transactions < -most_bytes) {
    fault_of(by, site, "brings ", bytes, " bytes to an mbarrier: transactions overflow, ", describe(barrier));
  }
  for (const Moment moment : {asked, when}) {
    if (barrier.arriving.size() <= moment.thread) barrier.arriving.resize(moment.thread + 1u);
    barrier.arriving[moment.thread] = std::max(barrier.arriving[moment.thread], moment.time);
  }
  end_phase_if_due(barrier);
}

void mbarrier_init(uint64_t* address, unsigned count) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  Thread& me = self();
  Block& block = *me.block;
  check_address(address, site);
  if (count == 0 || count > most_arrivals) fault(site, "an mbarrier must count 1 to 1048575 arrivals, got ", count);
  if (!block.shared.owns(address)) fault(site, "an mbarrier at ", address, ", outside the block's shared memory");
  const size_t offset = block.shared.offset_of(address);
  if (block.mbarriers.count(offset)) fault(site, "initialises an mbarrier that is one already: inval comes first");
  block.shared.make_barrier(address, site);
  std::ostringstream name;
  name << "TMA, for the mbarrier at byte " << offset << " of block rank " << block.rank << ",";
  block.mbarriers[offset] = {
      &block, offset, new_agent(name.str()), {me.now(), me.index}, site, count, count, 0, 0, {}, {}, {}, {}, {}};
}

void mbarrier_inval(uint64_t* address) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  Block& block = *self().block;
  const MBarrier& barrier = mbarrier_at(block, address, "invalidates", site);
  if (!barrier.waiters.empty()) fault(site, "invalidates an mbarrier that threads wait for, ", describe(barrier));
  block.shared.drop_barrier(address, site);
  block.mbarriers.erase(block.shared.offset_of(address));
}

void mbarrier_arrive(uint64_t* address, unsigned count) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  arrive(mbarrier_at(*self().block, address, "arrives on", site), count, Scope::block, site);
}

void mbarrier_arrive_remote(uint64_t* address, unsigned rank, Scope release) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  uint64_t* there = static_cast<uint64_t*>(peer_address(address, rank, site));
  Block& peer = *machine.blocks[rank];
  check_peer(peer, peer.arrivals, site);
  arrive(mbarrier_at(peer, there, "arrives on", site), 1, release, site);
}

void mbarrier_expect_tx(uint64_t* address, uint32_t bytes) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  expect(mbarrier_at(*self().block, address, "expects bytes on", site), bytes, site);
}

void mbarrier_arrive_expect_tx(uint64_t* address, uint32_t bytes) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  MBarrier& barrier = mbarrier_at(*self().block, address, "arrives on", site);
  expect(barrier, bytes, site);
  arrive(barrier, 1, Scope::block, site);
}

void mbarrier_wait_parity(const uint64_t* address, uint32_t parity, Scope acquire) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  if (parity > 1) fault(site, "the parity of an mbarrier to wait for must be 0 or 1, got ", parity);
  Thread& me = self();
  MBarrier& barrier = mbarrier_at(*me.block, address, "waits for", site);
  while (barrier.phase % 2 == parity) {
    barrier.waiters.push_back(&me);
    me.awaits = &barrier;
    wait_for(parity ? "the end of parity 1 of the mbarrier" : "the end of parity 0 of the mbarrier", site);
    me.awaits = nullptr;
  }
  join(me.clock, barrier.known);
  join(me.visible, barrier.known_visible[int(acquire)]);
  tick(me);
}

}  // namespace vggfast::sim
