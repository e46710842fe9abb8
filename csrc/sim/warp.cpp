#include "sim/warp.h"

#include <cstring>

#include "sim/instructions.h"

namespace vggfast::sim {
namespace {

/// Lanes that the running thread's warp has: the last warp of a block may be cut.
uint32_t lanes_of_warp() {
  const Thread& me = self();
  const unsigned first = me.index % me.block->threads / 32 * 32;
  const unsigned count = std::min(32u, me.block->threads - first);
  return count == 32 ? all_lanes : (1u << count) - 1;
}

struct Exchange {
  uint32_t value;
  uint32_t selector;
  uint32_t result;
};

}  // namespace

void meet(const char* what, uint32_t mask, void* operands, const void* site, Together execute) {
  Thread& me = self();
  mask &= lanes_of_warp();
  if (!(mask >> me.lane & 1)) fault(site, what, " with a mask that lacks the lane itself");
  auto& meetings = machine.meetings[me.warp];
  Meeting* meeting = nullptr;
  for (Meeting& open : meetings) {
    if (!(open.mask & mask)) continue;
    if (open.mask != mask || std::strcmp(open.what, what) != 0) {
      const unsigned other = static_cast<unsigned>(std::countr_zero(open.arrived));
      fault(site, "divergent warp: this lane is at ", what, " while lane ", other, " waits at ", open.what, ", ",
            where(open.sites[other]));
    }
    meeting = &open;
  }
  if (!meeting) meeting = &meetings.emplace_back(Meeting{what, mask, 0, {}, {}});
  meeting->arrived |= 1u << me.lane;
  meeting->operands[me.lane] = operands;
  meeting->sites[me.lane] = site;
  if (meeting->arrived != mask) return wait_for(what, site);
  const Meeting met = *meeting;
  meetings.erase(meetings.begin() + (meeting - meetings.data()));
  Thread* lanes[32] = {};
  const unsigned first = me.index - me.lane;
  for_lanes(mask, [&](unsigned lane) { lanes[lane] = machine.threads[first + lane].get(); });
  execute(lanes, met.operands, mask);
  for_lanes(mask & ~(1u << me.lane), [&](unsigned lane) { wake(*lanes[lane]); });
}

namespace {

uint32_t exchange(uint32_t mask, uint32_t value, unsigned lane, const void* site) {
  const Quiet quiet;
  Exchange mine{value, lane % 32, 0};
  if (!(mask >> mine.selector & 1)) fault(site, "shuffles from lane ", mine.selector, ", which is not in the mask");
  meet("shfl", mask, &mine, site, [](Thread* const*, void* const* operands, uint32_t met) {
    for_lanes(met, [&](unsigned l) {
      Exchange& to = *static_cast<Exchange*>(operands[l]);
      to.result = static_cast<Exchange*>(operands[to.selector])->value;
    });
  });
  return mine.result;
}

}  // namespace

uint32_t shuffle(uint32_t mask, uint32_t value, unsigned lane) { return exchange(mask, value, lane, SIM_SITE); }

uint32_t shuffle_xor(uint32_t mask, uint32_t value, unsigned lanes) {
  return exchange(mask, value, self().lane ^ lanes, SIM_SITE);
}

uint32_t ballot(uint32_t mask, bool vote) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  Exchange mine{vote, 0, 0};
  meet("vote", mask, &mine, site, [](Thread* const*, void* const* operands, uint32_t met) {
    uint32_t votes = 0;
    for_lanes(met, [&](unsigned l) { votes |= static_cast<Exchange*>(operands[l])->value << l; });
    for_lanes(met, [&](unsigned l) { static_cast<Exchange*>(operands[l])->result = votes; });
  });
  return mine.result;
}

}  // namespace vggfast::sim
