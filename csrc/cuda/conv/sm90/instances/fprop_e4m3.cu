#include "cuda/conv/sm90/fprop/launch.h"

namespace vggfast::cuda::sm90 {

template void run_fprop(const FpropProblem<e4m3, e4m3>&, std::optional<TileId>, const Context&);
template void run_fprop(const FpropProblem<bf16, e4m3>&, std::optional<TileId>, const Context&);
template void run_fprop(const FpropProblem<e4m3, bf16>&, std::optional<TileId>, const Context&);

}  // namespace vggfast::cuda::sm90
