// What a convolution's outputs are, and where they go.
#pragma once

#include "cuda/conv/sm90/core/schedule.h"

namespace vggfast::cuda::hopper {

/// Of sums of T's products, as U.
template <class T, class U>
struct Output {
  U* y;
  const BiasOf<T, U>* bias;    // or null
  float scale;                 // of sums of quantised values; else without meaning
  uint8_t* mask;               // or null
  Extent sums;                 // before the pool
  Divider pooled_w, pooled_h;  // for flat tiles
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

}  // namespace vggfast::cuda::hopper
