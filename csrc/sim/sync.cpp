// Barriers of a block and of a warp: who has arrived, and what everyone knows once all have.
#include <algorithm>

#include "sim/instructions.h"
#include "sim/machine.h"
#include "sim/warp.h"

namespace vggfast::sim {
namespace {

/// Lanes of a warp must come to a barrier together. Two copies of one line are one place.
void check_convergence(const Barrier& barrier) {
  const Barrier::Arrival* last_of_warp[64 * 32] = {};
  for (const Barrier::Arrival& arrival : barrier.arrivals) {
    const Barrier::Arrival*& other = last_of_warp[arrival.thread->warp];
    if (other && other->site != arrival.site && where(other->site) != where(arrival.site)) {
      fault(arrival.site, "divergent barrier: ", name_of(*arrival.thread), " is here, while ", name_of(*other->thread),
            " came to it at ", where(other->site));
    }
    other = &arrival;
  }
}

void open_barrier(Barrier& barrier) {
  for (const Barrier::Arrival& arrival : barrier.arrivals) {
    if (!arrival.waits) continue;
    Thread& t = *arrival.thread;
    t.clock = barrier.known;
    t.visible = barrier.visible;
    tick(t);
    if (&t != &self()) wake(t);
  }
  barrier = {};
  ++machine.counts.barriers;
}

void arrive(unsigned id, unsigned threads, bool waits, const char* what, const void* site) {
  Thread& me = self();
  Block& block = *me.block;
  if (id >= Block::barriers_of_a_block) fault(site, "the number of a barrier must be 0 to 15, got ", id);
  if (threads == 0 || threads % 32 || threads > block.threads + 31) {
    fault(site, "a barrier must count whole warps of the block, got ", threads, " threads");
  }
  Barrier& barrier = block.barriers[id];
  if (barrier.arrivals.empty()) barrier.expected = threads;
  if (barrier.expected != threads) {
    fault(site, "comes to barrier ", id, " of ", threads, " threads, which others count as one of ", barrier.expected);
  }
  if (barrier.signalled) {
    for (const Barrier::Arrival& arrival : barrier.arrivals) {
      if (arrival.thread != &me) continue;
      fault(site, "comes to barrier ", id, " a second time, which ", threads - barrier.arrivals.size(), " of ", threads,
            " threads have not come to once");
    }
  }
  barrier.signalled |= !waits;
  barrier.arrivals.push_back({&me, site, waits});
  barrier.known.resize(me.clock.size());
  join(barrier.known, me.clock);
  join(barrier.visible, me.visible);
  if (!waits) tick(me);
  if (barrier.arrivals.size() == std::min(threads, block.threads)) {
    check_convergence(barrier);
    open_barrier(barrier);
  } else if (waits) {
    wait_for(what, site);
  }
}

}  // namespace

char* shared_memory() { return self().block->shared.data(); }

void sync_threads() {
  const void* site = SIM_SITE;
  const Quiet quiet;
  arrive(0, (self().block->threads + 31) / 32 * 32, true, "__syncthreads", site);
}

void barrier_sync(unsigned barrier, unsigned threads) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  static const char* const names[] = {"barrier 0",  "barrier 1",  "barrier 2",  "barrier 3", "barrier 4",  "barrier 5",
                                      "barrier 6",  "barrier 7",  "barrier 8",  "barrier 9", "barrier 10", "barrier 11",
                                      "barrier 12", "barrier 13", "barrier 14", "barrier 15"};
  arrive(barrier, threads, true, names[barrier % 16], site);
}

void barrier_arrive(unsigned barrier, unsigned threads) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  arrive(barrier, threads, false, "a barrier", site);
}

void sync_warp(uint32_t mask) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  meet("__syncwarp", mask, nullptr, site, [](Thread* const* lanes, void* const*, uint32_t met) {
    Clock all(self().clock.size(), 0), visible;
    for_lanes(met, [&](unsigned lane) {
      join(all, lanes[lane]->clock);
      join(visible, lanes[lane]->visible);
    });
    for_lanes(met, [&](unsigned lane) {
      lanes[lane]->clock = all;
      lanes[lane]->visible = visible;
      tick(*lanes[lane]);
    });
  });
}

}  // namespace vggfast::sim
