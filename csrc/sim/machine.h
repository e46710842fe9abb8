// The simulator's inside: what is running now.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <unordered_set>
#include <vector>

#include "sim/fiber.h"
#include "sim/shared_memory.h"
#include "sim/sim.h"

namespace vggfast::sim {

/// When a thread last knew what of every thread of its cluster: a vector clock. A moment of thread t has happened
/// before a thread's present where clock[t] has reached it. Behind the threads come the agents, which do asynchronous
/// work.
///
/// In a cluster there are two. `clock` says what has happened. `visible` says of which threads' loads and stores it is
/// ordered behind: an arrival at a block's scope, or a relaxed one, tells another block that something has happened and
/// orders nothing else. What agents did (TMA, wgmma) was over before it was told.
using Clock = std::vector<uint32_t>;
void join(Clock& into, const Clock& other);

/// A 16-byte-or-less cp.async between its issue and its landing.
struct Copy {
  char* to;
  const char* from;
  unsigned bytes, source_bytes;
  const void* site;
  bool landed;
};

struct Block;
struct Thread;
struct BulkStore;  // tma_store.cpp
struct Wgmma;      // wgmma.cpp

/// An mbarrier: 8 bytes of shared memory, the state of which is here. As an agent, it is who writes what TMA loads
/// bring.
struct MBarrier {
  Block* block;
  size_t offset;
  uint16_t agent;
  Moment initialised;
  const void* site;  // of that
  unsigned expected, pending;
  int64_t transactions = 0;  // bytes that have yet to come; those that come unannounced count below zero
  uint64_t phase = 0;
  Clock arriving, known;                        // of those who have arrived; and when the last phase was over
  Clock arriving_visible[2], known_visible[2];  // by Scope of who waits
  std::vector<Thread*> waiters;
};

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  uint16_t index = 0;  // in the cluster
  unsigned warp = 0;   // in the cluster
  unsigned lane = 0;
  dim3 place;
  Clock clock, visible;               // the latter only in a cluster
  std::vector<uint32_t> fences;       // when it did fence.proxy.async
  std::vector<uint32_t> init_fences;  // and fence.mbarrier_init
  bool done = false;
  const char* waits_for = nullptr;
  const MBarrier* awaits = nullptr;  // where that is an mbarrier
  const void* site = nullptr;        // where it waits
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> copy_groups;
  std::vector<std::shared_ptr<BulkStore>> open_stores;
  std::deque<std::vector<std::shared_ptr<BulkStore>>> store_groups;
  std::vector<std::shared_ptr<Wgmma>> open_products;
  std::deque<std::vector<std::shared_ptr<Wgmma>>> product_groups;
  bool wgmma_fenced = false;                          // since it last waited for products
  std::map<float*, std::vector<float>> accumulators;  // as its last products left them
  bool at_cluster_barrier = false;
  uint64_t cluster_phase = 0;       // in which it has come to the cluster's barrier
  bool after_predecessors = false;  // known to be after a griddepcontrol.wait

  uint32_t now() const { return clock[index]; }
  /// Whether that has happened.
  bool knows(Moment m) const { return is_before(m, clock); }
  /// Whether it is ordered before all that this thread will load and store.
  bool after(Moment m) const { return is_before(m, m.thread < visible.size() ? visible : clock); }

 private:
  bool is_before(Moment m, const Clock& by) const {
    return m.thread == index || m.time == 0 || (m.thread < by.size() && by[m.thread] >= m.time);
  }
};

struct Barrier {
  struct Arrival {
    Thread* thread;
    const void* site;
    bool waits;
  };
  unsigned expected = 0;
  bool signalled = false;  // by a thread that did not wait, and so may come again too early
  std::vector<Arrival> arrivals;
  Clock known, visible;  // to those who have arrived
};

/// The threads of a warpgroup on their way into one wgmma.
struct WarpgroupMeeting;

/// Global memory comes from L2 in sectors.
constexpr size_t sector = 32;

struct Block {
  static constexpr int barriers_of_a_block = 16;
  struct RemoteUse {
    uint32_t time = 0;
    const void* site = nullptr;
  };
  using RemoteUses = std::map<uint16_t, RemoteUse>;  // the last, by thread of another block

