#include "cuda/conv/hopper/fprop_launch.h"

namespace vggfast::cuda::hopper {

template void run_fprop(const FpropProblem<float>&, const std::string&, const Context&);

}  // namespace vggfast::cuda::hopper
