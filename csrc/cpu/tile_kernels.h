// The interface between algorithms and their kernels on tile registers, as kernel_table.h is for all others.
#pragma once

#include "cpu/kernel_table.h"
#include "vggfast/cpu.h"

namespace vggfast::cpu {

/// A batch of maps as kernels on tiles read them: [image][block][h + 2][w + 2][channels], blocks of as many channels as
/// 64 bytes hold, in a ring of zeros. In a map of Bf16 the channels past the last one are 0; in one of uint8_t they may
/// be anything, for their weights are 0. Strides are in values. Loads go past the last map, by less than a row and 18
/// pixels, and what they find there is of no use.
template <class T>
struct BlockedMap {
  static constexpr int64_t channels = 64 / sizeof(T);  // of a block

  T* data = nullptr;
  int64_t blocks = 0, row = 0, plane = 0, image = 0;
};

struct TileConvArgs {
  BlockedMap<Bf16> x;
  int64_t h, w;    // of x
  int64_t kernel;  // 1 or 3
  const Bf16*
      packed;  // [cout block][cin block][row][column][2][16][16][2]: halves of the couts, pairs of cins, couts, cin
  const float* bias;  // [cout block][32], zero-padded
  ConvOutput<Bf16> out;
  BlockedMap<Bf16> y;  // where this has data, it is written in place of out.y, with its ring; there is no mask then
  int64_t x_top = 0, y_top = 0;  // the row of the image that x, or y, begins with: either may be a strip
};

/// Kernels on tile registers (cpu/isa/tiles.h).
struct TileKernels {
  /// Units: rows of a blocked map with their ring, n * (h + 2) of them.
  void (*block_maps)(const ConvInput<Bf16>& in, const BlockedMap<Bf16>& to, int64_t row_begin, int64_t row_end);
  /// fprop of one image. Units: pairs of rows of x; blocks of 32 output channels.
  void (*conv)(const TileConvArgs&, int64_t image, int64_t pair_begin, int64_t pair_end, int64_t block_begin,
               int64_t block_end);
  /// The first layer of one image, 3x3 over up to 3 channels, of an input without a mask. `packed` is [cout block][2]
  /// [16][16][2], in the order of a line (cpu/kernels/tile_stem.h); x is not read. Units: rows, the first one even
  /// where there is a pool. `lines` has room for two of `line_values`, at least 11 * (w + 18).
  void (*stem)(const ConvInput<Bf16>& in, const TileConvArgs&, int64_t image, int64_t row_begin, int64_t row_end,
               Bf16* lines, int64_t line_values);
  /// c += a b, of one product: what tests compare. Each is a tile of 16 rows of 64 bytes.
  void (*product_bf16)(const Bf16* a, const Bf16* b, float* c);
  void (*product_u8s8)(const uint8_t* a, const int8_t* b, int32_t* c);
};

/// What kernels on tiles in software have executed.
extern TileCounts emulated_tiles;

namespace amx {
const TileKernels& tiles();
}
namespace amx_emulated {
const TileKernels& tiles();
}

}  // namespace vggfast::cpu
