#include "cuda/conv/conv_algorithm.h"

namespace vggfast::cuda {

#ifdef VGGFAST_SM90
namespace sm90 {
extern const Sm90Library library;
}
constexpr const Sm90Library* library = &sm90::library;
constexpr const ConvAlgorithm* algorithms[] = {&stem_conv, &sm90::library.conv, &sm80_conv};
#else
constexpr const Sm90Library* library = nullptr;
constexpr const ConvAlgorithm* algorithms[] = {&stem_conv, &sm80_conv};
#endif

const Sm90Library* sm90_library() { return library; }
std::span<const ConvAlgorithm* const> conv_algorithms() { return algorithms; }

}  // namespace vggfast::cuda
