// The kernels for any processor: 16-byte vectors (SSE2 on x86-64, Neon on aarch64).
#define VGGFAST_ISA portable
#define VGGFAST_VECTOR_BYTES 16
#define VGGFAST_CONV_PIXELS 4
#define VGGFAST_CONV_VECTORS 2
#define VGGFAST_GEMM_ROWS 6
#define VGGFAST_WGRAD_ROWS 4
#define VGGFAST_STEM_ROWS 1

#include "cpu/kernels/table.h"
