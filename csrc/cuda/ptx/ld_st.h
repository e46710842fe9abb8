// 16 bytes of global memory in one access (LDG.128, STG.128); addresses are multiples of 16.
#pragma once

#include "cuda/ptx/common.h"

namespace vggfast {

/// What one access moves.
struct Words4 {
  uint32_t at[4];
};

}  // namespace vggfast

namespace vggfast::ptx {

#ifdef VGGFAST_SIM
using Vector4 = uint32_t __attribute__((vector_size(16), may_alias));  // the processor faults at other addresses, too
#else
using Vector4 = uint4;
#endif

VGGFAST_PTX Words4 ld_global_v4(const void* address) {
  const Vector4 v = *static_cast<const Vector4*>(address);
#ifdef VGGFAST_SIM
  return {{v[0], v[1], v[2], v[3]}};
#else
  return {{v.x, v.y, v.z, v.w}};
#endif
}

VGGFAST_PTX void st_global_v4(void* address, Words4 v) {
#ifdef VGGFAST_SIM
  *static_cast<Vector4*>(address) = Vector4{v.at[0], v.at[1], v.at[2], v.at[3]};
#else  // nvcc takes a uint4 apart where its words come from narrower values
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(address)), "r"(v.at[0]),
               "r"(v.at[1]), "r"(v.at[2]), "r"(v.at[3])
               : "memory");
#endif
}

}  // namespace vggfast::ptx
