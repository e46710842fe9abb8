// The interface to the kernels of 8-bit layers on tile registers: u8 activations by s8 weights, as in
// cpu/int8_kernels.h, bit for bit.
#pragma once

#include "cpu/int8_kernels.h"
#include "cpu/tile_kernels.h"

namespace vggfast::cpu {

struct TileInt8ConvArgs {
  BlockedMap<uint8_t> x;
  int64_t h, w;              // of x
  int64_t kernel;            // 1 or 3
  const int8_t* packed;      // [cout block][cin block][row][column][2][16][16][4]: halves of the couts, words of cins,
                             // couts, cin
  const float *unit, *bias;  // [cout block][32], zero-padded
  Int8Output out;
  BlockedMap<uint8_t> y;  // out.y, with its ring, where that lies in blocks

  static constexpr int64_t x_top = 0, y_top = 0;  // x and y are whole images
};

/// Outputs of a block of a linear layer.
inline constexpr int64_t tile_int8_outputs = 64;

struct TileInt8LinearArgs {
  int64_t rows, steps;       // of 64 inputs
  const uint8_t* x;          // [16 rows][step][row][64], zero-padded; one row alone: [step][64]
  const int8_t* packed;      // [block][step][4][16][16][4]: quarters of the outputs, words of inputs, outputs, input
  const float *unit, *bias;  // [block][64], zero-padded
  Int8Output out;
};

struct TileInt8Kernels {
  /// One image. Units: pairs of rows of x; blocks of 32 output channels.
  void (*conv)(const TileInt8ConvArgs&, int64_t image, int64_t pair_begin, int64_t pair_end, int64_t block_begin,
               int64_t block_end);
  /// Blocks of 64 outputs. `sums`: int8_linear_rows * tile_int8_outputs.
  void (*linear)(const TileInt8LinearArgs&, int64_t block_begin, int64_t block_end, int32_t* sums);
};

namespace amx {
extern const TileInt8Kernels int8_tiles;
}
namespace amx_emulated {
extern const TileInt8Kernels int8_tiles;
}

}  // namespace vggfast::cpu
