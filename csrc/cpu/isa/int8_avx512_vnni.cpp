// The 8-bit kernels for AVX-512 VNNI: vpdpbusd.
#define VGGFAST_ISA avx512_vnni
#define VGGFAST_VECTOR_BYTES 64
#define VGGFAST_INT8_TERMS 4                   // of a word
#define VGGFAST_INT8_PIXELS 14                 // of a register tile, by 2 vectors of output channels
#define VGGFAST_INT8_WEIGHT_BYTES (512 << 10)  // of 1 MB of L2

#include "cpu/kernels/int8_table.h"
