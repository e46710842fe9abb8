// Vectors of VGGFAST_VECTOR_BYTES bytes, for the kernels of one instruction set.
//
// Each cpu/isa/isa_*.cpp compiles the same kernels with its own flags and its own namespace VGGFAST_ISA. So that no
// function compiled for a newer machine is ever shared with an older one, kernels use no inline function of the
// standard library: what they need is here, with internal linkage.
#pragma once

#include "cpu/kernel_table.h"

#if !defined(VGGFAST_ISA) || !defined(VGGFAST_VECTOR_BYTES)
#error "define VGGFAST_ISA and VGGFAST_VECTOR_BYTES first: this header belongs to the sources cpu/isa/isa_*.cpp"
#endif
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}

template <class T>
struct IntOf;
template <>
struct IntOf<float> {
  using type = int32_t;
};
template <>
struct IntOf<double> {
  using type = int64_t;
};

/// A vector of T. Arithmetic and comparisons are the compiler's own (GCC vector extension); a comparison gives a
/// Mask whose lanes are all ones or all zeros.
template <class T>
struct Vec {
  static constexpr int64_t lanes = VGGFAST_VECTOR_BYTES / sizeof(T);
  typedef T Value __attribute__((vector_size(VGGFAST_VECTOR_BYTES)));
  typedef typename IntOf<T>::type Mask __attribute__((vector_size(VGGFAST_VECTOR_BYTES)));

  static Value zero() { return Value{}; }
  static Value set1(T x) { return x - Value{}; }  // x - 0 keeps the sign of a zero, x + 0 does not
  static Value load(const T* p) {
    Value v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(T* p, Value v) { __builtin_memcpy(p, &v, sizeof v); }
  /// Past the caches, where the machine can; p is aligned to a vector. end_stream() follows.
  static void stream(T* p, Value v) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX__)
    if constexpr (sizeof(T) == 4) return _mm256_stream_ps(p, (__m256)v);
#endif
    store(p, v);
  }
  /// After the last of them: no other thread may see a later store first.
  static void end_stream() {
#if defined(__AVX__)
    _mm_sfence();
#endif
  }
  /// The first `n` lanes (n < lanes); the others are 0 and are not touched in memory.
  static Value load(const T* p, int64_t n) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return (Value)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
    if constexpr (sizeof(T) == 8) return (Value)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
#endif
    Value v{};
    for (int64_t i = 0; i < n; ++i) v[i] = p[i];
    return v;
  }
  static void store(T* p, Value v, int64_t n) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
    if constexpr (sizeof(T) == 8) return _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
#endif
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
  }
  /// bfloat16 in memory, float in registers; stores round to the nearest, ties to even, and keep NaN.
  static Value load(const Bf16* p) {
    uint16_t half __attribute__((vector_size(VGGFAST_VECTOR_BYTES / 2)));
    __builtin_memcpy(&half, p, sizeof half);
    return (Value)(__builtin_convertvector(half, Mask) << 16);
  }
  static Value load(const Bf16* p, int64_t n) {
    Bf16 whole[lanes] = {};
    __builtin_memcpy(whole, p, (size_t)n * sizeof(Bf16));
    return load(whole);
  }
  static void store(Bf16* p, Value v) {
    typedef uint32_t Bits __attribute__((vector_size(VGGFAST_VECTOR_BYTES)));
    typedef uint16_t Half __attribute__((vector_size(VGGFAST_VECTOR_BYTES / 2)));
    const Bits bits = (Bits)v;
    const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, quiet = (bits >> 16) | 0x40;
    const Half half = __builtin_convertvector((v != v) ? quiet : rounded, Half);
    __builtin_memcpy(p, &half, sizeof half);
  }
  static void store(Bf16* p, Value v, int64_t n) {
    Bf16 whole[lanes];
    store(whole, v);
    __builtin_memcpy(p, whole, (size_t)n * sizeof(Bf16));
  }
  static Value fma(T a, Value b, Value c) { return a * b + c; }  // contracted where the machine can
  static Value select(Mask m, Value yes, Value no) { return m ? yes : no; }

  /// Lane i becomes bit i.
  static uint32_t bits(Mask m) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_cmplt_epi32_mask((__m512i)m, _mm512_setzero_si512());
    if constexpr (sizeof(T) == 8) return _mm512_cmplt_epi64_mask((__m512i)m, _mm512_setzero_si512());
#endif
    uint32_t out = 0;
    for (int64_t i = 0; i < lanes; ++i) out |= (uint32_t)(m[i] & 1) << i;
    return out;
  }
  static Mask from_bits(uint32_t bits) {
    Mask lane_bit;
    for (int64_t i = 0; i < lanes; ++i) lane_bit[i] = (typename IntOf<T>::type)1 << i;
    return (lane_bit & (typename IntOf<T>::type)bits) != 0;
  }
};

/// Where v replaces the running maximum m: a larger value, or NaN (torch's rule: the first maximum, the last NaN).
template <class T, class Value = typename Vec<T>::Value>
typename Vec<T>::Mask replaces(Value v, Value m) {
  return (v > m) | (v != v);
}
/// Where ReLU's gradient passes: everything but v <= 0, NaN included.
template <class T, class Value = typename Vec<T>::Value>
typename Vec<T>::Mask passes(Value v) {
  return ~(v <= Vec<T>::zero());
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
