// A mask's bytes (vggfast/mask.h) from bits that the threads of a warp hold: one for each of their items, of
// one channel. A byte is of eight channels, which lie in the eight lanes that share `within`.
#pragma once

#include "cuda/conv/sm90/epilogue/staging.h"
#include "cuda/ptx/warp.h"

namespace vggfast::cuda::hopper {

/// Bit b of byte q of lane (group, within) goes to bit `group` of byte q of lane (b, within): each byte of the eight
/// lanes is a matrix of 8 x 8 bits, which is transposed.
__device__ __forceinline__ uint32_t transpose_bits(uint32_t word, int group) {
  constexpr uint32_t low_bits[] = {0x0f0f0f0f, 0x33333333, 0x55555555};
#pragma unroll
  for (int round = 0; round < 3; ++round) {
    const int distance = 4 >> round;
    const uint32_t low = low_bits[round], other = ptx::shfl_xor(word, 4 * distance);
    word = group & distance ? (word & ~low) | (other & ~low) >> distance : (word & low) | (other & low) << distance;
  }
  return word;
}

/// Bytes of one plane: bit b of words[k] is item 32 k + b. Of eight items from `item` on, this lane stores the byte of
/// number `group`: byte_of(item) says where, or null.
template <int Items, class ByteOf>
__device__ __forceinline__ void store_bytes(const uint32_t (&words)[(Items + 31) / 32], const Lane& at,
                                            ByteOf byte_of) {
#pragma unroll
  for (int k = 0; k < (Items + 31) / 32; ++k) {
    const uint32_t bytes = transpose_bits(words[k], at.group);
#pragma unroll
    for (int q = 0; q < 4 && 32 * k + 8 * q < Items; ++q) {
      uint8_t* const to = byte_of(32 * k + 8 * q);
      if (to) *to = static_cast<uint8_t>(bytes >> 8 * q);
    }
  }
}

}  // namespace vggfast::cuda::hopper
