// Which instruction set the CPU back end uses: by cpuid and the operating system's state, or by VGGFAST_CPU_ISA.
#include <atomic>
#include <cstdlib>
#include <string>
#include <vector>

#include "cpu/int8_kernels.h"
#include "cpu/kernel_table.h"
#include "vggfast/cpu.h"
#include "vggfast/error.h"

namespace vggfast {
namespace {

/// avx512 with 8-bit kernels by vpdpbusd.
const cpu::KernelTable& avx512_vnni() {
  static const cpu::KernelTable table = [] {
    cpu::KernelTable made = cpu::avx512::table();
    made.name = "avx512_vnni";
    made.int8 = &cpu::avx512_vnni::int8_kernels;
    return made;
  }();
  return table;
}

std::vector<const cpu::KernelTable*> available() {
  std::vector<const cpu::KernelTable*> tables{&cpu::portable::table()};
#if defined(VGGFAST_X86)
  // __builtin_cpu_supports asks cpuid, and xgetbv for whether the operating system saves the registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2) tables.push_back(&cpu::avx2::table());
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    tables.push_back(&cpu::avx512::table());
    if (__builtin_cpu_supports("avx512vnni")) tables.push_back(&avx512_vnni());
  }
#endif
  return tables;
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

std::atomic<const cpu::KernelTable*>& current() {
  static std::atomic<const cpu::KernelTable*> table{&initial()};
  return table;
}

}  // namespace

const cpu::KernelTable& cpu::kernels() { return *current().load(std::memory_order_relaxed); }

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (const cpu::KernelTable* table : available()) names.emplace_back(table->name);
  return names;
}

std::string cpu_isa() { return cpu::kernels().name; }

void set_cpu_isa(const std::string& name) { current() = &find(name, "isa"); }

}  // namespace vggfast
