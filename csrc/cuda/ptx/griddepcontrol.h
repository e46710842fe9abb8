// griddepcontrol: a kernel may start while the one before it on the stream still runs (programmatic dependent launch,
// csrc/cuda/launch.h). So each of ours has `wait` before its first read of what another kernel wrote, and before its
// first write. Where blocks stay for many tiles, `launch_dependents` follows a block's last loads; where they are short
// it comes at once, as the next kernel starts no earlier than the last of them. Before sm_90 both do nothing.
#pragma once

#include "cuda/ptx/common.h"

namespace vggfast::ptx {

/// The next kernel may be launched once all blocks have come here or have ended. After `wait`: else it might start
/// before the kernels before this one have ended.
VGGFAST_PTX void griddepcontrol_launch_dependents() {
#ifdef VGGFAST_SIM
  sim::griddepcontrol_launch_dependents();
#elif __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Until the kernels before have ended, and what they wrote is seen.
VGGFAST_PTX void griddepcontrol_wait() {
#ifdef VGGFAST_SIM
  sim::griddepcontrol_wait();
#elif __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace vggfast::ptx
