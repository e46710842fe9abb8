// Outputs too large for the caches are written past them: nobody would find them there, and a line that is written
// whole need not be read first.
#pragma once

#include "cpu/kernel_table.h"

namespace vggfast::cpu {

/// Bytes of an output from which on that pays.
inline constexpr int64_t streamed_bytes = 10 << 20;

/// Whether to stream `values` of this type at `to`, in rows of `row`: they are many, and their vectors aligned.
template <class S>
bool streams(const S* to, int64_t values, int64_t row) {
  const int64_t bytes = static_cast<int64_t>(sizeof(S)), vector = kernels().lanes * static_cast<int64_t>(sizeof(float));
  return sizeof(S) == sizeof(float) && values * bytes >= streamed_bytes && row * bytes % vector == 0 &&
         reinterpret_cast<uintptr_t>(to) % static_cast<uintptr_t>(vector) == 0;
}

/// `out`, of so many images, with `stream` set as it should be.
template <class S>
ConvOutput<S> streamed(ConvOutput<S> out, int64_t images) {
  out.stream = streams(out.y, images * out.h * out.w * out.c, out.c);
  return out;
}

}  // namespace vggfast::cpu
