#include "cuda/conv/sm90/fprop/launch.h"

namespace vggfast::cuda::sm90 {

template void run_fprop(const FpropProblem<bf16>&, std::optional<TileId>, const Context&);
template Residency residency<bf16, bf16>();

}  // namespace vggfast::cuda::sm90
