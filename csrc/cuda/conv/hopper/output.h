// What a convolution's outputs are, and where they go.
#pragma once

#include "cuda/conv/hopper/schedule.h"

namespace vggfast::cuda::hopper {

/// Of sums of T's products, as U.
template <class T, class U>
struct Output {
  U* y;
  const BiasOf<T, U>* bias;    // or null
  float scale;                 // of sums of quantised values; else without meaning
  uint8_t* selection;          // or null
  Extent sums;                 // before the pool
  Divider pooled_w, pooled_h;  // for flat tiles
  bool relu, pool;
};

__device__ __forceinline__ bool passes(float sum) { return !(sum <= 0.0f); }  // NaN does

}  // namespace vggfast::cuda::hopper
