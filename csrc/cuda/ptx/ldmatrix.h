// ldmatrix, stmatrix: 8 x 8 matrices of 16-bit values between shared memory and a warp's registers. Lane 8 i + r points
// at row r (16 bytes, aligned) of matrix i; lane l gets columns 2 (l % 4) and the next of row l / 4, or, transposed,
// rows 2 (l % 4) and the next of column l / 4. stmatrix (sm_90) is the way back.
#pragma once

#include "cuda/ptx/common.h"

namespace vggfast::ptx {

VGGFAST_PTX void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
#ifdef VGGFAST_SIM
  sim::ldmatrix(r, 4, false, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

VGGFAST_PTX void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
#ifdef VGGFAST_SIM
  sim::ldmatrix(r, 4, true, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

VGGFAST_PTX void stmatrix_x4(void* row, const uint32_t (&r)[4]) {
#ifdef VGGFAST_SIM
  sim::stmatrix(r, 4, false, row);
#else
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#endif
}

VGGFAST_PTX void stmatrix_x4_trans(void* row, const uint32_t (&r)[4]) {
#ifdef VGGFAST_SIM
  sim::stmatrix(r, 4, true, row);
#else
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#endif
}

/// Of two matrices: lanes 0 to 15 point at their rows.
VGGFAST_PTX void stmatrix_x2_trans(void* row, const uint32_t (&r)[2]) {
#ifdef VGGFAST_SIM
  sim::stmatrix(r, 2, true, row);
#else
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(row)), "r"(r[0]),
               "r"(r[1])
               : "memory");
#endif
}

}  // namespace vggfast::ptx
