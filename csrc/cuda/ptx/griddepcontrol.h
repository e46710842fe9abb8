// griddepcontrol: a kernel may start while the one before it on the stream still runs (programmatic dependent launch).
// The simulator runs kernels one after the other, so that both do nothing there.
#pragma once

#include "cuda/ptx/common.h"

namespace vggfast::ptx {

/// The next kernel may be launched once all blocks have come here or have ended.
VGGFAST_PTX void griddepcontrol_launch_dependents() {
#ifndef VGGFAST_SIM
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Until the kernels before have ended, and what they wrote is seen.
VGGFAST_PTX void griddepcontrol_wait() {
#ifndef VGGFAST_SIM
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace vggfast::ptx
