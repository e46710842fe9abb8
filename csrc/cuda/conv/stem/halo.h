// A tile of x and its border in shared memory. It is copied value by value, as rows of pixels of c channels may begin
// at any address. Words of 32 bits are read from it (patch.h). Where c and the pixel's column are odd, a word of two
// 16-bit values begins at an odd value: for those the tile lies in shared memory twice, one value apart.
#pragma once

#include "cuda/conv/common/source.h"
#include "cuda/ptx/cvt.h"

namespace vggfast::cuda {

/// How a tile of so many rows and columns, its border among them, lies there, and how `Warps` warps bring it.
template <class T, int Channels, int Rows, int Columns, int Warps>
struct HaloShape {
  static constexpr int warps = Warps, rows = Rows;
  static constexpr int row_values = Columns * Channels + 2;  // the last patch's last word may reach beyond it
  static constexpr int copies = sizeof(T) == 2 ? 2 : 1;
  static constexpr int copy_bytes = rows * row_values * static_cast<int>(sizeof(T));
  static constexpr int bytes = copies * copy_bytes;
  static constexpr int rows_of_warp = (rows + warps - 1) / warps, values_of_lane = (row_values + 31) / 32;
  static_assert(bytes % 16 == 0 && row_values % 2 == 0);

  /// Where value `value` of row `row` lies, in bytes: in the copy that has it aligned.
  __device__ __forceinline__ static int offset(int row, int value) {
    const bool shifted = copies == 2 && value % 2 == 1;
    return (row * row_values + (shifted ? value - 1 : value)) * static_cast<int>(sizeof(T)) +
           (shifted ? copy_bytes : 0);
  }
};

/// A thread's values of a tile on their way to shared memory: a warp has every row that is its number modulo `warps`.
template <class T, class Shape>
class Halo {
 public:
  /// (top, left): the tile's first pixel. What lies outside the image is 0.
  __device__ __forceinline__ void fetch(const Source<T>& x, int image, int top, int left) {
    const int row_values = x.w * x.c, first = left * x.c + lane();
#pragma unroll
    for (int i = 0; i < Shape::rows_of_warp; ++i) {
      const int y = top + row_of(i);
      const bool inside = row_of(i) < Shape::rows && static_cast<unsigned>(y) < static_cast<unsigned>(x.h);
      const T* const row = x.data + (int64_t(image) * x.h + y) * row_values;
#pragma unroll
      for (int k = 0; k < Shape::values_of_lane; ++k) {
        const int at = first + 32 * k;
        const bool real = inside && static_cast<unsigned>(at) < static_cast<unsigned>(row_values);
        held_[i][k] = real ? row[at] : T{};
      }
    }
  }

  __device__ __forceinline__ void store(char* buffer) const {
    T* const values = reinterpret_cast<T*>(buffer);
#pragma unroll
    for (int i = 0; i < Shape::rows_of_warp; ++i) {
      if (row_of(i) >= Shape::rows) continue;
#pragma unroll
      for (int k = 0; k < Shape::values_of_lane; ++k) {
        const int at = lane() + 32 * k;
        if (at >= Shape::row_values) continue;
        T* const to = values + row_of(i) * Shape::row_values + at;
        if constexpr (sizeof(T) == 4) {
          *to = ptx::as_float(ptx::cvt_rna_tf32(held_[i][k]));
        } else {
          *to = held_[i][k];
          if (at > 0) to[Shape::rows * Shape::row_values - 1] = held_[i][k];  // the other copy
        }
      }
    }
  }

 private:
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ __forceinline__ static int row_of(int i) { return static_cast<int>(threadIdx.x) / 32 + Shape::warps * i; }

  T held_[Shape::rows_of_warp][Shape::values_of_lane];
};

}  // namespace vggfast::cuda
