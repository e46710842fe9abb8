#include "cuda/conv/sm90/fprop/launch.h"

namespace vggfast::cuda::hopper {

template void run_fprop(const FpropProblem<e4m3, e4m3>&, const std::string&, const Context&);
template void run_fprop(const FpropProblem<bf16, e4m3>&, const std::string&, const Context&);
template void run_fprop(const FpropProblem<e4m3, bf16>&, const std::string&, const Context&);

}  // namespace vggfast::cuda::hopper
