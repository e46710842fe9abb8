// What this binary is: recorded when it was compiled, so that a bug report can say it.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace vggfast {

/// (name, value) pairs: version, compiler, flags, build type, CUDA version and architectures.
std::vector<std::pair<std::string, std::string>> build_info();

}  // namespace vggfast
