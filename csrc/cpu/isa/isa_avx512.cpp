// The kernels for AVX-512 F, BW, DQ, VL, which have 32 registers.
#define VGGFAST_ISA avx512
#define VGGFAST_VECTOR_BYTES 64
#define VGGFAST_CONV_PIXELS 8   // of a register tile of the direct convolution,
#define VGGFAST_CONV_VECTORS 2  // by vectors of float output channels
#define VGGFAST_GEMM_ROWS 12    // of a register tile of Winograd's products and the first layer, by 2 vectors
#define VGGFAST_WGRAD_ROWS 8    // of a register tile of wgrad's products, by up to 3 vectors
#define VGGFAST_STEM_ROWS 3     // kernel rows whose sums are in registers in the first layer's wgrad

#include "cpu/kernels/table.h"
