// The same kernels on tiles in software, for any processor.
#define VGGFAST_ISA amx_emulated
#define VGGFAST_VECTOR_BYTES 64
#define VGGFAST_INT8_TERMS 4  // of a word

#include "cpu/kernels/tile_int8.h"

const vggfast::cpu::TileInt8Kernels vggfast::cpu::amx_emulated::int8_tiles = tile_int8_kernels<EmulatedTiles>;
