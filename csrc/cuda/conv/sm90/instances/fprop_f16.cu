#include "cuda/conv/sm90/fprop/launch.h"

namespace vggfast::cuda::hopper {

template void run_fprop(const FpropProblem<f16>&, const std::string&, const Context&);

}  // namespace vggfast::cuda::hopper
