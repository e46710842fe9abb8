// The last step of wgrad: the splits' sums, added up in their order, as gw and gb.
#pragma once

#include "cuda/conv/portable/wgrad.h"

namespace vggfast::cuda {

template <class T>
struct ReduceArgs {
  const std::conditional_t<sizeof(T) == 8, double, float>*partial, *partial_bias;  // as in WgradArgs
  int splits, cout, cin, kernel;
  T* gw;
  int64_t out_stride, in_stride, row_stride, column_stride;
  T* gb;  // or null
  int64_t gb_stride;
};

template <class T>
void reduce_wgrad(const ReduceArgs<T>& args, const Context& context);

}  // namespace vggfast::cuda
