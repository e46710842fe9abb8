// What a convolution's outputs are, where they go, and the bytes of their mask (vggfast/mask.h). The threads of a warp
// hold the mask as bits: one for each of their items (pixels), of one channel. A byte has eight channels, which lie in
// the eight lanes that share `within` (staging.h, Lane).
#pragma once

#include "cuda/conv/sm90/core/schedule.h"
#include "cuda/conv/sm90/epilogue/staging.h"
#include "cuda/ptx/warp.h"

namespace vggfast::cuda::sm90 {

/// Outputs of type U, from sums of products of T.
template <class T, class U>
struct Output {
  U* y;
  const BiasOf<T, U>* bias;    // or null
  float scale;                 // of sums of quantised values; else without meaning
  uint8_t* mask;               // or null
  const uint8_t* x_mask;       // FpropProblem's
  Extent sums;                 // before the pool
  Divider pooled_w, pooled_h;  // for im2col tiles
  bool relu, pool;
};

__device__ __forceinline__ bool passes(float sum) { return !(sum <= 0.0f); }  // NaN does

/// Of a window's pixels, row-major, the first maximum and which it is; NaN is one.
__device__ __forceinline__ float first_maximum(const float (&window)[4], unsigned& chosen) {
  float most = window[0];
  chosen = 0;
#pragma unroll
  for (unsigned i = 1; i < 4; ++i) {
    if (!(window[i] > most) && window[i] == window[i]) continue;
    most = window[i];
    chosen = i;
  }
  return most;
}

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

/// The reverse: bits from bytes that byte_of(item) says, 0 where it is null.
template <int Items, class ByteOf>
__device__ __forceinline__ void load_bytes(uint32_t (&words)[(Items + 31) / 32], const Lane& at, ByteOf byte_of) {
#pragma unroll
  for (int k = 0; k < (Items + 31) / 32; ++k) {
    uint32_t bytes = 0;
#pragma unroll
    for (int q = 0; q < 4 && 32 * k + 8 * q < Items; ++q) {
      const uint8_t* const from = byte_of(32 * k + 8 * q);
      if (from) bytes |= uint32_t(*from) << 8 * q;
    }
    words[k] = transpose_bits(bytes, at.group);
  }
}

}  // namespace vggfast::cuda::sm90
