// wgmma, sm_90a: a warpgroup (four warps, the first a multiple of four) multiplies d (64 x N, float32) += a (64 x K) b
// (K x N), K = 32 bytes of operands. b, and a unless it is in registers, lie in shared memory, where descriptors find
// them. With w = warp % 4, g = lane / 4, t = lane % 4: d[4 i + 2 h + e] is row 16 w + g + 8 h, column 8 i + 2 t + e.
// Asynchronous: nobody may touch d, nor write what it reads, until wgmma_wait_group().
#pragma once

#include "cuda/ptx/common.h"
#ifdef VGGFAST_SIM
#include "sim/hopper.h"
#endif

namespace vggfast::ptx {

/// How 16-byte chunks lie in shared memory, in spans of so many bytes.
enum class Swizzle : uint64_t { none = 0, b128 = 1, b64 = 2, b32 = 3 };

/// K contiguous: rows of a swizzle's span, groups of 8 rows `stride` bytes apart (`leading` is without meaning);
/// without a swizzle, 8 rows of 16 bytes, `leading` to the next 16 bytes of K. M or N contiguous (16-bit types): lines
/// of a swizzle's span for each k, groups of 8 lines `stride` apart, `leading` from one span of M or N to the next.
VGGFAST_PTX uint64_t wgmma_descriptor(const void* shared, Swizzle swizzle, uint32_t leading, uint32_t stride,
                                      uint32_t base_offset = 0) {
#ifdef VGGFAST_SIM
  const uint64_t start = sim::shared_address(shared);
#else
  const uint64_t start = shared_address(shared);
#endif
  return (start >> 4 & 0x3fff) | uint64_t(leading >> 4 & 0x3fff) << 16 | uint64_t(stride >> 4 & 0x3fff) << 32 |
         uint64_t(base_offset & 7) << 49 | static_cast<uint64_t>(swizzle) << 62;
}

/// Orders what the thread wrote to registers before the wgmma that follow: comes before the first, and again after d or
/// a in registers has been written.
VGGFAST_PTX void wgmma_fence() {
#ifdef VGGFAST_SIM
  sim::wgmma_fence();
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

VGGFAST_PTX void wgmma_commit_group() {
#ifdef VGGFAST_SIM
  sim::wgmma_commit_group();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

/// Until at most `StillInFlight` of the warp's groups are not over.
template <int StillInFlight>
VGGFAST_PTX void wgmma_wait_group() {
#ifdef VGGFAST_SIM
  sim::wgmma_wait_group(StillInFlight);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(StillInFlight) : "memory");
#endif
}

/// Keeps the compiler from moving uses of the accumulators across: after the wait, before they are read.
template <int Registers>
VGGFAST_PTX void wgmma_hold([[maybe_unused]] float (&d)[Registers]) {
#ifndef VGGFAST_SIM
#pragma unroll
  for (int i = 0; i < Registers; ++i) asm volatile("" : "+f"(d[i])::"memory");
#endif
}

/// Types of operands, in the simulator's order. M or N contiguous in shared memory: only bf16 and f16.
enum class WgmmaType { bf16, f16, tf32, e4m3, e5m2 };
enum class Major { k, mn };
template <WgmmaType Type, int N, Major A, Major B>
constexpr bool wgmma_is_legal =
    N % 16 == 0 && N >= 16 && N <= 256 && (Type <= WgmmaType::f16 || (A == Major::k && B == Major::k));

#ifdef VGGFAST_SIM

/// d = a b + (scale_d ? d : 0), or -a b + ...; a and b by descriptors.
template <WgmmaType Type, int N, Major A = Major::k, Major B = Major::k, bool Negate = false>
VGGFAST_PTX void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool scale_d) {
  static_assert(wgmma_is_legal<Type, N, A, B>);
  sim::wgmma({static_cast<sim::Narrow>(Type), N, A == Major::mn, B == Major::mn, Negate, false}, d, nullptr, a, b,
             scale_d);
}

/// a in registers, as mma.sync's for 16 rows of each warp. Without Negate: ptxas 13.0 then negates registers as
/// integers.
template <WgmmaType Type, int N, Major B = Major::k>
VGGFAST_PTX void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool scale_d) {
  static_assert(wgmma_is_legal<Type, N, Major::k, B>);
  sim::wgmma({static_cast<sim::Narrow>(Type), N, false, B == Major::mn}, d, a, 0, b, scale_d);
}

