// The 2 x 2 windows of a batch of images, one after the other: the rows of an fprop tile are their pixels. Of 32 rows,
// row r is pixel r / 8 (row-major) of window r % 8. An odd last row or column makes windows that are only part real.
#pragma once

#include "cuda/divider.h"

namespace vggfast::cuda {

struct Window {
  int image, y, x;  // in windows
  bool real;
};

struct Windows {
  Divider per_image, per_row;
  int count;

  Windows(int64_t n, int64_t h, int64_t w)
      : per_image((h + 1) / 2 * ((w + 1) / 2)),
        per_row((w + 1) / 2),
        count(static_cast<int>(n * ((h + 1) / 2) * ((w + 1) / 2))) {}

  __device__ __forceinline__ Window at(int window) const {
    const int image = per_image.quotient(window);
    const int within = window - image * static_cast<int>(per_image.divisor);
    const int y = per_row.quotient(within);
    return {image, y, within - y * static_cast<int>(per_row.divisor), window < count};
  }
};

}  // namespace vggfast::cuda
