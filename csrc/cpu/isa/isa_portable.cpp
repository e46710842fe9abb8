// The kernels for any processor: 16-byte vectors (SSE2 on x86-64, Neon on aarch64).
#define VGGFAST_ISA portable
#define VGGFAST_VECTOR_BYTES 16
#define VGGFAST_CONV_PIXELS 4   // of a register tile of the direct convolution,
#define VGGFAST_CONV_VECTORS 2  // by vectors of float output channels
#define VGGFAST_GEMM_ROWS 6     // of a register tile of Winograd's products and the first layer, by 2 vectors
#define VGGFAST_WGRAD_ROWS 4    // of a register tile of wgrad's products, by up to 3 vectors
#define VGGFAST_STEM_ROWS 1     // kernel rows whose sums are in registers in the first layer's wgrad

#include "cpu/kernels/table.h"
