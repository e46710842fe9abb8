// Where a convolution's input comes from: an activation as it lies, or the gradient of an epilogue's output seen
// through the epilogue's selection (vggfast/selection.h), as the gradient of the sums before it.
#pragma once

#include "cuda/conv/math.h"
#include "vggfast/conv.h"

namespace vggfast::cuda {

template <class T>
struct Source {
  const T* data;
  int n, h, w, c;            // extents as the convolution sees them
  int stored_h, stored_w;    // of what lies in memory: halved where the selection has a pool
  const uint8_t* selection;  // where relu or pool says that there is one
  int64_t plane;             // bytes of a plane of it
  int planes;
  bool relu, pool;

  __device__ __forceinline__ bool inside(int y, int x) const {
    return static_cast<unsigned>(y) < static_cast<unsigned>(h) && static_cast<unsigned>(x) < static_cast<unsigned>(w);
  }
  /// The stored pixel that (y, x) is part of, counted in its image; -1 where an odd edge is part of none.
  __device__ __forceinline__ int stored_pixel(int y, int x) const {
    const int row = y >> (pool ? 1 : 0), column = x >> (pool ? 1 : 0);
    return row < stored_h && column < stored_w ? row * stored_w + column : -1;
  }
  /// A bit for each of the eight channels from 8 * `byte` on: whether (y, x)'s part of the stored pixel passes.
  __device__ __forceinline__ unsigned kept(int image, int pixel, int y, int x, int byte) const {
    const uint8_t* bits = selection + image * (planes * plane) + int64_t(pixel) * ((c + 7) / 8) + byte;
    unsigned keep = 0xff;
    if (relu) {
      keep = *bits;
      bits += plane;
    }
    if (pool) {
      const unsigned column = bits[0], row = bits[plane];
      keep &= (x & 1 ? column : ~column) & (y & 1 ? row : ~row);
    }
    return keep;
  }
  __device__ __forceinline__ const T* values(int image, int pixel) const {
    return data + (int64_t(image) * stored_h * stored_w + pixel) * c;
  }

  /// Channels ch ... of (y, x), a chunk that is aligned and whole; 0 where the pixel lies outside or nothing passes.
  __device__ __forceinline__ Chunk<T> selected_chunk(int image, int y, int x, int ch) const {
    Chunk<T> chunk{};
    const int pixel = inside(y, x) ? stored_pixel(y, x) : -1;
    if (pixel < 0) return chunk;
    const unsigned keep = kept(image, pixel, y, x, ch / 8) >> (ch % 8);
    chunk = *reinterpret_cast<const Chunk<T>*>(values(image, pixel) + ch);
#pragma unroll
    for (int i = 0; i < chunk_of<T>; ++i) {
      if (!(keep >> i & 1)) chunk.values[i] = T{};
    }
    return chunk;
  }
  /// One channel of it.
  __device__ __forceinline__ T element(int image, int y, int x, int ch) const {
    const int pixel = inside(y, x) ? stored_pixel(y, x) : -1;
    if (pixel < 0) return T{};
    if ((relu || pool) && !(kept(image, pixel, y, x, ch / 8) >> (ch % 8) & 1)) return T{};
    return values(image, pixel)[ch];
  }
};

/// How a tile of a source comes to shared memory.
enum class Reads {
  async,     // 16 bytes at a time by cp.async: channels fill whole chunks, no selection
  selected,  // 16 bytes at a time through a selection
  gathered,  // element by element: any number of channels, the first layer's three among them; any selection
};

template <class T>
Reads reads_of(const Source<T>& s) {
  const bool whole = s.c % chunk_of<T> == 0 && reinterpret_cast<uintptr_t>(s.data) % chunk_bytes == 0;
  if (!whole || sizeof(T) == 8) return Reads::gathered;
  return s.relu || s.pool ? Reads::selected : Reads::async;
}

template <class T>
Source<T> source_of(const Tensor& t, const Selected& selected, int64_t h, int64_t w) {
  const Epilogue e = selected.epilogue;
  const bool has = selected.selection != nullptr;
  return {.data = t.as<T>(),
          .n = static_cast<int>(t.size(0)),
          .h = static_cast<int>(h),
          .w = static_cast<int>(w),
          .c = static_cast<int>(t.size(1)),
          .stored_h = static_cast<int>(t.size(2)),
          .stored_w = static_cast<int>(t.size(3)),
          .selection = has ? selected.selection->as<uint8_t>() : nullptr,
          .plane = t.size(2) * t.size(3) * ((t.size(1) + 7) / 8),
          .planes = static_cast<int>(selection_planes(e)),
          .relu = has && e.relu,
          .pool = has && e.pool};
}

}  // namespace vggfast::cuda
