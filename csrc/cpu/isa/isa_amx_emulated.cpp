// The same kernels on tiles in software, for any processor: bit for bit what AMX computes.
#define VGGFAST_ISA amx_emulated
#define VGGFAST_VECTOR_BYTES 64

#include "cpu/kernels/tile_table.h"

namespace vggfast::cpu::amx_emulated {
const TileKernels& tiles() {
  static constexpr TileKernels value = tile_kernels<EmulatedTiles>();
  return value;
}
}  // namespace vggfast::cpu::amx_emulated
