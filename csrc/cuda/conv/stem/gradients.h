// The gradient that dgrad and wgrad read, once: 16 bytes at a time, by cp.async to where the same lane finds them and
// applies the selection, whose bits come to a register meanwhile.
#pragma once

#include "cuda/conv/portable/source.h"
#include "cuda/ptx/cp_async.h"

namespace vggfast::cuda {

/// A row of an image, as it lies: pooled rows are two of the image's.
struct GradientRow {
  uint32_t pixel;   // the first one, of all images
  uint32_t planes;  // of the selection, that lie between: in pixels
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

/// Begins to bring channels c ... of a pixel, a chunk of them: zeros where there is none. Returns its bits.
template <class T>
__device__ __forceinline__ unsigned fetch_chunk(const Source<T>& gz, const GradientRow& row,
                                                const GradientColumn& column, int c, char* shared) {
  const bool real = row.real && column.real && c < gz.c;
  const uint32_t pixel = row.pixel + column.pixel;
  const uint32_t chunk = pixel * (gz.c / chunk_of<T>)+c / chunk_of<T>;
  ptx::cp_async_ca_16(shared, reinterpret_cast<const Words*>(gz.data) + (real ? chunk : 0), real);
  unsigned keep = 0xff;
  if ((gz.relu || gz.pool) && real) {
    keep = gz.kept(gz.selection + ((row.planes + pixel) * (gz.c / 8) + c / 8), row.part | column.part);
  }
  return keep >> (c % 8);
}

/// The chunk that has arrived, with zeros for what the selection leaves out.
template <class T>
__device__ __forceinline__ Words selected_chunk(const char* shared, unsigned keep) {
  return masked<T>(*reinterpret_cast<const Words*>(shared), keep);
}

}  // namespace vggfast::cuda
