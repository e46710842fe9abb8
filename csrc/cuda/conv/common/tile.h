// The tiles of the implicit GEMMs and how they lie in shared memory. Four warps, 2 x 2, share a tile; a warp's part is
// made of 16 x 8 products. A stage holds, of each row of both operands, `row_bytes` along the sum.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace vggfast::cuda {

template <int Rows, int Columns>
struct Tile {
  static constexpr int rows = Rows, columns = Columns;
  static constexpr int warps_down = 2, warps_across = 2, threads = 32 * warps_down * warps_across;
  static constexpr int warp_rows = Rows / warps_down, warp_columns = Columns / warps_across;
  static constexpr int down = warp_rows / 16, across = warp_columns / 8;  // products of a warp
  static constexpr int stages = 4;        // 64 KB at most, so that two blocks fit into an SM of sm_80; not measured
  static constexpr int least_blocks = 2;  // of an SM: up to 255 registers a thread, rather than spills
};

using LargeTile = Tile<128, 128>;
using TallTile = Tile<128, 64>;  // for 64 output channels
using SmallTile = Tile<64, 64>;  // where larger ones would leave SMs idle

constexpr int row_bytes = 64;
constexpr int chunk_bytes = 16;
constexpr int row_chunks = row_bytes / chunk_bytes;

/// Elements in a chunk, and in a row of a stage.
template <class T>
constexpr int chunk_of = chunk_bytes / static_cast<int>(sizeof(T));
template <class T>
constexpr int depth_of = row_bytes / static_cast<int>(sizeof(T));

/// Where chunk `chunk` of row `row` lies in a stage: eight rows' chunks of one number fall into different banks.
__device__ __forceinline__ int chunk_offset(int row, int chunk) {
  return row * row_bytes + (chunk ^ (row >> 1 & 3)) * chunk_bytes;
}

/// Where the stages of a ring lie, one after the other.
template <int Stages, int Bytes>
class Ring {
 public:
  __device__ __forceinline__ explicit Ring(int first) : offset_(first * Bytes) {}

  __device__ __forceinline__ int next() {
    const int now = offset_;
    offset_ = now + Bytes == Stages * Bytes ? 0 : now + Bytes;
    return now;
  }

 private:
  int offset_;
};

/// The warp's place among its block's, and the lane's in the 16 x 8 products of mma.sync. The lane of each sum:
///
///            column 0   1   2   3   4   5   6   7
///   row 0           0   0   1   1   2   2   3   3     sum[0], sum[1]: row `group`, columns 2 within and 2 within + 1
///   row 1           4   4   5   5   6   6   7   7
///     ...
///   row 7          28  28  29  29  30  30  31  31
///   row 8           0   0   1   1   2   2   3   3     sum[2], sum[3]: row `group` + 8
///     ...
///   row 15         28  28  29  29  30  30  31  31
struct Lane {
  int lane, group, within, warp_down, warp_across;

  __device__ __forceinline__ Lane()
      : lane(static_cast<int>(threadIdx.x % 32)),
        group(lane / 4),
        within(lane % 4),
        warp_down(static_cast<int>(threadIdx.x / 32) % 2),
        warp_across(static_cast<int>(threadIdx.x / 32) / 2) {}
};

}  // namespace vggfast::cuda
