// The one way by which a kernel is started, and the check that follows it.
#pragma once

#include <cuda_runtime.h>

#include "vggfast/error.h"
#include "vggfast/tensor.h"

namespace vggfast::cuda {

inline void check(cudaError_t status, const char* what) {
  VGGFAST_CHECK(status == cudaSuccess, what, ": ", cudaGetErrorName(status), ", ", cudaGetErrorString(status));
}

struct Grid {
  dim3 blocks;
  dim3 threads;
  size_t shared_bytes = 0;
};

template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), const Grid& grid, const Context& context, Args&&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = static_cast<cudaStream_t>(context.stream);
  check(cudaLaunchKernelEx(&config, kernel, Params(args)...), name);
}

}  // namespace vggfast::cuda
