// 2 x 2 max-pool of what the output stage of an im2col tile holds: [pixel][64 channels] of 16 bits, swizzled. The stage
// has whole pairs of image rows, so every window is complete. A thread takes eight channels of a window: four reads and
// one store of 16 bytes, and a byte of each plane of the mask. The maxima are of rounded values, as in torch, where the
// pool follows the rounding.
#pragma once

#include "cuda/conv/sm90/epilogue/output.h"
#include "cuda/vectors.h"

namespace vggfast::cuda::sm90 {

template <class U>
struct PooledChannels {
  Channels<U> best;
  unsigned passes = 0, column = 0, below = 0;  // a bit for each channel

  /// The window whose first pixel is `pixel`, `w` pixels above the one below.
  __device__ __forceinline__ PooledChannels(const char* stage, int pixel, int w, int chunk, bool relu) {
    const auto at = [&](int of) { return *reinterpret_cast<const Chunk*>(stage + swizzled_offset(of, chunk)); };
    const Chunk parts[4] = {at(pixel), at(pixel + 1), at(pixel + w), at(pixel + w + 1)};
#pragma unroll
    for (int i = 0; i < vector_channels; ++i) {
      const auto value = [&](int part) { return widen(parts[part].values.at[i]); };
      unsigned chosen;
      const float most = first_maximum({value(0), value(1), value(2), value(3)}, chosen);
      passes |= unsigned(sm90::passes(most)) << i;
      column |= (chosen & 1) << i;
      below |= (chosen >> 1) << i;
      best.at[i] = narrow<U>(relu && !sm90::passes(most) ? 0.0f : most);
    }
  }

 private:
  struct alignas(chunk_bytes) Chunk {
    Channels<U> values;
  };
};

/// Pools the stage's pixels, which are `Pixels` of all images' from `first` on, for 64 channels from `channel` on.
template <int Pixels, class T, class U>
__device__ __forceinline__ void pool_stage(const char* stage, const Output<T, U>& out, int channel, int first) {
  constexpr int chunks = warpgroup_channels / vector_channels;
  const int thread = static_cast<int>(threadIdx.x) % warpgroup_threads, chunk = thread % chunks;
  const int w = out.sums.w, across = w / 2, first_pair = first / (2 * w), c = out.sums.c;
  const int windows = Pixels / (2 * w) * across;
  const int64_t plane_bytes = int64_t(out.sums.h / 2) * across * (c / 8);
  if (channel + chunk * vector_channels >= c) return;
  for (int window = thread / chunks; window < windows; window += warpgroup_threads / chunks) {
    const int pair = out.pooled_w.quotient(window), x = window - pair * across, pixel = 2 * (pair * w + x);
    if (first + pixel >= out.sums.pixels()) return;
    const PooledChannels<U> pooled(stage, pixel, w, chunk, out.relu);
    const int64_t number = int64_t(first_pair + pair) * across + x;
    store_channels<true>(out.y + number * c + channel + chunk * vector_channels, vector_channels, pooled.best);
    if (!out.mask) continue;
    const int image = out.pooled_h.quotient(first_pair + pair), planes = out.relu ? 3 : 2;
    uint8_t* plane = out.mask + number * (c / 8) + int64_t(image) * (planes - 1) * plane_bytes + channel / 8 + chunk;
    const unsigned bits[3] = {pooled.passes, pooled.column, pooled.below};
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      if (i == 0 && !out.relu) continue;
      *plane = static_cast<uint8_t>(bits[i]);
      plane += plane_bytes;
    }
  }
}

}  // namespace vggfast::cuda::sm90
