// The interface between algorithms and their kernels on tile registers, as kernel_table.h is for all others.
#pragma once

#include "cpu/kernel_table.h"
#include "vggfast/cpu.h"

namespace vggfast::cpu {

/// A tile register: 16 rows of 64 bytes, of 32 values of bfloat16.
inline constexpr int64_t tile_rows = 16, tile_row_bytes = 64, tile_bytes = tile_rows * tile_row_bytes;
inline constexpr int64_t tile_terms = 32, tile_values = tile_rows * tile_terms;
/// The register block of a convolution: 2 rows of so many pixels, by so many output channels.
inline constexpr int64_t tile_pixels = 16, block_outputs = 32;

/// A batch of maps as kernels on tiles read them: [image][piece][block][h + 2][w + 2][channels], blocks of as many
/// channels as 64 bytes hold, in a ring of zeros. In a map of Bf16 the channels past the last one are 0; in one of
/// uint8_t they may be anything, for their weights are 0. Strides are in values. Loads go past the last map, by less
/// than a row and 18 pixels, and what they find there is of no use.
///
/// Floats have 2 or 3 pieces, whose sum they are, all other values are one. A piece is what those before it leave,
/// rounded to bfloat16; what is under 2^-126 becomes 0, as in a product of tiles. A first piece that would be infinite
/// is the largest finite value. What is not finite itself is the last piece, behind a first one of 1 or -1: products of
/// pieces then are as the whole one is, where 0 or the other sign in a lower piece would make them NaN.
template <class T>
struct BlockedMap {
  static constexpr int64_t channels = 64 / sizeof(T);  // of a block

