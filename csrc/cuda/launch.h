// The one way by which a kernel is started, on the GPU or in the simulator, and the check that follows it.
#pragma once

#ifdef VGGFAST_SIM
#include "sim/sim.h"
#else
#include <cuda_runtime.h>
#endif

#include "vggfast/error.h"
#include "vggfast/tensor.h"

namespace vggfast::cuda {

struct Grid {
  dim3 blocks;
  dim3 threads;
  size_t shared_bytes = 0;
  dim3 cluster = 1;
  bool persistent = false;  // whether all clusters are to run at once: there may be no more than fit (occupancy.h)
};

#ifdef VGGFAST_SIM

template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), const Grid& grid, const Context&, Args&&... args) {
  sim::launch({name, grid.blocks, grid.threads, grid.cluster, grid.shared_bytes, grid.persistent},
              [&]() __attribute__((no_sanitize("thread"))) {
                sim::begin_watching();
                kernel(Params(args)...);
              });
}

/// Of the current device.
inline int num_sms() { return sim::settings().num_sms; }
inline bool is_hopper() { return true; }

#else

inline void check(cudaError_t status, const char* what) {
  VGGFAST_CHECK(status == cudaSuccess, what, ": ", cudaGetErrorName(status), ", ", cudaGetErrorString(status));
}

template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), const Grid& grid, const Context& context, Args&&... args) {
  constexpr size_t granted_unasked = 48 << 10;
  if (grid.shared_bytes > granted_unasked) {
    check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared_bytes)),
        name);
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {grid.cluster.x, grid.cluster.y, grid.cluster.z};
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = static_cast<cudaStream_t>(context.stream);
  config.attrs = &cluster;
  config.numAttrs = grid.cluster.x * grid.cluster.y * grid.cluster.z > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, Params(args)...), name);
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

/// Of the current device.
inline int num_sms() { return device_attribute(cudaDevAttrMultiProcessorCount); }
inline bool is_hopper() {
  return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         device_attribute(cudaDevAttrComputeCapabilityMinor) == 0;
}

#endif

}  // namespace vggfast::cuda
