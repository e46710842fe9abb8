// setmaxnreg: registers handed from one warpgroup to another. All warps of a warpgroup do it; the kernel needs launch
// bounds, without which the compiler ignores it (C7508).
#pragma once

#include "cuda/ptx/common.h"
#ifdef VGGFAST_SIM
#include "sim/hopper.h"
#endif

namespace vggfast::ptx {

/// Waits until that many are free. A multiple of 8, 24 to 256.
template <unsigned Registers>
VGGFAST_PTX void setmaxnreg_inc() {
#ifdef VGGFAST_SIM
  sim::setmaxnreg(Registers, true);
#else
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}

template <unsigned Registers>
VGGFAST_PTX void setmaxnreg_dec() {
#ifdef VGGFAST_SIM
  sim::setmaxnreg(Registers, false);
#else
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}

}  // namespace vggfast::ptx
