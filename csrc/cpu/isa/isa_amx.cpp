// The kernels for AMX: on the tiles of the processor, with AVX-512 for the rest.
#define VGGFAST_ISA amx
#define VGGFAST_VECTOR_BYTES 64

#include "cpu/kernels/tile_table.h"

namespace vggfast::cpu::amx {
const TileKernels& tiles() {
  static constexpr TileKernels value = tile_kernels<HardwareTiles>();
  return value;
}
}  // namespace vggfast::cpu::amx
