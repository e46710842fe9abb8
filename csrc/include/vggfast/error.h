// The one exception of the core, and the check that throws it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace vggfast {

/// An argument that an op cannot take. The text names the argument, its value and what is allowed.
class Error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

}  // namespace vggfast

#define VGGFAST_CHECK(condition, ...) \
  do {                                \
    if (!(condition)) {               \
      ::vggfast::fail(__VA_ARGS__);   \
    }                                 \
  } while (false)
