// The interface to the kernels of 8-bit layers: u8 activations, whose zero is 0, by s8 weights. Sums are int32 and
// exact, and what follows rounds each operation by itself: every instruction set computes the same bits.
#pragma once

#include <cstdint>

#include "cpu/kernel_table.h"

namespace vggfast::cpu {

/// NHWC or rows, of float, or of u8: a value x lies as x * inverse rounded to the nearest, ties to even, within 0 ...
/// 255, and NaN as 0. A map of u8 may lie in blocks (cpu/tile_kernels.h).
struct Int8Output {
  void* y;
  int64_t h, w, c;
  bool relu = false, pool = false;
  float inverse = 0;  // of what a u8 counts; 0: y is float
  bool blocked = false;
};

/// A convolution, or a linear layer: a 1x1 convolution whose `in.n` rows are of one pixel each. It computes
/// sum * unit + bias, then ReLU and pool.
struct Int8Args {
  const uint8_t* x;
  Extent in;
  int64_t kernel;        // 1 or 3
  const int8_t* packed;  // [block][kernel row][kernel column][word of input channels][block_channels][terms]
  const float* unit;     // [block][block_channels]
  const float* bias;     // the same
  Int8Output out;
};

/// A 3x3 convolution by Winograd's F(4 x 4, 3 x 3). What it computes is the same, of sums within +-2^25.
struct Int8WinogradArgs {
  TileGrid grid;
  int64_t images, cin;
  const float* unit;  // [block][block_channels]
  const float* bias;  // the same
  Int8Output out;
};

inline constexpr int int8_winograd_m = 4, int8_winograd_points = 36;

/// Words of a plane with room for so many: an odd number of vectors.
constexpr int64_t int8_winograd_plane(int64_t words, int64_t lanes) { return (words / lanes | 1) * lanes; }

/// What lies how: cpu/kernels/int8_winograd.h.
struct Int8WinogradKernels {
  /// Weights of one block as they are kept, of as many bytes as they have with channels of whole vectors.
  void (*pack)(const WeightView<int8_t>&, int64_t block, int8_t* packed);
  /// One block's transformed.
  void (*weights)(const int8_t* packed, int64_t cin, int16_t* u);
  /// Tiles [begin, end) transformed, into planes of `tiles` tiles.
  void (*inputs)(const uint8_t* x, const Extent& in, const TileGrid&, int64_t begin, int64_t end, int64_t tiles,
                 int32_t* v);
  /// The outputs of one block of tiles [begin, end), from planes of `tiles` tiles whose first is number `first`.
  void (*outputs)(const Int8WinogradArgs&, const int32_t* v, int64_t first, int64_t tiles, int64_t begin, int64_t end,
                  const int16_t* u, int64_t block, int32_t* products);
};

/// Products are taken a word of 32 bits at a time, of `terms` values of neighbouring channels: 4 of 8 bits, or 2 that
/// were widened to 16. A pixel's last word is filled with zeros.
struct Int8Kernels {
  int64_t block_channels;  // output channels of one packed block
  int64_t terms;
  int64_t lanes;         // 32-bit words of a vector
  int64_t tile_pixels;   // of a register tile
  int64_t weight_bytes;  // of packed weights that a task may read again and again: a part of L2

  void (*pack)(const WeightView<int8_t>&, int64_t block, int8_t* packed);
  /// Pixels of `channels` values to words.
  void (*words)(const uint8_t* from, int64_t pixels, int64_t channels, int32_t* to);
  /// Output rows [row_begin, row_end) of one image. `scratch`: int8_scratch_words().
  void (*conv)(const Int8Args&, int64_t image, int64_t row_begin, int64_t row_end, int64_t block_begin,
               int64_t block_end, int32_t* scratch);
  /// Blocks of a linear layer, whose rows were made words. `scratch`: int8_linear_rows * block_channels.
  void (*linear)(const Int8Args&, const int32_t* words, int64_t block_begin, int64_t block_end, int32_t* scratch);
  void (*quantise)(const float* from, int64_t count, float inverse, uint8_t* to);
  Int8WinogradKernels winograd;
};

namespace portable {
extern const Int8Kernels int8_kernels;
}
namespace avx2 {
extern const Int8Kernels int8_kernels;
}
namespace avx512 {
extern const Int8Kernels int8_kernels;
}
namespace avx512_vnni {
extern const Int8Kernels int8_kernels;
}

/// Rows of a linear layer whose sums are kept at a time.
inline constexpr int64_t int8_linear_rows = 128;

/// Words of scratch memory for so many output rows: the sums of a tile's two rows, then the input's rows within zeros.
constexpr int64_t int8_scratch_words(const Int8Kernels& kernels, const Extent& in, int64_t kernel, bool pool,
                                     int64_t rows) {
  const int64_t pixel = (in.c + kernels.terms - 1) / kernels.terms, ring = kernel / 2 * 2;
  return 2 * kernels.tile_pixels * kernels.block_channels + (rows * (pool ? 2 : 1) + ring) * (in.w + ring) * pixel;
}

}  // namespace vggfast::cpu
