// The weights' gradient by Winograd on the CPU: sizes, and how threads divide the sums.
#pragma once

#include <algorithm>

#include "cpu/kernel_table.h"

namespace vggfast::cpu {

/// The gradient by F(m x m, 3 x 3)'s transpose, or for m = 1 the 1x1 case. Kernels: cpu/kernels/winograd_wgrad.h.
///
/// Where dU is small, groups of tiles have a dU each, and a task goes through its group by itself, with V and Z in its
/// own cache; the groups' dU are added up at the end. Where dU is large, all threads work on one chunk at a time. A
/// single chunk of tiles is transformed first, and then a task has a dU for some output channels, which it transforms
/// back at once: dU never lies in memory as a whole. Groups and chunks depend on the shape alone, so the result does
/// not depend on the threads.
class WinogradWgrad {
 public:
  /// `mosaics`: as for Winograd::grid, of gy.
  WinogradWgrad(int m, Extent in, int64_t cout, bool mosaics);
  int64_t workspace_values(int threads) const;
  void run(const ConvInput<float>& x, const ConvInput<float>& gy, const WeightView<float>& shape, float* gw, float* gb,
           int64_t gb_stride, float* workspace, int threads) const;

 private:
  /// What one gradient is made of, and where a chunk of it lies.
  struct Sources {
    const ConvInput<float>&x, &gy;
    float *v, *z;
  };
  void transform(const Sources& s, int64_t chunk, int64_t first, int64_t end, float* bias) const;
  void transform_shared(const Sources& s, int64_t chunk, int64_t tiles, float* bias, int threads) const;
  void multiply(const Sources& s, int64_t tiles, int64_t point, int64_t begin, int64_t end, float* du, bool add) const;
  void run_groups(const Sources& s, float* du, float* bias, int threads) const;
  void run_chunks(const Sources& s, float* du, float* bias, int threads) const;
  void run_blocks(const Sources& s, float* du, float* bias, const WeightView<float>& shape, float* gw,
                  int threads) const;

  int64_t v_plane() const { return (in_blocks_ * chunk_ | 1) * kernels_.lanes; }
  int64_t z_plane() const { return (out_blocks_ * chunk_ | 1) * kernels_.lanes; }
  int64_t du_block() const { return in_blocks_ * kernels_.lanes * kernels_.lanes; }
  int64_t du_plane() const { return out_blocks_ * du_block(); }
  int64_t plane_copies(int threads) const { return groups_ > 1 ? std::max(threads, 1) : 1; }
  bool by_blocks(int threads) const {
    return groups_ == 1 && tiles_ <= chunk_ && (tiles_ == 0 || out_blocks_ >= threads);  // work for each thread
  }
  int64_t block_tasks(int threads) const;

  const KernelTable& kernels_;
  const WinogradTable& table_;
  Extent in_;
  int64_t cout_, points_, in_blocks_, out_blocks_;
  TileGrid grid_;
  int64_t tiles_;
  int64_t groups_;  // of tiles; 1 where all threads work on one chunk
  int64_t chunk_;   // tiles that are transformed at a time
  int64_t sums_;    // partial sums of the bias' gradient
};

}  // namespace vggfast::cpu
