// Starting block 1's fused kernel: the face that block1.cu of the op sees.
#pragma once

#include "cuda/conv/common/source.h"
#include "cuda/conv/sm90/fprop/run.h"

namespace vggfast::cuda::sm90 {

/// bf16 or f16. x has up to four channels; `first` makes 64 of them; `second` (3 x 3, 64 to 64, relu and pool) reads
/// what is in no memory: its x is null.
template <class T>
void run_block1(const Source<T>& x, const WeightView<T>& first, const T* first_bias, const FpropProblem<T>& second,
                const Context& context);

}  // namespace vggfast::cuda::sm90
