// gw[o][i][tap] = sum over splits of partial[split][o][tap * cin + i], gb[o] likewise. Few values with many splits
// would leave most of the GPU idle: then `slices` threads share a value, each sums every slices-th split, and the first
// adds their sums up from shared memory (a sum for each thread) once all have come to the one barrier. The order of the
// sums follows from the shape alone.
#include <algorithm>

#include "cuda/conv/common/epilogue.h"
#include "cuda/conv/common/reduce.h"
#include "cuda/ptx/griddepcontrol.h"
#include "cuda/ptx/sync.h"

namespace vggfast::cuda {
namespace {

constexpr int threads = 256, most_slices = 16;
constexpr int64_t wanted_threads = 132 * 2048;  // an H200 full of them

template <class T>
__global__ void __launch_bounds__(threads) reduce_wgrad_kernel(const ReduceArgs<T> a, int slices) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  using Sum = std::remove_cvref_t<decltype(*a.partial)>;
  Sum* const sums = reinterpret_cast<Sum*>(ptx::shared_memory());
  const int columns = a.kernel * a.kernel * a.cin, values = threads / slices;
  const int slice = static_cast<int>(threadIdx.x) / values, value = static_cast<int>(threadIdx.x) - slice * values;
  const int64_t count = int64_t(a.cout) * columns, i = int64_t(blockIdx.x) * values + value;
  const bool weight = i < count, real = weight || (a.gb && i < count + a.cout);
  const int64_t stride = weight ? count : a.cout;
  const Sum* const from = weight ? a.partial + i : a.partial_bias + (i - count);
  Sum sum = 0;
#pragma unroll 4
  for (int split = slice; real && split < a.splits; split += slices) sum += from[split * stride];
  sums[threadIdx.x] = sum;
  ptx::sync_threads();
  if (slice > 0 || !real) return;
  for (int other = 1; other < slices; ++other) sum += sums[other * values + value];
  if (weight) {
    const int64_t out = i / columns;
    const int k = static_cast<int>(i - out * columns), tap = k / a.cin;
    a.gw[out * a.out_stride + (k - tap * a.cin) * a.in_stride + tap / a.kernel * a.row_stride +
         tap % a.kernel * a.column_stride] = narrow<T>(sum);
  } else {
    a.gb[(i - count) * a.gb_stride] = narrow<T>(sum);
  }
}

}  // namespace

template <class T>
void reduce_wgrad(const ReduceArgs<T>& args, const Context& context) {
  const int64_t count = int64_t(args.cout) * args.kernel * args.kernel * args.cin + (args.gb ? args.cout : 0);
  int slices = 1;
  while (slices < std::min(args.splits, most_slices) && count * slices < wanted_threads) slices *= 2;
  const int64_t values = threads / slices, blocks = (count + values - 1) / values;
  VGGFAST_CHECK(blocks < int64_t(1) << 31, "gw and gb must have under ", values << 31, " values, got ", count);
  launch("reduce_wgrad_kernel", reduce_wgrad_kernel<T>,
         {.blocks = static_cast<unsigned>(blocks),
          .threads = threads,
          .shared_bytes = threads * sizeof(decltype(*args.partial + 0))},
         context, args, slices);
}

template void reduce_wgrad(const ReduceArgs<bf16>&, const Context&);
template void reduce_wgrad(const ReduceArgs<f16>&, const Context&);
template void reduce_wgrad(const ReduceArgs<float>&, const Context&);
template void reduce_wgrad(const ReduceArgs<double>&, const Context&);

}  // namespace vggfast::cuda