  dim3 place;
  unsigned rank = 0;                      // in the cluster
  std::unordered_set<uintptr_t> sectors;  // read, where they are counted
  unsigned threads = 0;
  SharedMemory shared;
  Barrier barriers[barriers_of_a_block];
  unsigned running = 0;                                  // threads that have not come to their end
  bool has_waited = false, launches_dependents = false;  // griddepcontrol, by any thread
  Clock exited, exited_visible;                          // what those knew who have
  std::map<size_t, MBarrier> mbarriers;                  // by offset
  RemoteUses arrivals, accesses;    // of this block's memory: by mbarrier or TMA; by loads and stores
  unsigned loads_in_flight = 0;     // of TMA, to here
  const void* load_site = nullptr;  // of the last
  std::vector<std::shared_ptr<WarpgroupMeeting>> warpgroups;
  std::vector<unsigned> registers;  // of a thread, by warp
  std::vector<Thread*> wait_for_registers;
};

/// barrier.cluster.
struct ClusterBarrier {
  unsigned arrived = 0;
  uint64_t phase = 0;
  Clock arriving, known, arriving_visible, known_visible;
  std::vector<Thread*> waiters;
};

/// Who does asynchronous work: a number behind the threads' own on the clocks, for things that no thread's order
/// covers.
struct Agent {
  std::string name;
};

/// Lanes of a warp that do one instruction together.
struct Meeting {
  const char* what;
  uint32_t mask, arrived;
  void* operands[32];
  const void* sites[32];
};

struct Machine {
  Launch launch{};
  std::mt19937_64 random;
  std::vector<std::unique_ptr<Thread>> threads;  // of the cluster that runs, in order of block, warp, lane
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::vector<Meeting>> meetings;  // by warp
  std::vector<Thread*> ready;
  std::vector<std::function<void()>> in_flight;  // asynchronous work; each may land at any time
  ClusterBarrier cluster_barrier;
  std::vector<Agent> agents;
  std::vector<Moment> predecessors_ended;  // where threads of this cluster have waited for that
  const char* predecessor = nullptr;       // the kernel launched before
  Thread* current = nullptr;
  bool watching = false;  // whether loads and stores are the kernel's own
  uint32_t time = 1;
  uint32_t start = 0;  // of this cluster
  uint32_t launches = 0;
  std::string fault;
  Counters counts;
};
extern Machine machine;

inline Thread& self() { return *machine.current; }
/// Gives the running thread a moment of its own, after all that it did before.
inline void tick(Thread& t) {
  t.clock[t.index] = ++machine.time;
  if (!t.visible.empty()) t.visible[t.index] = t.now();
}

/// Blocks the running thread until wake().
void wait_for(const char* what, const void* site);
void wake(Thread& t);

/// While it lives, loads and stores are the simulator's.
struct Quiet {
  Quiet() { machine.watching = false; }
  ~Quiet() { machine.watching = true; }
};

/// A number for an agent, and the name that faults give it.
uint16_t new_agent(const std::string& name);
/// That of the agent of this name, which is made where there is none.
uint16_t agent_of(const std::string& name);
/// Whether all that the launches before wrote is there for the running thread, and all that they read has been read
/// (dependent_launch.cpp).
bool is_after_predecessors();
/// Faults where a block ends that has not waited for them.
void check_has_waited(const Block& block);
/// The running thread comes to its end (cluster.cpp).
void leave();
/// Whose shared memory an address is meant to lie in; null where it lies in no block of the cluster.
Block* block_of(const void* address);
/// The running thread uses that block's shared memory, which is noted in `uses`, one of the peer's.
void check_peer(Block& peer, Block::RemoteUses& uses, const void* site);
std::string describe(const MBarrier& barrier);

/// Ends the launch: the running thread, if there is one, is left where it stands.
[[noreturn]] void stop(const std::string& text);
std::string name_of(const Thread& t);
/// Of a thread or an agent.
std::string name_of(uint16_t index);
/// "file:line" of an address in a kernel, or of the calls that were inlined there.
std::string where(const void* site);

/// What `who` asked for at `site` is wrong.
template <class... Parts>
[[noreturn]] void fault_of(const Thread& who, const void* site, const Parts&... parts) {
  std::ostringstream text;
  text << "sim: kernel " << machine.launch.kernel << ", " << name_of(who) << ": ";
  (text << ... << parts);
  text << "\n  at " << where(site);
  stop(text.str());
}

template <class... Parts>
[[noreturn]] void fault(const void* site, const Parts&... parts) {
  fault_of(self(), site, parts...);
}

}  // namespace vggfast::sim

#define SIM_SITE __builtin_return_address(0)
