// How this binary was built: recorded at compile time, for bug reports.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace vggfast {

/// (name, value) pairs: version, compiler, flags, build type, CUDA version and architectures.
std::vector<std::pair<std::string, std::string>> build_info();

}  // namespace vggfast
