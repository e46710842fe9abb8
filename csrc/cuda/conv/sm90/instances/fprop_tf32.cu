#include "cuda/conv/sm90/fprop/launch.h"

namespace vggfast::cuda::sm90 {

template void run_fprop(const FpropProblem<float>&, std::optional<TileId>, const Context&);

}  // namespace vggfast::cuda::sm90
