// Starting a launch, choosing who runs next, and saying who waits for what when nobody can.
#include <algorithm>
#include <utility>

#include "sim/machine.h"
#include "sim/sim.h"

namespace vggfast::sim {

Machine machine;

namespace {

constexpr unsigned warp_lanes = 32;

unsigned size_of(dim3 d) { return d.x * d.y * d.z; }
dim3 place_of(unsigned i, dim3 extent) { return {i % extent.x, i / extent.x % extent.y, i / extent.x / extent.y}; }

const std::function<void()>* kernel_body = nullptr;

void run_thread(void* thread) {
  (*kernel_body)();
  machine.watching = false;
  Thread& me = *static_cast<Thread*>(thread);
  leave();
  me.done = true;
}

/// As many threads as a cluster has. Those that one does not need wait for one that does: a fiber's stack is dear.
void set_threads(size_t count) {
  static std::vector<std::unique_ptr<Thread>> spare;
  auto& threads = machine.threads;
  for (; threads.size() > count; threads.pop_back()) spare.push_back(std::move(threads.back()));
  for (; threads.size() < count && !spare.empty(); spare.pop_back()) threads.push_back(std::move(spare.back()));
  while (threads.size() < count) threads.push_back(std::make_unique<Thread>());
}

void forget_asynchronous_work(Thread& t) {
  t.fences.clear();
  t.init_fences.clear();
  t.open_stores.clear();
  t.store_groups.clear();
  t.open_products.clear();
  t.product_groups.clear();
  t.wgmma_fenced = false;
  t.accumulators.clear();
  t.at_cluster_barrier = false;
}

void place_cluster(unsigned cluster, dim3 clusters) {
  const Launch& l = machine.launch;
  const unsigned blocks = size_of(l.cluster), threads = size_of(l.block);
  const unsigned warps = (threads + warp_lanes - 1) / warp_lanes;
  while (machine.blocks.size() < blocks) machine.blocks.push_back(std::make_unique<Block>());
  machine.blocks.resize(blocks);
  set_threads(blocks * threads);
  machine.meetings.assign(blocks * warps, {});
  machine.ready.clear();
  machine.in_flight.clear();
  machine.cluster_barrier = {};
  machine.agents.clear();
  machine.predecessors_ended.clear();
  const dim3 first = place_of(cluster, clusters);
  const uint32_t start = machine.start = machine.time++;
  for (unsigned rank = 0; rank < blocks; ++rank) {
    Block& block = *machine.blocks[rank];
    const dim3 within = place_of(rank, l.cluster);
    block.place = {first.x * l.cluster.x + within.x, first.y * l.cluster.y + within.y,
                   first.z * l.cluster.z + within.z};
    block.rank = rank;
    block.threads = threads;
    const unsigned warpgroups = (warps + 3) / 4;
    block.shared.reset(l.shared_bytes, blocks * (warps + warpgroups));
    for (Barrier& barrier : block.barriers) barrier = {};
    block.running = threads;
    block.has_waited = block.launches_dependents = false;
    block.exited.clear();
    block.exited_visible.clear();
    block.mbarriers.clear();
    block.arrivals.clear();
    block.accesses.clear();
    block.loads_in_flight = 0;
    block.warpgroups.assign(warpgroups, nullptr);
    block.registers.clear();
    block.wait_for_registers.clear();
    for (unsigned i = 0; i < threads; ++i) {
      Thread& t = *machine.threads[rank * threads + i];
      t.block = &block;
      t.index = static_cast<uint16_t>(rank * threads + i);
      t.warp = rank * warps + i / warp_lanes;
      t.lane = i % warp_lanes;
      t.place = place_of(i, l.block);
      t.clock.assign(blocks * threads, start);
      t.clock[t.index] = machine.time;
      t.visible = blocks > 1 ? t.clock : Clock();
      t.done = false;
      t.waits_for = nullptr;
      t.awaits = nullptr;
      t.after_predecessors = false;
      t.open_copies.clear();
      t.copy_groups.clear();
      forget_asynchronous_work(t);
      t.fiber.start(run_thread, &t, t.index);
      machine.ready.push_back(&t);
    }
  }
}

[[noreturn]] void report_deadlock() {
  std::ostringstream text;
  text << "sim: kernel " << machine.launch.kernel << ": nobody can go on";
  std::map<std::string, std::vector<const Thread*>> waiting;
  for (const auto& t : machine.threads) {
    if (t->done) continue;
    const std::string barrier = t->awaits ? " " + describe(*t->awaits) : "";
    waiting[t->waits_for + barrier + "\n    at " + where(t->site)].push_back(t.get());
  }
  for (const auto& [what, threads] : waiting) {
    text << "\n  " << threads.size() << " threads, the first " << name_of(*threads.front()) << ", wait for " << what;
  }
  const auto exited = std::count_if(machine.threads.begin(), machine.threads.end(), [](auto& t) { return t->done; });
  text << "\n  " << exited << " threads have come to their end";
  throw Fault(text.str());
}

bool chance(unsigned one_in) { return machine.random() % one_in == 0; }

template <class T>
T take_any(std::vector<T>& from) {
  std::swap(from[machine.random() % from.size()], from.back());
  T taken = std::move(from.back());
  from.pop_back();
  return taken;
}

void run_cluster() {
  constexpr unsigned land_one_in = 64;
  std::vector<Thread*> late;  // that could run, of the late warp
  for (;;) {
    if (!machine.in_flight.empty() && (machine.ready.empty() || chance(land_one_in))) {
      take_any(machine.in_flight)();
    } else if (!machine.ready.empty() || !late.empty()) {
      Thread* const next = take_any(machine.ready.empty() ? late : machine.ready);
      const auto warp = static_cast<int>(next->index % next->block->threads / warp_lanes);
      if (warp == settings().late_warp && !(machine.ready.empty() && machine.in_flight.empty())) {
        late.push_back(next);
        continue;
      }
      machine.current = next;
      machine.current->fiber.resume();
      machine.watching = false;
      machine.current = nullptr;
    } else if (std::all_of(machine.threads.begin(), machine.threads.end(), [](auto& t) { return t->done; })) {
      return;
    } else {
      report_deadlock();
    }
    if (!machine.fault.empty()) throw Fault(std::exchange(machine.fault, {}));
  }
}

void check_launch(const Launch& l) {
  const auto refuse = [&](auto... parts) {
    std::ostringstream text;
    text << "sim: kernel " << l.kernel << ": ";
    (text << ... << parts);
    throw Fault(text.str());
  };
  constexpr unsigned most_threads = 1024;
  if (size_of(l.grid) == 0) refuse("the grid is empty");
  if (size_of(l.block) == 0 || size_of(l.block) > most_threads)
    refuse("a block must have 1 to ", most_threads, " threads, got ", size_of(l.block));
  if (l.shared_bytes > most_shared_bytes)
    refuse("a block must ask for at most ", most_shared_bytes, " bytes of shared memory, got ", l.shared_bytes);
  if (l.grid.y > 65535 || l.grid.z > 65535)
    refuse("the grid must be at most 65535 high and deep, got ", l.grid.y, " and ", l.grid.z);
  if (l.grid.x % l.cluster.x || l.grid.y % l.cluster.y || l.grid.z % l.cluster.z) {
    refuse("the grid must be a whole number of clusters, got ", l.grid.x, " x ", l.grid.y, " x ", l.grid.z,
           " blocks for clusters of ", l.cluster.x, " x ", l.cluster.y, " x ", l.cluster.z);
  }
  const unsigned blocks = size_of(l.cluster), clusters = size_of(l.grid) / blocks;
  const int resident = resident_clusters(blocks);
  if (l.persistent && clusters > static_cast<unsigned>(resident)) {
    refuse("a persistent grid must have at most ", resident, " clusters of ", blocks,
           " blocks, which run at once, got ", clusters);
  }
}

}  // namespace

Settings& settings() {
  static Settings all;
  return all;
}

int resident_clusters(unsigned blocks) {
  const int most = settings().num_sms / static_cast<int>(blocks);
  const auto told = settings().clusters.find(static_cast<int>(blocks));
  return told == settings().clusters.end() ? most : std::min(most, told->second);
}

std::map<std::string, Counters>& counters() {
  static std::map<std::string, Counters> all;
  return all;
}

void join(Clock& into, const Clock& other) {
  if (into.size() < other.size()) into.resize(other.size());
  for (size_t i = 0; i < other.size(); ++i) into[i] = std::max(into[i], other[i]);
}

uint16_t new_agent(const std::string& name) {
  machine.agents.push_back({name});
  return static_cast<uint16_t>(machine.threads.size() + machine.agents.size() - 1);
}

uint16_t agent_of(const std::string& name) {
  for (size_t i = 0; i < machine.agents.size(); ++i) {
    if (machine.agents[i].name == name) return static_cast<uint16_t>(machine.threads.size() + i);
  }
  return new_agent(name);
}

void wait_for(const char* what, const void* site) {
  Thread& me = self();
  me.waits_for = what;
  me.site = site;
  me.fiber.suspend();
  me.waits_for = nullptr;
}

void wake(Thread& t) { machine.ready.push_back(&t); }

void stop(const std::string& text) {
  if (!machine.current) throw Fault(text);  // work that has landed: no fiber runs
  machine.fault = text;
  for (;;) self().fiber.suspend();
}

std::string name_of(const Thread& t) {
  std::ostringstream text;
  text << "block (" << t.block->place.x << ", " << t.block->place.y << ", " << t.block->place.z << "), thread "
       << t.index % t.block->threads << " (warp " << t.index % t.block->threads / warp_lanes << ", lane " << t.lane
       << ")";
  return text.str();
}

std::string name_of(uint16_t index) {
  return index < machine.threads.size() ? name_of(*machine.threads[index])
                                        : machine.agents[index - machine.threads.size()].name;
}

void launch(const Launch& launch, const std::function<void()>& body) {
  check_launch(launch);
  machine.predecessor = machine.launch.kernel;
  machine.launch = launch;
  machine.random.seed(settings().seed + ++machine.launches);
  machine.time = 1;  // what is known of memory and threads begins anew with each cluster
  machine.counts = {};
  kernel_body = &body;
  const dim3 grid = launch.grid, extent = launch.cluster;
  const dim3 clusters(grid.x / extent.x, grid.y / extent.y, grid.z / extent.z);
  const int64_t all = int64_t(clusters.x) * clusters.y * clusters.z;
  const int64_t run = std::min(all, std::max<int64_t>(1, settings().blocks / size_of(extent)));
  for (int64_t i = 0; i < run; ++i) {
    place_cluster(static_cast<unsigned>(i * all / run), clusters);
    run_cluster();
    for (const auto& block : machine.blocks) {
      machine.counts.global_distinct += static_cast<int64_t>(block->sectors.size() * sector);
      block->sectors.clear();
      machine.counts.launching += block->launches_dependents;
    }
  }
  Counters& total = counters()[launch.kernel];
  const Counters& now = machine.counts;
  const auto add = [&](int64_t& to, int64_t amount) { to += amount * all / run; };
  total.launches += 1;
  total.blocks += all * size_of(extent);
  total.threads += all * size_of(extent) * size_of(launch.block);
  add(total.global_read, now.global_read);
  add(total.global_written, now.global_written);
  add(total.global_distinct, now.global_distinct);
  add(total.shared_read, now.shared_read);
  add(total.shared_written, now.shared_written);
  add(total.multiply_adds, now.multiply_adds);
  add(total.barriers, now.barriers);
  add(total.launching, now.launching);
}

void synchronize() {
  ++machine.launches;  // so that no writer is of the launch before the next one
}

void begin_watching() { machine.watching = true; }

dim3 thread_idx() { return self().place; }
dim3 block_idx() { return self().block->place; }
dim3 block_dim() { return machine.launch.block; }
dim3 grid_dim() { return machine.launch.grid; }

}  // namespace vggfast::sim
