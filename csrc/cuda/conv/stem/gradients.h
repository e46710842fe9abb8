// The gradient that dgrad and wgrad read, once: 16 bytes at a time, by cp.async to where the same lane finds them and
// applies the selection, whose bits come to a register meanwhile.
#pragma once

#include "cuda/conv/portable/source.h"
#include "cuda/ptx/cp_async.h"

namespace vggfast::cuda {

/// Begins to bring the chunk of channels `c` ... of the pixel stored `at`: zeros where there is none. Returns the bits
/// for `selected`.
template <class T>
__device__ __forceinline__ unsigned fetch_chunk(const Source<T>& gz, typename Source<T>::Stored at, int c,
                                                char* shared) {
  const bool real = at.chunk != Source<T>::Stored::nowhere && c < gz.c;
  const Words* const chunks = reinterpret_cast<const Words*>(gz.data);
  ptx::cp_async_ca_16(shared, chunks + (real ? at.chunk + static_cast<uint32_t>(c / chunk_of<T>) : 0u), real);
  return real && (gz.relu || gz.pool) ? gz.kept(gz.selection + at.byte + c / 8, at.part) >> (c % 8) : 0;
}

/// The chunk that has arrived, with zeros for what the selection leaves out.
template <class T>
__device__ __forceinline__ Words selected(const Source<T>& gz, const char* shared, unsigned keep) {
  const Words chunk = *reinterpret_cast<const Words*>(shared);
  return gz.relu || gz.pool ? masked<T>(chunk, keep) : chunk;
}

}  // namespace vggfast::cuda
