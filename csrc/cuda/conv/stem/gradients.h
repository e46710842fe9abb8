// The gradient that dgrad and wgrad read, each value once. cp.async brings 16 bytes at a time to where the same lane
// finds them. The lane loads the bits of their mask to a register meanwhile and applies it.
#pragma once

#include "cuda/conv/common/source.h"
#include "cuda/ptx/cp_async.h"

namespace vggfast::cuda {

/// A row of an image, as it lies: pooled rows are two of the image's.
struct GradientRow {
  uint32_t pixel;   // the first one, of all images
  uint32_t planes;  // of the mask, that lie between: in pixels
  unsigned part;    // which row of a window it is: the bits that Source::kept turns over
  bool real;

  template <class T>
  __device__ __forceinline__ GradientRow(const Source<T>& gz, int image, int y) {
    const int row = y >> (gz.pool ? 1 : 0);
    pixel = (image * gz.stored_h + row) * static_cast<uint32_t>(gz.stored_w);
    planes = (image * (gz.planes - 1)) * static_cast<uint32_t>(gz.stored_h * gz.stored_w);
    part = y & 1 ? 0 : 0xff00;
    real = static_cast<unsigned>(row) < static_cast<unsigned>(gz.stored_h);
  }
};
struct GradientColumn {
  uint32_t pixel;
  unsigned part;
  bool real;

  template <class T>
  __device__ __forceinline__ GradientColumn(const Source<T>& gz, int x)
      : pixel(x >> (gz.pool ? 1 : 0)), part(x & 1 ? 0 : 0xff), real(pixel < static_cast<unsigned>(gz.stored_w)) {}
};

/// `Count` chunks of a lane that are on their way together, all of the same channels of a byte of a mask.
template <class T, int Count>
class GradientChunks {
 public:
  /// Begins to bring chunk i: channels c ... of a pixel, or zeros where there is none.
  __device__ __forceinline__ void fetch(const Source<T>& gz, int i, const GradientRow& row,
                                        const GradientColumn& column, int c, char* shared) {
    const bool real = row.real && column.real && c < gz.c;
    const uint32_t pixel = row.pixel + column.pixel, chunks = gz.c / chunk_of<T>;
    const uint32_t chunk = pixel * chunks + static_cast<uint32_t>(c / chunk_of<T>);
    ptx::cp_async_ca_16(shared, reinterpret_cast<const Words*>(gz.data) + (real ? chunk : 0), real);
    byte_[i] = real ? (row.planes + pixel) * (gz.c / 8) + c / 8 : 0;
    part_[i] = row.part | column.part;
  }

  /// After all of them: begins to bring their bits; those of a chunk of zeros are anybody's. The caller commits the
  /// chunks' copies.
  __device__ __forceinline__ void fetch_bits(const Source<T>& gz) {
#pragma unroll
    for (int i = 0; i < Count; ++i) keep_[i] = 0xff;
    if (gz.stored_h == 0 || gz.stored_w == 0) return;  // there are no bits
    const uint8_t* plane = gz.mask;
    if (gz.relu) {
#pragma unroll
      for (int i = 0; i < Count; ++i) keep_[i] = plane[byte_[i]];
      plane += gz.plane;
    }
    if (gz.pool) {
#pragma unroll
      for (int i = 0; i < Count; ++i) {
        keep_[i] &= (plane[byte_[i]] ^ part_[i]) & (plane[gz.plane + byte_[i]] ^ part_[i] >> 8);
      }
    }
  }

  /// Chunk i, which has arrived, with zeros for what the mask leaves out.
  __device__ __forceinline__ Words read_masked(int i, int c, const char* shared) const {
    return masked<T>(*reinterpret_cast<const Words*>(shared), keep_[i] >> (c % 8));
  }

 private:
  uint32_t byte_[Count];
  unsigned part_[Count], keep_[Count];
};

}  // namespace vggfast::cuda
