// The first layer: 3 x 3 convolutions whose input has up to four channels, all three passes bound by memory. Here is
// how its kernels are started; stem.cu says which convolutions take them.
#pragma once

#include "cuda/conv/common/epilogue.h"
#include "cuda/conv/common/pack.h"
#include "cuda/conv/common/source.h"
#include "cuda/conv/common/wgrad_args.h"

namespace vggfast::cuda {

/// For bf16, f16, and float as TF32.
template <class T>
void stem_fprop(const Source<T>& x, const WeightView<T>& weights, const Output<T>& y, const Context& context);
/// By mirrored weights (dgrad_view).
template <class T>
void stem_dgrad(const Source<T>& gz, const WeightView<T>& weights, T* gx, const Context& context);

/// How many blocks share the pixels: as many sums as reduce_wgrad has to add up.
template <class T>
int stem_wgrad_splits(const Source<T>& gz);
/// Writes the sums of `args.splits` blocks to args.partial and, unless null, args.partial_bias.
template <class T>
void stem_wgrad(const WgradArgs<T>& args, const Context& context);

}  // namespace vggfast::cuda
