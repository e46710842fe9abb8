#include "cuda/conv/conv_algorithm.h"

namespace vggfast::cuda {

#ifdef VGGFAST_SM90
namespace sm90 {
extern const Sm90Library library;
}
const Sm90Library* sm90_library() { return &sm90::library; }
#else
const Sm90Library* sm90_library() { return nullptr; }
#endif

const std::vector<const ConvAlgorithm*>& conv_algorithms() {
  static const std::vector<const ConvAlgorithm*> all = [] {
    std::vector<const ConvAlgorithm*> found = {&stem_conv};
    if (const Sm90Library* sm90 = sm90_library()) found.push_back(&sm90->conv);
    found.push_back(&sm80_conv);
    return found;
  }();
  return all;
}

}  // namespace vggfast::cuda
