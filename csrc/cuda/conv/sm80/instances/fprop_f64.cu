#include "cuda/conv/sm80/run_fprop.h"

namespace vggfast::cuda {

template void run_fprop<F64Math>(FpropArgs<F64Math::Element>&, TileShape, const Context&);

}  // namespace vggfast::cuda
