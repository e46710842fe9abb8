// The source line of an address, by the tool addr2line where there is one.
#include <dlfcn.h>

#include <cstdio>

#include "sim/machine.h"

namespace vggfast::sim {
namespace {

/// Lines of this path that say nothing of a kernel: the twins of instructions.
bool is_wrapper(const std::string& line) { return line.find("/cuda/ptx/") != std::string::npos; }

std::string shortened(const std::string& line) {
  const size_t at = line.rfind("csrc/");
  return line.substr(at == std::string::npos ? 0 : at,
                     line.find_first_of(" \n", at == std::string::npos ? 0 : at) - (at == std::string::npos ? 0 : at));
}

std::string look_up(const void* site) {
  Dl_info module{};
  if (!site || !dladdr(site, &module)) return "an unknown line";
  std::ostringstream command;
  // One byte back: a return address may belong to the next line.
  command << "addr2line -i -e '" << module.dli_fname << "' 0x" << std::hex
          << static_cast<const char*>(site) - static_cast<const char*>(module.dli_fbase) - 1 << " 2>/dev/null";
  std::string lines;
  if (FILE* tool = popen(command.str().c_str(), "r")) {
    char line[1024];
    while (std::fgets(line, sizeof line, tool)) {
      if (is_wrapper(line) || std::string(line).rfind("??", 0) == 0) continue;
      lines += (lines.empty() ? "" : ", called at ") + shortened(line);
    }
    pclose(tool);
  }
  if (!lines.empty()) return lines;
  std::ostringstream text;
  text << module.dli_fname << " + 0x" << std::hex
       << static_cast<const char*>(site) - static_cast<const char*>(module.dli_fbase);
  return text.str();
}

}  // namespace

std::string where(const void* site) {
  static std::map<const void*, std::string> known;  // the tool takes its time
  const auto [line, is_new] = known.try_emplace(site);
  if (is_new) line->second = look_up(site);
  return line->second;
}

}  // namespace vggfast::sim
