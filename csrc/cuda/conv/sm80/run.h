// Starting the implicit GEMMs: which variant of a kernel a tile and a way of reading need. One source per kind of
// arithmetic instantiates these (instances/).
#pragma once

#include "cuda/conv/heuristics.h"
#include "cuda/conv/sm80/fprop.h"
#include "cuda/conv/sm80/wgrad.h"

namespace vggfast::cuda {

using Bf16Math = TensorCore<MmaBf16>;
using F16Math = TensorCore<MmaF16>;
using Tf32Math = TensorCore<MmaTf32>;
using F32Math = Exact<float>;
using F64Math = Exact<double>;

template <class Math>
void run_fprop(FpropArgs<typename Math::Element>& args, TileShape shape, const Context& context);
template <class Math>
void run_wgrad(WgradArgs<typename Math::Element>& args, TileShape shape, const Context& context);

}  // namespace vggfast::cuda
