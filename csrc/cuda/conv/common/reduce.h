// The last step of wgrad: the splits' sums, added up in their order, as gw and gb.
#pragma once

#include <algorithm>

#include "core/conv_checks.h"
#include "cuda/conv/common/wgrad_args.h"
#include "cuda/conv/conv_algorithm.h"

namespace vggfast::cuda {

template <class T>
struct ReduceArgs {
  const SumOf<T>*partial, *partial_bias;  // as in WgradArgs
  int splits, cout, cin, kernel;
  T* gw;
  int64_t out_stride, in_stride, row_stride, column_stride;
  T* gb;  // or null
  int64_t gb_stride;
};

template <class T>
void reduce_wgrad(const ReduceArgs<T>& args, const Context& context);

/// What the splits' sums take, for gw and gb: splits x cout x columns, and splits x cout behind them.
template <class T>
size_t partial_bytes(int64_t splits, int64_t cout, int64_t columns) {
  return static_cast<size_t>(splits * cout * (columns + 1)) * sizeof(SumOf<T>);
}
template <class T>
SumOf<T>* partial_bias(SumOf<T>* partial, int64_t splits, const Tensor& gw, const Tensor* gb) {
  return gb ? partial + splits * gw.numel() : nullptr;
}

/// gw and gb from the splits' sums.
template <class T>
void reduce(const SumOf<T>* partial, const SumOf<T>* bias, int splits, const Tensor& gw, const Tensor* gb,
            const Context& context) {
  reduce_wgrad<T>({.partial = partial,
                   .partial_bias = bias,
                   .splits = splits,
                   .cout = static_cast<int>(gw.size(0)),
                   .cin = static_cast<int>(gw.size(1)),
                   .kernel = static_cast<int>(gw.size(2)),
                   .gw = gw.as<T>(),
                   .out_stride = gw.stride(0),
                   .in_stride = gw.stride(1),
                   .row_stride = gw.stride(2),
                   .column_stride = gw.stride(3),
                   .gb = gb ? gb->as<T>() : nullptr,
                   .gb_stride = gb ? gb->stride(0) : 0},
                  context);
}

/// A weight gradient whose pixels `splits` blocks share: `sum` launches the kernel that writes their sums.
template <class T, class Sum>
void sum_and_reduce(const ConvWgrad& p, const Source<T>& x, const Source<T>& gz, int splits, Workspace workspace,
                    Sum sum) {
  const int64_t columns = p.kernel * p.kernel * x.c;
  check_workspace(workspace, partial_bytes<T>(splits, gz.c, columns));
  SumOf<T>* const partial = static_cast<SumOf<T>*>(workspace.data);
  WgradArgs<T> args{.x = x,
                    .gz = gz,
                    .row = Divider(std::max(1, x.w)),
                    .column = Divider(std::max(1, x.h)),
                    .pixels = x.n * x.h * x.w,
                    .kernel = static_cast<int>(p.kernel),
                    .columns = static_cast<int>(columns),
                    .row_tiles = 0,
                    .column_tiles = 0,
                    .splits = splits,
                    .partial = partial,
                    .partial_bias = partial_bias<T>(partial, splits, *p.gw, p.gb)};
  sum(args);
  reduce<T>(args.partial, args.partial_bias, splits, *p.gw, p.gb, p.context);
}

}  // namespace vggfast::cuda
