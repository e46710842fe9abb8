// Where a convolution's input comes from: an activation as it lies, or the gradient of an epilogue's output seen
// through the epilogue's mask (vggfast/mask.h), as the gradient of the sums before it.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/conv/common/math.h"
#include "cuda/ptx/prmt.h"
#include "vggfast/conv.h"

namespace vggfast::cuda {

/// A chunk as it is moved: elements of 16 bits would be taken apart and put together again.
struct alignas(chunk_bytes) Words {
  uint32_t word[4];
};

/// A chunk of T with zeros for the elements i whose bit i of `keep` is not set.
template <class T>
__device__ __forceinline__ Words masked(Words chunk, unsigned keep) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 2) {
      // Four bits to the signs of four bytes, of which each becomes two bytes of a mask.
      const uint32_t signs = (keep >> (i / 2 * 4) & 0xf) * 0x10204080;
      chunk.word[i] &= ptx::prmt(signs, i % 2 ? 0xbbaa : 0x9988);
    } else {
      chunk.word[i] &= 0u - (keep >> i & 1);
    }
  }
  return chunk;
}

template <class T>
struct Source {
  const T* data;
  int n, h, w, c;          // extents as the convolution sees them
  int stored_h, stored_w;  // of what lies in memory: halved where the mask has a pool
  const uint8_t* mask;     // where relu or pool says that there is one
  int64_t plane;           // bytes of a plane of it
  int planes;
  bool relu, pool;

  __device__ __forceinline__ bool inside(int y, int x) const {
    return static_cast<unsigned>(y) < static_cast<unsigned>(h) && static_cast<unsigned>(x) < static_cast<unsigned>(w);
  }
  /// Where what (y, x) is part of lies: its channels and their bits, and which part of a window it is.
  struct Stored {
    static constexpr uint32_t nowhere = ~0u;
    uint32_t chunk;  // first, from data; or nowhere: outside the image, or at an odd edge that the pool left out
    uint32_t byte;   // first, from mask
    unsigned part;   // the bits that a pixel of this column (bits 0-7) and row (8-15) of a window turns over
  };
  __device__ __forceinline__ Stored stored(int image, int y, int x) const {
    const int shift = pool ? 1 : 0, row = y >> shift, column = x >> shift;
    if (!inside(y, x) || row >= stored_h || column >= stored_w) return {Stored::nowhere, 0, 0};
    const uint32_t pixel = row * stored_w + column, area = stored_h * stored_w, bytes = (c + 7) / 8;
    return {(image * area + pixel) * static_cast<uint32_t>(c / chunk_of<T>), (image * planes * area + pixel) * bytes,
            (x & 1 ? 0u : 0xffu) | (y & 1 ? 0u : 0xff00u)};
  }
  /// A bit for each of the eight channels from 8 * `byte` on: whether they pass.
  __device__ __forceinline__ unsigned kept(const uint8_t* bits, unsigned part) const {
    unsigned keep = 0xff;
    if (relu) {
      keep = *bits;
      bits += plane;
    }
    if (pool) keep &= (bits[0] ^ part) & (bits[plane] ^ part >> 8);
    return keep;
  }
  /// Channels ch ... of it, a chunk that is aligned and whole; zeros where there is nothing or nothing passes.
  __device__ __forceinline__ Words masked_chunk(Stored at, int ch) const {
    if (at.chunk == Stored::nowhere) return {};
    const unsigned keep = kept(mask + at.byte + ch / 8, at.part) >> (ch % 8);
    return masked<T>(reinterpret_cast<const Words*>(data)[at.chunk + static_cast<uint32_t>(ch / chunk_of<T>)], keep);
  }

  /// One channel of (y, x), with a mask or without.
  __device__ __forceinline__ T element(int image, int y, int x, int ch) const {
    const int shift = pool ? 1 : 0, row = y >> shift, column = x >> shift;
    if (!inside(y, x) || row >= stored_h || column >= stored_w) return T{};
    const int64_t pixel = int64_t(row) * stored_w + column, area = int64_t(stored_h) * stored_w;
    if (relu || pool) {
      const uint8_t* bits = mask + (image * planes * area + pixel) * ((c + 7) / 8) + ch / 8;
      if (!(kept(bits, (x & 1 ? 0u : 0xffu) | (y & 1 ? 0u : 0xff00u)) >> (ch % 8) & 1)) return T{};
    }
    return data[(image * area + pixel) * c + ch];
  }
};

/// How a tile of a source comes to shared memory.
enum class Reads {
  async,     // 16 bytes at a time by cp.async: channels fill whole chunks, no mask
  masked,    // 16 bytes at a time through a mask
  gathered,  // element by element: any number of channels, the first layer's three among them; any mask
};

/// What a thread holds of a chunk between fetching and storing it.
template <class T, Reads How>
using Held = std::conditional_t<How == Reads::masked, Words, Chunk<T>>;

template <class T>
Reads reads_of(const Source<T>& s) {
  const bool whole = s.c % chunk_of<T> == 0 && reinterpret_cast<uintptr_t>(s.data) % chunk_bytes == 0;
  if (!whole || sizeof(T) == 8) return Reads::gathered;
  if (!s.relu && !s.pool) return Reads::async;
  const int64_t pixels = int64_t(s.n) * s.stored_h * s.stored_w;  // Stored counts in 32 bits
  const int64_t last = std::max(pixels * (s.c / chunk_of<T>), pixels * s.planes * ((s.c + 7) / 8));
  return last < Source<T>::Stored::nowhere ? Reads::masked : Reads::gathered;
}

template <class T>
Source<T> source_of(const Tensor& t, const Masked& masked, int64_t h, int64_t w) {
  const Epilogue e = masked.epilogue;
  const bool has = masked.mask != nullptr;
  return {.data = t.as<T>(),
          .n = static_cast<int>(t.size(0)),
          .h = static_cast<int>(h),
          .w = static_cast<int>(w),
          .c = static_cast<int>(t.size(1)),
          .stored_h = static_cast<int>(t.size(2)),
          .stored_w = static_cast<int>(t.size(3)),
          .mask = has ? masked.mask->as<uint8_t>() : nullptr,
          .plane = t.size(2) * t.size(3) * ((t.size(1) + 7) / 8),
          .planes = static_cast<int>(mask_planes(e)),
          .relu = has && e.relu,
          .pool = has && e.pool};
}

}  // namespace vggfast::cuda
