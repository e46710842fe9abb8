#include "cuda/conv/sm90/fprop/launch.h"

namespace vggfast::cuda::hopper {

template void run_fprop(const FpropProblem<float>&, const std::string&, const Context&);

}  // namespace vggfast::cuda::hopper
