// Winograd convolution on the CPU: sizes, packing, and how threads divide the tiles.
// Kernels: cpu/kernels/winograd.h.
#pragma once

#include "cpu/kernel_table.h"

namespace vggfast::cpu {

/// One layer's convolution by F(m x m, 3 x 3), or for m = 1 its 1x1 convolution, by the instruction set in use.
class Winograd {
 public:
  /// `m` is 1, 2, 4 or 6.
  Winograd(int m, int64_t cin, int64_t cout);

  /// Floats of the packed weights with the padded bias.
  int64_t packed_values() const { return weight_values() + out_blocks_ * kernels_.lanes; }
  int64_t weight_values() const { return points_ * cin_ * out_blocks_ * kernels_.lanes; }
  /// How a batch is tiled. `mosaics`: whether tiles may cover several images; not those of an input with a mask
  /// of a pool.
  static TileGrid grid(int m, Extent in, bool mosaics);
  static int64_t tiles_of(const TileGrid& grid, int64_t images);

  /// How many tiles a call has, mosaics allowed.
  int64_t tiles(Extent in) const;

  /// With weights that are packed once, for many calls. `bias` is padded as pad_bias() does; null takes what was
  /// packed.
  void pack(const WeightView<float>& weight, const float* bias, float* packed, int threads) const;
  int64_t scratch_values(Extent in, int threads) const { return partition(in, true, true, threads).scratch; }
  template <class S>
  void fprop(const ConvInput<S>& in, const float* packed, const float* bias, const ConvOutput<S>& out, float* scratch,
             int threads) const;
  /// The same for m = 1 with weights in bfloat16, and always a bias.
  void fprop(const ConvInput<float>& in, const Bf16* packed, const float* bias, const ConvOutput<float>& out,
             float* scratch, int threads) const;

  /// With weights as they are, and a bias or null.
  int64_t workspace_values(Extent in, bool mosaics, int threads) const;
  void fprop(const ConvInput<float>& in, const WeightView<float>& weight, const float* bias,
             const ConvOutput<float>& out, float* workspace, int threads) const;

 private:
  /// How a batch is divided into tasks: by its tiles, or where these are few, by the output channels, after all tiles
  /// have been transformed.
  struct Partition {
    TileGrid grid;
    int64_t tiles;
    bool by_blocks;
    int64_t tiles_per_task, blocks_per_task, group;
    int64_t shared, own, scratch;  // floats: of all threads together, of each thread, and in all
  };
  Partition partition(Extent in, bool mosaics, bool packed, int threads) const;
  void pad_bias(const float* bias, float* padded) const;
  template <class S, class U, class Kernel>
  void run_parallel(const Partition& part, const ConvInput<S>& in, const WeightView<float>* weight, const U* packed,
                    const float* bias, const ConvOutput<S>& out, float* scratch, int threads, Kernel outputs) const;

  const KernelTable& kernels_;
  const WinogradTable& table_;
  int64_t m_, points_, cin_, cout_, in_blocks_, out_blocks_;
};

}  // namespace vggfast::cpu
