// Sums over pixels and over a block's threads, in an order that sizes alone decide: every run gives the same bits.
#pragma once

#include "cuda/ptx/sync.h"
#include "cuda/vectors.h"

namespace vggfast::cuda {

/// How a block shares the pixels of some channels: thread t has group t % groups (8 channels) and every lanes-th pixel
/// from t / groups on. Both are powers of two; neighbours in a warp have neighbouring groups.
struct PixelLanes {
  unsigned groups, lanes;

  __host__ __device__ unsigned threads() const { return groups * lanes; }
  /// Of values, that sum_pixels needs; more than one to a thread.
  __host__ __device__ unsigned scratch() const { return vector_channels / 2 * threads(); }
  __device__ unsigned group() const { return threadIdx.x % groups; }
  __device__ unsigned lane() const { return threadIdx.x / groups; }
};

/// As many groups side by side as there are, up to `most_groups`.
inline PixelLanes pixel_lanes(int64_t groups, unsigned most_groups, unsigned threads) {
  unsigned side_by_side = 1;
  while (side_by_side < most_groups && side_by_side < groups) side_by_side *= 2;
  return {side_by_side, threads / side_by_side};
}

/// sums, in the threads of lane 0: over the pixels, of the `count` channels (8 at most count) that begin at x, pixels
/// `stride` apart. Threads add up their own pixels, then halves of the lanes meet in scratch. Ends with a barrier.
template <bool Aligned, class T>
__device__ __forceinline__ void sum_pixels(PixelLanes p, const T* x, int64_t pixels, int64_t stride, int64_t count,
                                           Wide<T>* scratch, Wide<T> (&sums)[vector_channels]) {
#pragma unroll
  for (int i = 0; i < vector_channels; ++i) sums[i] = 0;
  if (count > 0) {
#pragma unroll 4
    for (int64_t pixel = p.lane(); pixel < pixels; pixel += p.lanes) {
      const Channels<T> v = load_channels<Aligned>(x + pixel * stride, count);
#pragma unroll
      for (int i = 0; i < vector_channels; ++i) sums[i] += widen(v.at[i]);
    }
  }
  const unsigned slots = p.threads() / 2;
  for (unsigned half = p.lanes / 2; half > 0; half /= 2) {
    if (p.lane() >= half && p.lane() < 2 * half) {
#pragma unroll
      for (int i = 0; i < vector_channels; ++i) scratch[i * slots + threadIdx.x - half * p.groups] = sums[i];
    }
    ptx::sync_threads();
    if (p.lane() < half) {
#pragma unroll
      for (int i = 0; i < vector_channels; ++i) sums[i] += scratch[i * slots + threadIdx.x];
    }
    ptx::sync_threads();
  }
}

/// op over all threads' values, in every thread; as many threads as a power of two, and as many values of scratch.
template <class W, class Op>
__device__ __forceinline__ W reduce_block(W value, W* scratch, Op op) {
  ptx::sync_threads();  // what an earlier call returned has been read
  scratch[threadIdx.x] = value;
  ptx::sync_threads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) scratch[threadIdx.x] = op(scratch[threadIdx.x], scratch[threadIdx.x + half]);
    ptx::sync_threads();
  }
  return scratch[0];
}

}  // namespace vggfast::cuda
