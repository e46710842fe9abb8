// How many clusters of a grid run at once. The blocks of a cluster lie within one GPC, and GPCs are uneven, so that the
// SMs may hold fewer than num_sms() / blocks of a cluster.
#pragma once

#include <map>
#include <utility>

#include "cuda/launch.h"

namespace vggfast::cuda {

inline unsigned blocks_of_cluster(const Grid& grid) { return grid.cluster.x * grid.cluster.y * grid.cluster.z; }

#ifdef VGGFAST_SIM

template <class... Params>
int resident_clusters(const char*, void (*)(Params...), const Grid& grid) {
  return sim::resident_clusters(blocks_of_cluster(grid));
}

#else

/// Of the current device, which a thread asks once for each kernel. The grid says threads, shared memory and cluster: a
/// kernel has the same in all its launches.
template <class... Params>
int resident_clusters(const char* name, void (*kernel)(Params...), const Grid& grid) {
  thread_local std::map<std::pair<int, const void*>, int> known;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const std::pair asked(device, reinterpret_cast<const void*>(kernel));
  if (const auto found = known.find(asked); found != known.end()) return found->second;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared_bytes)),
        name);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {grid.cluster.x, grid.cluster.y, grid.cluster.z};
  cudaLaunchConfig_t config{};
  config.gridDim = grid.cluster;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.attrs = &cluster;
  config.numAttrs = 1;
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config), name);
  return known[asked] = clusters;
}

#endif

}  // namespace vggfast::cuda
