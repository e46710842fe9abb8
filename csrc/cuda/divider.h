// Division of 31-bit numbers by one that is known at launch: a product and a shift.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace vggfast::cuda {

/// How many parts of `part` it takes to cover `whole`.
constexpr int64_t ceil_div(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

struct Divider {
  uint32_t divisor = 1, factor = 1u << 31;
  int shift = 31;

  Divider() = default;
  explicit Divider(int64_t by) : divisor(static_cast<uint32_t>(by)) {
    int bits = 0;
    while ((int64_t(1) << bits) < by) ++bits;
    shift = 31 + bits;
    factor = static_cast<uint32_t>(((uint64_t(1) << shift) + divisor - 1) / divisor);
  }

  __device__ __forceinline__ int quotient(int of) const {
    return static_cast<int>(uint64_t(static_cast<uint32_t>(of)) * factor >> shift);
  }
  __device__ __forceinline__ int remainder(int of) const { return of - quotient(of) * static_cast<int>(divisor); }
};

}  // namespace vggfast::cuda
