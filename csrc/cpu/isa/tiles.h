// Tile registers: eight of 16 rows of 64 bytes. Two classes of one face: HardwareTiles, an instruction of AMX a
// function, and EmulatedTiles, which computes the same bits on any machine. Kernels are templates on that face, and
// make an object of it where they begin: its constructor configures the tiles, its destructor releases them. Library
// code that runs on the same thread in between may configure them anew, so that kernels call none that touches tiles.
//
// dot_bf16<C, A, B>: C (16 x 16 float) += A (16 x 32 bfloat16) B (32 x 16, a row of B holds two rows, interleaved).
//   For each result e = o = +0; for k in order: e = fma(a[2k], b[2k], e), o = fma(a[2k + 1], b[2k + 1], o); then
//   c + (e + o). All is rounded to nearest even, and each operand and result that is denormal becomes a zero of its
//   sign. No such product is the sum of two with half the K: a kernel fixes its results by how it cuts K.
// dot_u8s8<C, A, B>: C (16 x 16 int32) += A (16 x 64 uint8) B (64 x 16 int8, a row of B holds four), wrapping.
//
// Measured on a Xeon (4th generation class): 5.0 to 5.25 ns a product, 2.8 ns a load from L1, 6.3 from L2.
#pragma once

#include "cpu/isa/simd.h"
#include "cpu/tile_kernels.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

#if defined(__x86_64__)
class HardwareTiles {
 public:
  HardwareTiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int t = 0; t < 8; ++t) {
      config.row_bytes[t] = tile_row_bytes;
      config.rows[t] = tile_rows;
    }
    asm volatile("ldtilecfg %0" ::"m"(config));  // GCC 12's own intrinsic reads 8 bytes of it, and the rest may vanish
  }
  ~HardwareTiles() { asm volatile("tilerelease" ::: "memory"); }
  HardwareTiles(const HardwareTiles&) = delete;
  HardwareTiles& operator=(const HardwareTiles&) = delete;

  template <int T>
  void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  /// Rows are `stride` bytes apart.
  template <int T>
  void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
  }
  template <int C, int A, int B>
  void dot_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  template <int C, int A, int B>
  void dot_u8s8() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
  /// Without a floating-point vector instruction for 0.6 us, the next store was measured to take 305 ns and not 7.
  void keep_awake() {
    float zeros __attribute__((vector_size(16))) = {};
    asm volatile("vaddps %0, %0, %0" : "+x"(zeros));
  }
};
#endif

class EmulatedTiles {
 public:
  EmulatedTiles() = default;
  ~EmulatedTiles() {
    __atomic_fetch_add(&emulated_tiles.products, counts_.products, __ATOMIC_RELAXED);
    __atomic_fetch_add(&emulated_tiles.stores, counts_.stores, __ATOMIC_RELAXED);
    for (int t = 0; t < 8; ++t) {
      __atomic_fetch_add(&emulated_tiles.loads[t], counts_.loads[t], __ATOMIC_RELAXED);
    }
  }
  EmulatedTiles(const EmulatedTiles&) = delete;
  EmulatedTiles& operator=(const EmulatedTiles&) = delete;

  template <int T>
  void zero() {
    __builtin_memset(tiles_[T], 0, tile_bytes);
  }
  template <int T>
  void load(const void* from, int64_t stride) {
    ++counts_.loads[T];
    for (int64_t r = 0; r < tile_rows; ++r) {
      __builtin_memcpy(tiles_[T] + r * tile_row_bytes, (const char*)from + r * stride, tile_row_bytes);
    }
  }
  template <int T>
  void store(void* to, int64_t stride) {
    ++counts_.stores;
    for (int64_t r = 0; r < tile_rows; ++r) {
      __builtin_memcpy((char*)to + r * stride, tiles_[T] + r * tile_row_bytes, tile_row_bytes);
    }
  }
  template <int C, int A, int B>
  void dot_bf16() {
    ++counts_.products;
    dot_bf16((float*)tiles_[C], (const uint16_t*)tiles_[A], (const uint16_t*)tiles_[B]);
  }
  template <int C, int A, int B>
  void dot_u8s8() {
    ++counts_.products;
    dot_u8s8((uint32_t*)tiles_[C], (const uint8_t*)tiles_[A], (const int8_t*)tiles_[B]);
  }
  void keep_awake() {}

 private:
  static constexpr int n = 16, pairs = 16;

  /// x, rounded to float; a zero of its sign where that is denormal.
  static double rounded(double x) {
    const float f = (float)x;
    return __builtin_fabsf(f) < __FLT_MIN__ ? __builtin_copysign(0.0, x) : (double)f;
  }
  static double value(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float f;
    __builtin_memcpy(&f, &wide, sizeof f);
    return rounded(f);
  }
  /// sum = fma(a, b, sum) for n columns. A product of two bfloat16 is exact in double, and so is its sum with a float
  /// wherever the rounding of that to double could change the rounding to float (53 >= 2 * 24 + 2 bits).
  static void multiply_add(double a, const double* b, double* sum) {
    for (int j = 0; j < n; ++j) sum[j] = rounded(sum[j] + a * b[j]);
  }

  static __attribute__((noinline)) void dot_bf16(float* c, const uint16_t* a, const uint16_t* b) {
    double even_b[pairs][n], odd_b[pairs][n];
    for (int k = 0; k < pairs; ++k) {
      for (int j = 0; j < n; ++j) {
        even_b[k][j] = value(b[(k * n + j) * 2]);
        odd_b[k][j] = value(b[(k * n + j) * 2 + 1]);
      }
    }
    for (int row = 0; row < tile_rows; ++row, c += n, a += 2 * pairs) {
      double even[n] = {}, odd[n] = {};
      for (int k = 0; k < pairs; ++k) {
        multiply_add(value(a[2 * k]), even_b[k], even);
        multiply_add(value(a[2 * k + 1]), odd_b[k], odd);
      }
      for (int j = 0; j < n; ++j) c[j] = (float)rounded(rounded(c[j]) + rounded(even[j] + odd[j]));
    }
  }

  static __attribute__((noinline)) void dot_u8s8(uint32_t* c, const uint8_t* a, const int8_t* b) {
    for (int row = 0; row < tile_rows; ++row, c += n, a += tile_row_bytes) {
      for (int k = 0; k < tile_row_bytes; ++k) {
        for (int j = 0; j < n; ++j) c[j] += (uint32_t)(a[k] * b[k / 4 * tile_row_bytes + j * 4 + k % 4]);
      }
    }
  }

  alignas(64) char tiles_[8][tile_bytes];
  TileCounts counts_ = {};
};

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
