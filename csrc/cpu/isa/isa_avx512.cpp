// The kernels for AVX-512 F, BW, DQ, VL: 32 registers, 16 of them accumulators.
#define VGGFAST_ISA avx512
#define VGGFAST_VECTOR_BYTES 64
#define VGGFAST_CONV_PIXELS 8
#define VGGFAST_CONV_VECTORS 2
#define VGGFAST_GEMM_ROWS 12
#define VGGFAST_WGRAD_ROWS 8
#define VGGFAST_STEM_ROWS 3

#include "cpu/kernels/table.h"
