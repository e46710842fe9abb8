#include "cpu/isa/amx.h"

#include <atomic>

#include "core/fork.h"

#if defined(VGGFAST_X86)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#endif

namespace vggfast::cpu {
namespace {

#if defined(VGGFAST_X86)

/// The tiles with products of bfloat16 and int8; and vcvtne2ps2bf16, which their results are stored by.
bool processor_has_tiles() {
  constexpr unsigned bf16 = 1u << 22, tile = 1u << 24, int8 = 1u << 25, wanted = bf16 | tile | int8;
  constexpr unsigned avx512_bf16 = 1u << 5;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & wanted) != wanted) return false;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & avx512_bf16);
}

/// XCR0's bits of the tiles and of their configuration.
__attribute__((target("xsave"))) bool system_saves_tiles() {
  constexpr unsigned osxsave = 1u << 27, state = 3u << 17;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & osxsave)) return false;
  return (_xgetbv(0) & state) == state;
}

bool ask_permission() {
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

#else

bool processor_has_tiles() { return false; }
bool system_saves_tiles() { return false; }
bool ask_permission() { return false; }

#endif

}  // namespace

Amx find_amx() {
  static std::atomic<const Amx*> kept{nullptr};
  return made_once(kept, [] { return find_amx(processor_has_tiles(), system_saves_tiles()); });
}

Amx find_amx(bool processor, bool state) {
  if (!processor) return Amx::none;
  if (!state) return Amx::no_state;
  return ask_permission() ? Amx::permitted : Amx::denied;
}

const char* describe(Amx amx) {
  switch (amx) {
    case Amx::none:
      return "the processor has none";
    case Amx::no_state:
      return "the processor has it, the operating system does not save its registers";
    case Amx::denied:
      return "the processor has it, the kernel denied permission";
    default:
      return "the processor has it, the kernel gave permission";
  }
}

}  // namespace vggfast::cpu
