// The one way by which a kernel is started, on the GPU or in the simulator, and the check that follows it.
#pragma once

#include <cstdlib>
#include <map>
#include <string_view>
#include <utility>

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
  bool dependent = true;    // whether the kernel may start before those before it have ended, for which it then waits
};

inline const char* const dependent_launches_asked_for = std::getenv("VGGFAST_CUDA_DEPENDENT_LAUNCH");
/// Whether kernels may: 1, as where it is not set, or 0.
inline bool dependent_launches() {
  const std::string_view asked = dependent_launches_asked_for ? dependent_launches_asked_for : "1";
  VGGFAST_CHECK(asked == "0" || asked == "1", "VGGFAST_CUDA_DEPENDENT_LAUNCH must be 0 or 1, got '", asked, "'");
  return asked == "1";
}

#ifdef VGGFAST_SIM

template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), const Grid& grid, const Context&, Args&&... args) {
  const bool dependent = grid.dependent && dependent_launches();
  sim::launch({name, grid.blocks, grid.threads, grid.cluster, grid.shared_bytes, grid.persistent, dependent},
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

/// Whether `kernel` may be a dependent launch. Code for older GPUs, translated for a newer one, waits for nothing;
/// drivers before CUDA 12.3 have no such launches in graphs; a capture on compute capability 12.0 was seen to fail
/// (sgl-project/sglang, pull request 18596).
inline bool can_wait(const void* kernel) {
  constexpr int hopper = 90, least_driver = 12030;
  thread_local std::map<std::pair<int, const void*>, bool> known;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const std::pair asked(device, kernel);
  if (!known.contains(asked)) {
    cudaFuncAttributes attributes{};
    int driver = 0;
    check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
    check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    known[asked] = is_hopper() && attributes.ptxVersion >= hopper && driver >= least_driver;
  }
  return known[asked];
}

template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), const Grid& grid, const Context& context, Args&&... args) {
  constexpr size_t granted_unasked = 48 << 10;
  if (grid.shared_bytes > granted_unasked) {
    check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared_bytes)),
        name);
  }
  cudaLaunchAttribute attributes[2]{};
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = static_cast<cudaStream_t>(context.stream);
  config.attrs = attributes;
  if (grid.cluster.x * grid.cluster.y * grid.cluster.z > 1) {
    cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {grid.cluster.x, grid.cluster.y, grid.cluster.z};
  }
  if (grid.dependent && dependent_launches() && can_wait(reinterpret_cast<const void*>(kernel))) {
    cudaLaunchAttribute& dependent = attributes[config.numAttrs++];
    dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    dependent.val.programmaticStreamSerializationAllowed = 1;
  }
  check(cudaLaunchKernelEx(&config, kernel, Params(args)...), name);
}

#endif

}  // namespace vggfast::cuda
