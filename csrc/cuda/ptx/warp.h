// Shuffles and votes.
#pragma once

#include "cuda/ptx/sync.h"

namespace vggfast::ptx {

/// The value of the lane whose number differs from this one's by these bits.
VGGFAST_PTX uint32_t shfl_xor(uint32_t value, unsigned lanes, uint32_t mask = all_lanes) {
#ifdef VGGFAST_SIM
  return sim::shuffle_xor(mask, value, lanes);
#else
  return __shfl_xor_sync(mask, value, lanes);
#endif
}

/// The value of `lane`.
VGGFAST_PTX uint32_t shfl(uint32_t value, unsigned lane, uint32_t mask = all_lanes) {
#ifdef VGGFAST_SIM
  return sim::shuffle(mask, value, lane);
#else
  return __shfl_sync(mask, value, lane);
#endif
}

/// A bit for each lane: its vote.
VGGFAST_PTX uint32_t ballot(bool vote, uint32_t mask = all_lanes) {
#ifdef VGGFAST_SIM
  return sim::ballot(mask, vote);
#else
  return __ballot_sync(mask, vote);
#endif
}

}  // namespace vggfast::ptx
