// CUDA's words, for the host compiler: what the kernels of csrc/cuda use of the language beyond C++ itself.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3() = default;
  constexpr dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace vggfast::sim {

dim3 thread_idx();
dim3 block_idx();
dim3 block_dim();
dim3 grid_dim();

}  // namespace vggfast::sim

#define threadIdx (::vggfast::sim::thread_idx())
#define blockIdx (::vggfast::sim::block_idx())
#define blockDim (::vggfast::sim::block_dim())
#define gridDim (::vggfast::sim::grid_dim())
