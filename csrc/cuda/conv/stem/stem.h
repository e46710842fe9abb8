// The first layer: 3 x 3 convolutions whose input has up to four channels, all three passes bound by memory. Here is
// which convolutions take these kernels rather than the portable ones, and how they are started.
#pragma once

#include "cuda/conv/common/epilogue.h"
#include "cuda/conv/common/pack.h"
#include "cuda/conv/common/source.h"
#include "cuda/conv/sm80/wgrad.h"
#include "vggfast/tensor.h"

namespace vggfast::cuda {

/// Whether there are such kernels for T: of float32, they are TF32's.
template <class T>
constexpr bool has_stem = sizeof(T) < 8;

/// Whether these kernels take fprop with these weights of x (n, h, w, c).
template <class T>
bool stem_takes_fprop(const Source<T>& x, const WeightView<T>& weights, const Context& context);
/// dgrad of gz with these weights, mirrored (dgrad_view).
template <class T>
bool stem_takes_dgrad(const Source<T>& gz, const WeightView<T>& weights, const Context& context);
template <class T>
bool stem_takes_wgrad(const Source<T>& x, const Source<T>& gz, int64_t kernel, const Context& context);

template <class T>
void stem_fprop(const Source<T>& x, const WeightView<T>& weights, const Output<T>& y, const Context& context);
template <class T>
void stem_dgrad(const Source<T>& gz, const WeightView<T>& weights, T* gx, const Context& context);

/// How many blocks share the pixels: as many sums as reduce_wgrad has to add up.
template <class T>
int stem_wgrad_splits(const Source<T>& gz);
/// Writes the sums of `args.splits` blocks to args.partial and, unless null, args.partial_bias.
template <class T>
void stem_wgrad(const WgradArgs<T>& args, const Context& context);

}  // namespace vggfast::cuda
