// What kernels of 8 bits share: products of words of VGGFAST_INT8_TERMS values, and what becomes of their sums.
//
// Bits  Sums are exact, and this is compiled without contraction: sum * unit + bias rounds twice everywhere.
#pragma once

#include "cpu/int8_kernels.h"
#include "cpu/isa/simd.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

typedef int32_t Sums __attribute__((vector_size(VGGFAST_VECTOR_BYTES)));

/// A vector's words of weights, as the products take them.
inline __attribute__((always_inline)) Sums load_weights(const int8_t* p) {
#if VGGFAST_INT8_TERMS == 2 && VGGFAST_VECTOR_BYTES == 64
  return (Sums)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p));
#elif VGGFAST_INT8_TERMS == 2
  return (Sums)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
#else
  Sums words;
  __builtin_memcpy(&words, p, sizeof words);
  return words;
#endif
}

/// sums + the products of each word's terms.
inline __attribute__((always_inline)) Sums add_products(Sums sums, Sums inputs, Sums weights) {
#if VGGFAST_INT8_TERMS == 4 && defined(__AVX512VNNI__)
  return (Sums)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)inputs, (__m512i)weights);
#elif VGGFAST_INT8_TERMS == 2 && VGGFAST_VECTOR_BYTES == 64
  return sums + (Sums)_mm512_madd_epi16((__m512i)inputs, (__m512i)weights);
#elif VGGFAST_INT8_TERMS == 2
  return sums + (Sums)_mm256_madd_epi16((__m256i)inputs, (__m256i)weights);
#else
  // Even and odd bytes apart: each product fits 16 bits.
  typedef int16_t Signed __attribute__((vector_size(VGGFAST_VECTOR_BYTES)));
  typedef uint16_t Unsigned __attribute__((vector_size(VGGFAST_VECTOR_BYTES)));
  const Signed even = (Signed)((Unsigned)inputs & 255) * ((Signed)((Unsigned)weights << 8) >> 8);
  const Signed odd = (Signed)((Unsigned)inputs >> 8) * ((Signed)weights >> 8);
  const Sums low = ((Sums)even << 16 >> 16) + ((Sums)odd << 16 >> 16);
  return sums + low + ((Sums)even >> 16) + ((Sums)odd >> 16);
#endif
}

inline Sums load_sums(const int32_t* p) {
  Sums v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store_sums(int32_t* p, Sums v) { __builtin_memcpy(p, &v, sizeof v); }
inline Sums larger(Sums a, Sums b) { return a > b ? a : b; }

typedef uint8_t Bytes __attribute__((vector_size(VGGFAST_VECTOR_BYTES / 4)));

inline __attribute__((always_inline)) Bytes quantised(Vec<float>::Value x, float inverse) {
  using V = Vec<float>;
  constexpr float whole = 12582912;  // 1.5 * 2^23: adding it rounds to an integer, which lies in the lowest bits
  V::Value v = x * inverse;
  v = V::select(v > 0, v, V::zero());
  v = V::select(v < 255, v, V::set1(255));
  return __builtin_convertvector((Sums)(v + whole) & 255, Bytes);
}

/// Stores `count` channels, up to `lanes`, of one output from value `at` of out.y on.
inline __attribute__((always_inline)) void store_values(const Int8Output& out, int64_t at, int64_t count, Sums sums,
                                                        Vec<float>::Value unit, Vec<float>::Value bias) {
  using V = Vec<float>;
  V::Value y = __builtin_convertvector(sums, V::Value) * unit + bias;
  if (out.relu) y = V::select(y > 0, y, V::zero());
  if (out.inverse == 0) {
    float* to = (float*)out.y + at;
    count == V::lanes ? V::store(to, y) : V::store(to, y, count);
  } else {
    const Bytes bytes = quantised(y, out.inverse);
    uint8_t* to = (uint8_t*)out.y + at;
    if (count == V::lanes) {
      __builtin_memcpy(to, &bytes, sizeof bytes);
    } else {
      __builtin_memcpy(to, &bytes, (size_t)count);
    }
  }
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
