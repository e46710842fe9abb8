// The 8-bit kernels for any processor.
#define VGGFAST_ISA portable
#define VGGFAST_VECTOR_BYTES 16
#define VGGFAST_INT8_TERMS 4   // of a word
#define VGGFAST_INT8_PIXELS 4  // of a register tile, by 2 vectors of output channels
#define VGGFAST_INT8_WEIGHT_BYTES (256 << 10)

#include "cpu/kernels/int8_table.h"
