// gw[o][i][tap] = sum over splits of partial[split][o][tap * cin + i], gb[o] likewise: a thread for each, splits in
// order.
#include "cuda/conv/reduce.h"

namespace vggfast::cuda {
namespace {

constexpr int threads = 256, values_of_a_thread = 2;

template <class T>
__global__ void __launch_bounds__(threads) reduce_wgrad_kernel(const ReduceArgs<T> a) {
  using Sum = std::remove_cvref_t<decltype(*a.partial)>;
  const int columns = a.kernel * a.kernel * a.cin;
  const int64_t count = int64_t(a.cout) * columns, step = int64_t(gridDim.x) * threads;
  const int64_t first = int64_t(blockIdx.x) * threads + threadIdx.x;
  for (int64_t i = first; i < count; i += step) {
    Sum sum = 0;
    for (int split = 0; split < a.splits; ++split) sum += a.partial[split * count + i];
    const int64_t out = i / columns;
    const int k = static_cast<int>(i - out * columns), tap = k / a.cin;
    a.gw[out * a.out_stride + (k - tap * a.cin) * a.in_stride + tap / a.kernel * a.row_stride +
         tap % a.kernel * a.column_stride] = narrowed<T>(sum);
  }
  if (!a.gb) return;
  for (int64_t o = first; o < a.cout; o += step) {
    Sum sum = 0;
    for (int split = 0; split < a.splits; ++split) sum += a.partial_bias[int64_t(split) * a.cout + o];
    a.gb[o * a.gb_stride] = narrowed<T>(sum);
  }
}

}  // namespace

template <class T>
void reduce_wgrad(const ReduceArgs<T>& args, const Context& context) {
  const int64_t count = int64_t(args.cout) * args.kernel * args.kernel * args.cin;
  const int64_t blocks = (count + threads * values_of_a_thread - 1) / (threads * values_of_a_thread);
  launch("reduce_wgrad_kernel", reduce_wgrad_kernel<T>, {.blocks = static_cast<unsigned>(blocks), .threads = threads},
         context, args);
}

template void reduce_wgrad(const ReduceArgs<bf16>&, const Context&);
template void reduce_wgrad(const ReduceArgs<f16>&, const Context&);
template void reduce_wgrad(const ReduceArgs<float>&, const Context&);
template void reduce_wgrad(const ReduceArgs<double>&, const Context&);

}  // namespace vggfast::cuda
