#include "cuda/conv/sm80/run_wgrad.h"

namespace vggfast::cuda {

template void run_wgrad<Tf32Math>(WgradArgs<Tf32Math::Element>&, TileShape, const Context&);

}  // namespace vggfast::cuda
