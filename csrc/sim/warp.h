// Instructions that lanes of a warp do together.
#pragma once

#include <bit>
#include <cstdint>

#include "sim/machine.h"

namespace vggfast::sim {

template <class Visit>
void for_lanes(uint32_t mask, Visit visit) {
  for (; mask; mask &= mask - 1) visit(static_cast<unsigned>(std::countr_zero(mask)));
}

/// `lanes` of the running thread's warp, and what each brought; both by lane.
using Together = void (*)(Thread* const* lanes, void* const* operands, uint32_t mask);
/// Waits for all lanes of `mask`, the last of which executes for all. Faults where one of them is at another
/// instruction.
void meet(const char* what, uint32_t mask, void* operands, const void* site, Together execute);

}  // namespace vggfast::sim
