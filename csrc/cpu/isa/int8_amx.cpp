// The 8-bit kernels for AMX: on the tiles of the processor, with AVX-512 VNNI for one row.
#define VGGFAST_ISA amx
#define VGGFAST_VECTOR_BYTES 64
#define VGGFAST_INT8_TERMS 4  // of a word

#include "cpu/kernels/tile_int8.h"

const vggfast::cpu::TileInt8Kernels vggfast::cpu::amx::int8_tiles = tile_int8_kernels<HardwareTiles>;
