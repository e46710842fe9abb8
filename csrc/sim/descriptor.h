// The 64-bit descriptor by which wgmma finds an operand in shared memory, and where each element of the operand lies.
#pragma once

#include <cstdint>

#include "sim/tma.h"

namespace vggfast::sim {

struct Descriptor {
  uint32_t start, leading, stride;  // in bytes
  unsigned base_offset;
  unsigned swizzle;  // the span in bytes, or 0
  bool is_legal;     // no bit is set that has no meaning

  explicit Descriptor(uint64_t bits) {
    const auto field = [bits](unsigned shift) { return static_cast<uint32_t>(bits >> shift & 0x3fff) << 4; };
    start = field(0);
    leading = field(16);
    stride = field(32);
    base_offset = static_cast<unsigned>(bits >> 49 & 7);
    constexpr unsigned spans[] = {0, 128, 64, 32};
    swizzle = spans[bits >> 62];
    is_legal = (bits & 0x3ff1c000c000c000u) == 0;
  }

  /// The address of byte `k` of row `row` (of M or N) where K is contiguous: cores of 8 rows, `stride` apart.
  uint32_t k_major(unsigned row, unsigned k) const {
    if (swizzle == 0) return start + row / 8 * stride + row % 8 * 16 + k / 16 * leading + k % 16;
    return permuted(start + row / 8 * stride + row % 8 * swizzle + k);
  }
  /// The address of 16-bit element (`row`, `k`) where M or N is contiguous: blocks of a swizzle's span of rows,
  /// `leading` apart; within them lines for each k, every 8 of which `stride` apart.
  uint32_t mn_major(unsigned row, unsigned k) const {
    const unsigned byte = row * 2;
    if (swizzle == 0) return start + byte / 16 * stride + k / 8 * leading + k % 8 * 16 + byte % 16;
    return permuted(start + byte / swizzle * leading + k / 8 * stride + k % 8 * swizzle + byte % swizzle);
  }

 private:
  /// The pattern repeats every 8 lines of 128 bytes; the base offset says in which of them it starts.
  uint32_t permuted(uint32_t address) const {
    const uint32_t shift = base_offset << 7;
    return (swizzled(address - shift, swizzle) & 0x7f) | (address & ~0x7fu);
  }
};

}  // namespace vggfast::sim
