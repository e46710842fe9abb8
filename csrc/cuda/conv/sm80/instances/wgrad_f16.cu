#include "cuda/conv/sm80/run_wgrad.h"

namespace vggfast::cuda {

template void run_wgrad<F16Math>(WgradArgs<F16Math::Element>&, TileShape, const Context&);

}  // namespace vggfast::cuda
