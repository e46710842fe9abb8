// Fences between the proxies, elect.sync, setmaxnreg; and what a place in shared memory is called by instructions.
#include <algorithm>
#include <numeric>

#include "sim/hopper.h"
#include "sim/instructions.h"
#include "sim/warp.h"

namespace vggfast::sim {
namespace {

/// Gives the fence a moment of its own: after all that the thread did, before all that it will do.
void record(std::vector<uint32_t>& fences) {
  Thread& me = self();
  tick(me);
  fences.push_back(me.now());
  tick(me);
}

constexpr unsigned registers_of_an_sm = 65536;

/// What the compiler gives each thread where launch bounds name only the block: the most that fits.
unsigned granted_registers(const Block& block) {
  constexpr unsigned most = 255, multiple = 8;
  const unsigned warps = (block.threads + 31) / 32;
  return std::min(most, registers_of_an_sm / (warps * 32)) / multiple * multiple;
}

unsigned registers_in_use(const Block& block) {
  return 32 * std::accumulate(block.registers.begin(), block.registers.end(), 0u);
}

struct Request {
  unsigned registers;
  bool more;
};

}  // namespace

uint32_t shared_address(const void* pointer) {
  const SharedMemory& shared = self().block->shared;
  return static_cast<uint32_t>(shared.offset_of(pointer)) + SharedMemory::first_address;
}

void fence_proxy_async() {
  const Quiet quiet;
  record(self().fences);
}

void fence_mbarrier_init() {
  const Quiet quiet;
  record(self().init_fences);
}

bool elect(uint32_t mask) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  meet("elect", mask, nullptr, site, [](Thread* const*, void* const*, uint32_t) {});
  // Any lane may be the one, but for a mask it is always the same.
  const uint64_t mixed = (settings().seed + 1) * 0x9e3779b97f4a7c15u + mask;
  unsigned skipped = static_cast<unsigned>((mixed >> 40) % static_cast<unsigned>(std::popcount(mask)));
  for (uint32_t rest = mask;; rest &= rest - 1) {
    if (skipped-- == 0) return static_cast<unsigned>(std::countr_zero(rest)) == self().lane;
  }
}

void setmaxnreg(unsigned registers, bool more) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  if (registers % 8 || registers < 24 || registers > 256) {
    fault(site, "setmaxnreg must name a multiple of 8 from 24 to 256 registers, got ", registers);
  }
  Request mine{registers, more};
  meet(more ? "setmaxnreg.inc" : "setmaxnreg.dec", all_lanes, &mine, site,
       [](Thread* const*, void* const*, uint32_t) {});
  Thread& me = self();
  Block& block = *me.block;
  const unsigned granted = granted_registers(block), warps = (block.threads + 31) / 32;
  if (block.registers.empty()) block.registers.assign(warps, granted);
  unsigned& own = block.registers[me.index % block.threads / 32];
  if (me.lane == 0) {
    if (more ? registers < own : registers > own) {
      fault(site, "setmaxnreg.", more ? "inc" : "dec", " from ", own, " to ", registers, " registers");
    }
    while (more && registers_in_use(block) + 32 * (registers - own) > warps * 32 * granted) {
      block.wait_for_registers.push_back(&me);
      wait_for("registers that other warps have yet to give up", site);
    }
    own = registers;
    if (!more) {
      for (Thread* t : block.wait_for_registers) wake(*t);
      block.wait_for_registers.clear();
    }
  }
  meet("setmaxnreg", all_lanes, &mine, site, [](Thread* const*, void* const*, uint32_t) {});
}

}  // namespace vggfast::sim