  T* data = nullptr;
  int64_t blocks = 0, row = 0, plane = 0, image = 0, pieces = 1;
};

/// Of activations of type S: of Bf16, or of float, whose map is in pieces.
template <class S>
struct TileConvArgs {
  BlockedMap<Bf16> x;
  int64_t h, w;    // of x
  int64_t kernel;  // 1 or 3
  // [cout block][piece][cin block][row][column][2][16][16][2]: halves of the couts, pairs of cins, couts, cin
  const Bf16* packed;
  const float* bias;  // [cout block][32], zero-padded
  ConvOutput<S> out;
  BlockedMap<Bf16> y;  // of Bf16: where it has data, it is written in place of out.y, with its ring; no mask is then
  int64_t x_top = 0, y_top = 0;  // the row of the image that x, or y, begins with: either may be a strip
};

/// The operands of wgrad: strips of rows, each of gy's part and then of x's. A strip counts its pixels along rows of an
/// even `pitch`, in which zeros stand behind each row's own; `products` of 32 pixels hold them, and all of them are
/// written. A value that is not finite is 0 here. Sizes are in values.
///   gy  [block of 16 couts][product][16 couts][32 pixels]; blocks come in pairs
///   x   [block of 16 cins][copy][pair of pixels][16 cins][2]: of columns 2i and 2i + 1 in copy 0, which 1x1 has alone,
///       of 2i - 1 and 2i in copy 1. For 3x3 a row above and one below the strip's belong to it; both lie in its image,
///       or are zeros, and so do a strip's own rows. For 1x1 a strip's rows may be of several images.
struct WgradStrips {
  int64_t kernel, pitch, products, cin_blocks;
  int64_t gy_block, x_copy, x_block;  // from one to the next
  int64_t x, strip;                   // from the strip's begin to x's part, and to the next strip
};

/// Of wgrad: pixels of a product, values of a tile of either operand, sums of 16 couts by 16 cins, and of a tap.
inline constexpr int64_t product_pixels = tile_terms, operand_tile = tile_values, sums_tile = tile_rows * tile_rows,
                         sums_tap = 4 * sums_tile;

/// A matrix that is loaded as tiles of 16 rows of 32 values. In values: its rows are `row` apart, the next 32 values of
/// the same rows lie `step` on, the next 16 rows `tile`.
struct TileMatrix {
  const Bf16* data = nullptr;
  int64_t row = 0, step = 0, tile = 0;
};

/// A linear layer, each product with its own of these. Packed factors end in zeros where 16 rows, or 32 terms of a sum,
/// are not full.
struct TileLinearArgs {
  int64_t rows, inputs, outputs;
  TileMatrix weight = {};       // of fprop; for dgrad (outputs, inputs), whose `row` alone is read
  const Bf16* x = nullptr;      // of fprop: packed by linear_pack, or one row as it is; of wgrad: by linear_interleave
  const Bf16* gy = nullptr;     // of dgrad: [16 rows][32 outputs][16][32]; of wgrad: [16 outputs][32 rows][16][32]
  const float* bias = nullptr;  // may be null
  bool relu = false;
  float* y = nullptr;  // (rows, outputs), and so on
  Bf16* gx = nullptr;
  Bf16* gw = nullptr;
  bool stream = false;  // gw, past the caches
};

/// What dgrad makes tiles of at a time: so many times 32 rows of the weight.
inline constexpr int64_t linear_panel_steps = 4;

/// Kernels on tile registers (cpu/isa/tiles.h).
struct TileKernels {
  /// Units: rows of a blocked map with their ring, n * (h + 2) of them.
  void (*block_maps_bf16)(const ConvInput<Bf16>& in, const BlockedMap<Bf16>& to, int64_t row_begin, int64_t row_end);
  void (*block_maps_f32)(const ConvInput<float>& in, const BlockedMap<Bf16>& to, int64_t row_begin, int64_t row_end);
  /// A multiple of 32 values to pieces, as in a map, each `stride` behind the one before.
  void (*split)(const float* from, int64_t count, int64_t pieces, Bf16* to, int64_t stride);
  /// fprop of one image. Units: pairs of rows of x; blocks of 32 output channels.
  void (*conv_bf16)(const TileConvArgs<Bf16>&, int64_t image, int64_t pair_begin, int64_t pair_end, int64_t block_begin,
                    int64_t block_end);
  void (*conv_f32)(const TileConvArgs<float>&, int64_t image, int64_t pair_begin, int64_t pair_end, int64_t block_begin,
                   int64_t block_end);
  /// The first layer of one image, 3x3 over up to 3 channels, of an input without a mask. `packed` is [cout block][2]
  /// [16][16][2], in the order of a line (cpu/kernels/tile_stem.h); x is not read. Units: rows, the first one even
  /// where there is a pool. `lines` has room for two of `line_values`, at least 11 * (w + 18).
  void (*stem)(const ConvInput<Bf16>& in, const TileConvArgs<Bf16>&, int64_t image, int64_t row_begin, int64_t row_end,
               Bf16* lines, int64_t line_values);
  /// Write the operands of one strip at `to`, of blocks of 16 channels, and return whether a value was not finite. The
  /// strip has `rows` rows of the flattened (n, h), from `first` on. wgrad_gy writes each channel's sum to `bias`.
  bool (*wgrad_gy)(const ConvInput<Bf16>& gy, const WgradStrips&, int64_t first, int64_t rows, int64_t block_begin,
                   int64_t block_end, Bf16* to, float* bias);
  bool (*wgrad_x)(const ConvInput<Bf16>& x, const WgradStrips&, int64_t first, int64_t rows, int64_t block_begin,
                  int64_t block_end, Bf16* to);
  /// The products of `count` strips, of 32 couts and 32 cins: [tap][2][2][16 couts][16 cins], added to `sums` or the
  /// first there. Where the cins have one block alone, the other's sums are left as they are.
  void (*wgrad)(const WgradStrips&, const Bf16* strips, int64_t count, int64_t cout_pair, int64_t cin_pair, bool add,
                float* sums);
  /// Adds the products of a strip of which a factor is not finite to the same sums.
  void (*wgrad_special)(const ConvInput<Bf16>& x, const ConvInput<Bf16>& gy, int64_t kernel, int64_t first,
                        int64_t rows, int64_t cout_pair, int64_t cin_pair, float* sums);
  /// Rows (rows, columns) as a factor of fprop. Units: 16 rows of 32 columns.
  void (*linear_pack_f32)(const float* x, int64_t rows, int64_t columns, int64_t begin, int64_t end, Bf16* packed);
  void (*linear_pack_bf16)(const Bf16* x, int64_t rows, int64_t columns, int64_t begin, int64_t end, Bf16* packed);
  /// Rows, `stride` values apart, as a factor of wgrad: all of them, and the `columns` from x on.
  void (*linear_interleave)(const Bf16* x, int64_t stride, int64_t rows, int64_t columns, Bf16* packed);
  /// Units: 32 outputs. Scratch: of each unit the 4 KB of sums of each 32 rows.
  void (*linear_fprop)(const TileLinearArgs&, int64_t begin, int64_t end, float* scratch);
  /// Units: 32 inputs. Scratch: the same, and of each unit linear_panel_steps times 2 KB.
  void (*linear_dgrad)(const TileLinearArgs&, int64_t begin, int64_t end, float* scratch);
  /// Units: 32 outputs; 32 inputs.
  void (*linear_wgrad)(const TileLinearArgs&, int64_t output_begin, int64_t output_end, int64_t input_begin,
                       int64_t input_end);
  /// c += a b, of one product: what tests compare. Each is a tile of 16 rows of 64 bytes.
  void (*product_bf16)(const Bf16* a, const Bf16* b, float* c);
  void (*product_u8s8)(const uint8_t* a, const int8_t* b, int32_t* c);

  template <class S>
  auto block_maps() const {
    if constexpr (sizeof(S) == 4) {
      return block_maps_f32;
    } else {
      return block_maps_bf16;
    }
  }
  template <class S>
  auto conv() const {
    if constexpr (sizeof(S) == 4) {
      return conv_f32;
    } else {
      return conv_bf16;
    }
  }
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
