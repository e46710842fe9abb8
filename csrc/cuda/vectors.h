// Eight channels at a time: what a thread of the kernels bound by memory loads, computes with and stores. Where the
// channels of every pixel begin at a multiple of 16 bytes (Aligned) they move in accesses of 16 bytes, else one by one.
#pragma once

#include <cstring>
#include <initializer_list>

#include "cuda/ptx/cvt.h"
#include "cuda/ptx/ld_st.h"

namespace vggfast::cuda {

constexpr int vector_channels = 8;

template <class T>
struct WideOf {
  using Type = float;
};
template <>
struct WideOf<double> {
  using Type = double;
};
/// What is computed with: float32 for all but float64.
template <class T>
using Wide = typename WideOf<T>::Type;

__device__ __forceinline__ float widen(bf16 value) { return ptx::cvt_f32(value); }
__device__ __forceinline__ float widen(f16 value) { return ptx::cvt_f32(value); }
__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }

template <class T>
__device__ __forceinline__ T narrow(Wide<T> value) {
  return value;
}
template <>
__device__ __forceinline__ bf16 narrow<bf16>(float value) {
  return ptx::cvt_rn_bf16(value);
}
template <>
__device__ __forceinline__ f16 narrow<f16>(float value) {
  return ptx::cvt_rn_f16(value);
}

template <class T>
struct Channels {
  T at[vector_channels];
};

/// The channels from p on, of which the tensor has `count`; 0 in place of those beyond.
template <bool Aligned, class T>
__device__ __forceinline__ Channels<T> load_channels(const T* p, int64_t count) {
  Channels<T> v;
  if constexpr (Aligned) {
    constexpr int accesses = sizeof(v) / sizeof(Words4);
    Words4 words[accesses];
#pragma unroll
    for (int i = 0; i < accesses; ++i) words[i] = ptx::ld_global_v4(p + i * (vector_channels / accesses));
    memcpy(&v, words, sizeof(v));
  } else {
#pragma unroll
    for (int i = 0; i < vector_channels; ++i) v.at[i] = i < count ? p[i] : T{};
  }
  return v;
}

template <bool Aligned, class T>
__device__ __forceinline__ void store_channels(T* p, int64_t count, const Channels<T>& v) {
  if constexpr (Aligned) {
    constexpr int accesses = sizeof(v) / sizeof(Words4);
    Words4 words[accesses];
    memcpy(words, &v, sizeof(v));
#pragma unroll
    for (int i = 0; i < accesses; ++i) ptx::st_global_v4(p + i * (vector_channels / accesses), words[i]);
  } else {
#pragma unroll
    for (int i = 0; i < vector_channels; ++i) {
      if (i < count) p[i] = v.at[i];
    }
  }
}

/// Calls body.operator()<Aligned>(): whether rows of `channels` values at these addresses may be moved so.
template <class Body>
void for_alignment(int64_t channels, std::initializer_list<const void*> addresses, Body body) {
  bool aligned = channels % vector_channels == 0;
  for (const void* address : addresses) aligned = aligned && reinterpret_cast<uintptr_t>(address) % sizeof(Words4) == 0;
  aligned ? body.template operator()<true>() : body.template operator()<false>();
}

}  // namespace vggfast::cuda
