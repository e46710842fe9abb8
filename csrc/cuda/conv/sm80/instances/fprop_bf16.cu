#include "cuda/conv/sm80/run_fprop.h"

namespace vggfast::cuda {

template void run_fprop<Bf16Math>(FpropArgs<Bf16Math::Element>&, TileShape, const Context&);

}  // namespace vggfast::cuda
