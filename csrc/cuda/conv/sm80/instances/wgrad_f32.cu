#include "cuda/conv/sm80/run_wgrad.h"

namespace vggfast::cuda {

template void run_wgrad<F32Math>(WgradArgs<F32Math::Element>&, TileShape, const Context&);

}  // namespace vggfast::cuda
