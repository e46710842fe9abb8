// The kernels for AVX2 and FMA: 16 registers, 8 of them accumulators.
#define VGGFAST_ISA avx2
#define VGGFAST_VECTOR_BYTES 32
#define VGGFAST_CONV_PIXELS 4
#define VGGFAST_CONV_VECTORS 2
#define VGGFAST_GEMM_ROWS 6
#define VGGFAST_WGRAD_ROWS 4
#define VGGFAST_STEM_ROWS 1

#include "cpu/kernels/table.h"
