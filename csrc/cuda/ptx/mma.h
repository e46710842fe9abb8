// mma.sync, sm_80 and later: d (16 x 8, float32) += a (16 x k) b (k x 8). With g = lane / 4 and t = lane % 4, a lane
// has rows g and g + 8 of d, columns 2 t and the next; a and b hold k = 16 values of 16 bits or 8 of tf32 (PTX manual,
// "Matrix Fragments for mma.m16n8k16" and "m16n8k8").
#pragma once

#include "cuda/ptx/common.h"

#ifdef VGGFAST_SIM
#define VGGFAST_MMA(name, type, instruction)                                             \
  VGGFAST_PTX void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    sim::mma(sim::Operand::type, d, a, b);                                               \
  }
#else
#define VGGFAST_MMA(name, type, instruction)                                                    \
  VGGFAST_PTX void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {        \
    asm volatile(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                               \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));           \
  }
#endif

namespace vggfast::ptx {

VGGFAST_MMA(mma_bf16, bf16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
VGGFAST_MMA(mma_f16, f16, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
VGGFAST_MMA(mma_tf32, tf32, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")

}  // namespace vggfast::ptx

#undef VGGFAST_MMA
