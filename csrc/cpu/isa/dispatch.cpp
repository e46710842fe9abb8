// Which instruction set the CPU back end uses: by cpuid and the operating system's state, or by VGGFAST_CPU_ISA.
#include <atomic>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/fork.h"
#include "cpu/isa/amx.h"
#include "cpu/tile_int8_kernels.h"
#include "vggfast/cpu.h"
#include "vggfast/error.h"

namespace vggfast {
namespace {

#if defined(VGGFAST_X86)
/// An instruction set that is another one but for its kernels of 8 bits.
cpu::KernelTable with_int8(cpu::KernelTable table, const char* name, const cpu::Int8Kernels& int8) {
  table.name = name;
  table.int8 = &int8;
  return table;
}
#endif

/// An instruction set that is another one and kernels on tiles.
cpu::KernelTable with_tiles(cpu::KernelTable table, const char* name, const cpu::TileKernels& tiles,
                            const cpu::TileInt8Kernels& int8) {
  table.name = name;
  table.tiles = &tiles;
  table.int8_tiles = &int8;
  return table;
}

using Tables = std::vector<const cpu::KernelTable*>;

/// The instruction sets of this machine, the one to take by itself last. What is new here stays for good.
Tables find_tables() {
  Tables tables{&cpu::portable::table()};
#if defined(VGGFAST_X86)
  // __builtin_cpu_supports asks cpuid, and xgetbv for whether the operating system saves the registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2) tables.push_back(&cpu::avx2::table());
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    tables.push_back(&cpu::avx512::table());
    if (__builtin_cpu_supports("avx512vnni")) {
      tables.push_back(
          new cpu::KernelTable(with_int8(cpu::avx512::table(), "avx512_vnni", cpu::avx512_vnni::int8_kernels)));
    }
  }
#endif
  const cpu::KernelTable& rest = *tables.back();
  tables.insert(tables.begin(), new cpu::KernelTable(with_tiles(rest, "amx-emulated", cpu::amx_emulated::tiles(),
                                                                cpu::amx_emulated::int8_tiles)));
#if defined(VGGFAST_X86)
  if (rest.int8 == &cpu::avx512_vnni::int8_kernels && cpu::find_amx() == cpu::Amx::permitted) {
    tables.push_back(new cpu::KernelTable(with_tiles(rest, "amx", cpu::amx::tiles(), cpu::amx::int8_tiles)));
  }
#endif
  return tables;
}

const Tables& available() {
  static std::atomic<const Tables*> kept{nullptr};
  return made_once(kept, find_tables);
}

const cpu::KernelTable& find(const std::string& name, const char* source) {
  std::string allowed;
  for (const cpu::KernelTable* table : available()) {
    if (name == table->name) return *table;
    allowed += std::string(allowed.empty() ? "" : ", ") + table->name;
  }
  fail(source, " must be one of ", allowed, " on this machine, got '", name, "'");
}

const cpu::KernelTable& initial() {
  const char* asked = std::getenv("VGGFAST_CPU_ISA");
  return asked && *asked ? find(asked, "VGGFAST_CPU_ISA") : *available().back();
}

std::atomic<const cpu::KernelTable*> in_use{nullptr};

}  // namespace

TileCounts cpu::emulated_tiles;

const cpu::KernelTable& cpu::kernels() {
  const KernelTable* table = in_use.load(std::memory_order_relaxed);
  if (!table && in_use.compare_exchange_strong(table, &initial())) table = in_use;
  return *table;
}

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (const cpu::KernelTable* table : available()) names.emplace_back(table->name);
  return names;
}

std::string cpu_isa() { return cpu::kernels().name; }

TileCounts tile_counts() { return cpu::emulated_tiles; }

std::string amx_support() { return cpu::describe(cpu::find_amx()); }

void set_cpu_isa(const std::string& name) { in_use = &find(name, "isa"); }

}  // namespace vggfast
