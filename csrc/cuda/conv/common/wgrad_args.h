// What the wgrad kernels of sm80 and stem are launched with.
#pragma once

#include "cuda/conv/common/source.h"
#include "cuda/divider.h"

namespace vggfast::cuda {

/// The type that sums over pixels have.
template <class T>
using SumOf = std::conditional_t<sizeof(T) == 8, double, float>;

template <class T>
struct WgradArgs {
  Source<T> x, gz;
  Divider row, column;  // pixels of a row, rows of an image
  int pixels;           // of the batch
  int kernel;
  int columns;  // taps * cin
  int row_tiles, column_tiles, splits;
  SumOf<T>*partial, *partial_bias;  // partial_bias may be null
};

}  // namespace vggfast::cuda
