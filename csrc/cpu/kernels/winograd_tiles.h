// Where the tiles of a Winograd convolution lie in a batch of images.
#pragma once

#include "cpu/isa/simd.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

/// Where tile number `tile` lies: the first image of its mosaic, and its first output pixel in the mosaic.
struct TilePlace {
  int64_t n, y, x;
  template <int M>
  static TilePlace of(const TileGrid& grid, int64_t tile) {
    const int64_t mosaic = grid.rows * grid.columns;
    return {tile / mosaic * grid.down * grid.across, tile % mosaic / grid.columns * M, tile % grid.columns * M};
  }
};

/// Where the pixels of a `count` x `count` patch of a mosaic (TileGrid) lie, or of a mosaic pooled by `window`. Pixel
/// (i, j) is number row[i] + column[j] of the batch. It is outside every image where one of the two is negative
/// or their sum is not less than `pixels`.
template <int count, int window = 1>
struct Patch {
  int64_t row[count], column[count], pixels;
  bool inside = true;  // whether all of it lies in one image

  Patch(const TileGrid& grid, const Extent& e, int64_t n, int64_t y, int64_t x) : pixels(e.n * e.h * e.w) {
    constexpr int64_t outside = -((int64_t)1 << 60);
    const int64_t image = e.h * e.w, pitch_down = grid.pitch_down / window, pitch_across = grid.pitch_across / window;
    for (int i = 0; i < count; ++i) {
      const int64_t yy = y + i, xx = x + i;
      const int64_t down = grid.down > 1 ? yy / pitch_down : 0, across = grid.across > 1 ? xx / pitch_across : 0;
      const int64_t in_y = yy - down * pitch_down, in_x = xx - across * pitch_across;
      row[i] = yy < 0 || in_y >= e.h || down >= grid.down ? outside : (n + down * grid.across) * image + in_y * e.w;
      column[i] = xx < 0 || in_x >= e.w || across >= grid.across ? outside : across * image + in_x;
      inside = inside && row[i] >= 0 && column[i] >= 0 && row[i] - row[0] == i * e.w && column[i] - column[0] == i;
    }
    inside = inside && at(count - 1, count - 1) >= 0;
  }
  /// The number of pixel (i, j), negative where it is outside every image.
  int64_t at(int64_t i, int64_t j) const {
    const int64_t pixel = row[i] + column[j];
    return pixel < pixels ? pixel : -1;
  }
};

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