#else

// Names and places of d's registers in an instruction: of 8, then of all.
#define VGGFAST_D8(i)                                                                                         \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
// clang-format off
#define VGGFAST_NAMES8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define VGGFAST_NAMES16 VGGFAST_NAMES8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define VGGFAST_NAMES24 VGGFAST_NAMES16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define VGGFAST_NAMES32 VGGFAST_NAMES24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define VGGFAST_NAMES40 VGGFAST_NAMES32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define VGGFAST_NAMES48 VGGFAST_NAMES40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define VGGFAST_NAMES56 VGGFAST_NAMES48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define VGGFAST_NAMES64 VGGFAST_NAMES56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define VGGFAST_NAMES72 VGGFAST_NAMES64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define VGGFAST_NAMES80 VGGFAST_NAMES72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define VGGFAST_NAMES88 VGGFAST_NAMES80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define VGGFAST_NAMES96 VGGFAST_NAMES88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define VGGFAST_NAMES104 VGGFAST_NAMES96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define VGGFAST_NAMES112 VGGFAST_NAMES104 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define VGGFAST_NAMES120 VGGFAST_NAMES112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define VGGFAST_NAMES128 VGGFAST_NAMES120 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define VGGFAST_PLACES8 VGGFAST_D8(0)
#define VGGFAST_PLACES16 VGGFAST_PLACES8, VGGFAST_D8(8)
#define VGGFAST_PLACES24 VGGFAST_PLACES16, VGGFAST_D8(16)
#define VGGFAST_PLACES32 VGGFAST_PLACES24, VGGFAST_D8(24)
#define VGGFAST_PLACES40 VGGFAST_PLACES32, VGGFAST_D8(32)
#define VGGFAST_PLACES48 VGGFAST_PLACES40, VGGFAST_D8(40)
#define VGGFAST_PLACES56 VGGFAST_PLACES48, VGGFAST_D8(48)
#define VGGFAST_PLACES64 VGGFAST_PLACES56, VGGFAST_D8(56)
#define VGGFAST_PLACES72 VGGFAST_PLACES64, VGGFAST_D8(64)
#define VGGFAST_PLACES80 VGGFAST_PLACES72, VGGFAST_D8(72)
#define VGGFAST_PLACES88 VGGFAST_PLACES80, VGGFAST_D8(80)
#define VGGFAST_PLACES96 VGGFAST_PLACES88, VGGFAST_D8(88)
#define VGGFAST_PLACES104 VGGFAST_PLACES96, VGGFAST_D8(96)
#define VGGFAST_PLACES112 VGGFAST_PLACES104, VGGFAST_D8(104)
#define VGGFAST_PLACES120 VGGFAST_PLACES112, VGGFAST_D8(112)
#define VGGFAST_PLACES128 VGGFAST_PLACES120, VGGFAST_D8(120)
// clang-format on

// One instruction with N = n; d has registers 0 to r - 1, and r, p1, p2, ... number the operands that follow.
#define VGGFAST_WGMMA_SS(n, r, p1, p2, p3, form, tail)                                                    \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n form \
               " {" VGGFAST_NAMES##r "}, %" #r ", %" #p1 ", p, %" #p3 ", 1" tail ";\n}"                   \
               : VGGFAST_PLACES##r                                                                        \
               : "l"(a), "l"(b), "r"(int(scale_d)), "n"(Negate ? -1 : 1), "n"(int(A)), "n"(int(B)))
#define VGGFAST_WGMMA_RS(n, r, p1, p2, p3, p4, p5, form, tail)                                                   \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #p5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n form        \
               " {" VGGFAST_NAMES##r "}, {%" #r ", %" #p1 ", %" #p2 ", %" #p3 "}, %" #p4 ", p, 1, 1" tail ";\n}" \
               : VGGFAST_PLACES##r                                                                               \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(scale_d)), "n"(int(B)))
