// The 8-bit kernels for AVX2: vpmaddwd. vpmaddubsw would saturate.
#define VGGFAST_ISA avx2
#define VGGFAST_VECTOR_BYTES 32
#define VGGFAST_INT8_TERMS 2                   // of a word
#define VGGFAST_INT8_PIXELS 6                  // of a register tile, by 2 vectors of output channels
#define VGGFAST_INT8_WEIGHT_BYTES (256 << 10)  // of 512 KB of L2

#include "cpu/kernels/int8_table.h"
