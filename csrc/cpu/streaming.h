// Outputs too large for the caches are written past them: nobody would find them there, and a line that is written
// whole need not be read first.
#pragma once

#include "cpu/kernel_table.h"

namespace vggfast::cpu {

/// Bytes of an output from which on that pays.
inline constexpr int64_t streamed_bytes = 10 << 20;

/// `out`, of so many images, with `stream` set where it is large, and its vectors are aligned.
template <class S>
ConvOutput<S> streamed(ConvOutput<S> out, int64_t images) {
  const int64_t pixel_bytes = out.c * static_cast<int64_t>(sizeof(S));
  const int64_t vector_bytes = kernels().lanes * static_cast<int64_t>(sizeof(float));
  out.stream = sizeof(S) == sizeof(float) && images * out.h * out.w * pixel_bytes >= streamed_bytes &&
               pixel_bytes % vector_bytes == 0 && reinterpret_cast<uintptr_t>(out.y) % vector_bytes == 0;
  return out;
}

}  // namespace vggfast::cpu