#define VGGFAST_SS_OF(n, r, p1, p2, p3, p4, p5, p6, p7)                                                               \
  if constexpr (N == n) {                                                                                             \
    if constexpr (Type == WgmmaType::bf16)                                                                            \
      VGGFAST_WGMMA_SS(n, r, p1, p2, p3, "k16.f32.bf16.bf16", ", %" #p4 ", %" #p5);                                   \
    if constexpr (Type == WgmmaType::f16) VGGFAST_WGMMA_SS(n, r, p1, p2, p3, "k16.f32.f16.f16", ", %" #p4 ", %" #p5); \
    if constexpr (Type == WgmmaType::tf32) VGGFAST_WGMMA_SS(n, r, p1, p2, p3, "k8.f32.tf32.tf32", "");                \
    if constexpr (Type == WgmmaType::e4m3) VGGFAST_WGMMA_SS(n, r, p1, p2, p3, "k32.f32.e4m3.e4m3", "");               \
    if constexpr (Type == WgmmaType::e5m2) VGGFAST_WGMMA_SS(n, r, p1, p2, p3, "k32.f32.e5m2.e5m2", "");               \
  }
#define VGGFAST_RS_OF(n, r, p1, p2, p3, p4, p5, p6, p7)                                                                \
  if constexpr (N == n) {                                                                                              \
    if constexpr (Type == WgmmaType::bf16) VGGFAST_WGMMA_RS(n, r, p1, p2, p3, p4, p5, "k16.f32.bf16.bf16", ", %" #p6); \
    if constexpr (Type == WgmmaType::f16) VGGFAST_WGMMA_RS(n, r, p1, p2, p3, p4, p5, "k16.f32.f16.f16", ", %" #p6);    \
    if constexpr (Type == WgmmaType::tf32) VGGFAST_WGMMA_RS(n, r, p1, p2, p3, p4, p5, "k8.f32.tf32.tf32", "");         \
    if constexpr (Type == WgmmaType::e4m3) VGGFAST_WGMMA_RS(n, r, p1, p2, p3, p4, p5, "k32.f32.e4m3.e4m3", "");        \
    if constexpr (Type == WgmmaType::e5m2) VGGFAST_WGMMA_RS(n, r, p1, p2, p3, p4, p5, "k32.f32.e5m2.e5m2", "");        \
  }
// clang-format off
#define VGGFAST_EACH_N(form) \
  form(16, 8, 9, 10, 11, 12, 13, 14, 15) \
  form(32, 16, 17, 18, 19, 20, 21, 22, 23) \
  form(48, 24, 25, 26, 27, 28, 29, 30, 31) \
  form(64, 32, 33, 34, 35, 36, 37, 38, 39) \
  form(80, 40, 41, 42, 43, 44, 45, 46, 47) \
  form(96, 48, 49, 50, 51, 52, 53, 54, 55) \
  form(112, 56, 57, 58, 59, 60, 61, 62, 63) \
  form(128, 64, 65, 66, 67, 68, 69, 70, 71) \
  form(144, 72, 73, 74, 75, 76, 77, 78, 79) \
  form(160, 80, 81, 82, 83, 84, 85, 86, 87) \
  form(176, 88, 89, 90, 91, 92, 93, 94, 95) \
  form(192, 96, 97, 98, 99, 100, 101, 102, 103) \
  form(208, 104, 105, 106, 107, 108, 109, 110, 111) \
  form(224, 112, 113, 114, 115, 116, 117, 118, 119) \
  form(240, 120, 121, 122, 123, 124, 125, 126, 127) \
  form(256, 128, 129, 130, 131, 132, 133, 134, 135)
// clang-format on

/// d = a b + (scale_d ? d : 0), or -a b + ...; a and b by descriptors. N is a multiple of 16.
template <WgmmaType Type, int N, Major A = Major::k, Major B = Major::k, bool Negate = false>
VGGFAST_PTX void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool scale_d) {
  static_assert(wgmma_is_legal<Type, N, A, B>);
  VGGFAST_EACH_N(VGGFAST_SS_OF)
}

/// a in registers, as mma.sync's for 16 rows of each warp. Without Negate: ptxas 13.0 then negates registers as
/// integers.
template <WgmmaType Type, int N, Major B = Major::k>
VGGFAST_PTX void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, bool scale_d) {
  static_assert(wgmma_is_legal<Type, N, Major::k, B>);
  VGGFAST_EACH_N(VGGFAST_RS_OF)
}

#undef VGGFAST_EACH_N
#undef VGGFAST_RS_OF
#undef VGGFAST_SS_OF
#undef VGGFAST_WGMMA_RS
#undef VGGFAST_WGMMA_SS
#undef VGGFAST_D8

#endif

}  // namespace vggfast::ptx
