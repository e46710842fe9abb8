// Sharing pictures among threads: a block takes rows of a picture, its threads the pieces of 8 values of a row, so that
// the threads of a warp run along memory. Whatever the sizes, every piece is visited by one thread.
#pragma once

#include "cuda/divider.h"
#include "cuda/launch.h"
#include "cuda/vectors.h"

namespace vggfast::cuda {

constexpr int64_t groups_of(int64_t channels) { return (channels + vector_channels - 1) / vector_channels; }

/// `groups`: pieces of a pixel's channels.
struct Pieces {
  int64_t images, rows, columns, groups;
  Divider by_rows, by_groups;

  int64_t in_row() const { return columns * groups; }
  int64_t count() const { return images * rows * in_row(); }
};

inline Pieces pieces(int64_t images, int64_t rows, int64_t columns, int64_t groups) {
  constexpr int64_t most = (int64_t(1) << 31) - 1;
  VGGFAST_CHECK(columns * groups <= most, "a picture must have rows of at most ", most,
                " pieces of 8 channels on cuda, got ", columns, " x ", groups);
  VGGFAST_CHECK(images * rows <= most, "all pictures together must have at most ", most, " rows on cuda, got ", images,
                " of ", rows, " rows each");
  return {images, rows, columns, groups, Divider(rows > 0 ? rows : 1), Divider(groups > 0 ? groups : 1)};
}

struct PieceTraits {
  static constexpr int64_t threads = 256;
  static constexpr int64_t most_blocks_of_a_row = 1 << 20;
  static constexpr int64_t most_rows = 65535;  // as many as the grid's y takes
};

inline Grid grid_of(const Pieces& p) {
  constexpr int64_t warp = 32;
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  const int64_t in_row = p.in_row();
  const int64_t threads = least(PieceTraits::threads, (in_row + warp - 1) / warp * warp);
  const int64_t blocks = least(PieceTraits::most_blocks_of_a_row, (in_row + threads - 1) / threads);
  return {.blocks = dim3(unsigned(blocks), unsigned(least(PieceTraits::most_rows, p.images * p.rows))),
          .threads = dim3(unsigned(threads))};
}

/// Calls visit(n, row, column, group) for each piece that is this thread's.
template <class Visit>
__device__ __forceinline__ void for_each_piece(const Pieces& p, Visit visit) {
  const int64_t in_row = p.columns * p.groups, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t row = blockIdx.y; row < p.images * p.rows; row += gridDim.y) {
    const int n = p.by_rows.quotient(int(row)), y = int(row) - n * int(p.rows);
    for (int64_t piece = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; piece < in_row; piece += step) {
      const int column = p.by_groups.quotient(int(piece)), group = int(piece) - column * int(p.groups);
      visit(int64_t(n), y, column, group);
    }
  }
}

}  // namespace vggfast::cuda
