#include "cuda/conv/sm80/run_wgrad.h"

namespace vggfast::cuda {

template void run_wgrad<Bf16Math>(WgradArgs<Bf16Math::Element>&, TileShape, const Context&);

}  // namespace vggfast::cuda
