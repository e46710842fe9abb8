// Sum-pool: y (n, c), the sum or mean over the pixels of x (n, pixels, c), in float32 (float64 for float64).
// A block owns up to 64 channels of an image: 8 threads side by side along the channels, 32 along the pixels; each adds
// up every 32nd pixel of its 8 channels, and the 32 sums meet pairwise in shared memory (4 values to a thread: 4 KiB, 8
// for float64), a barrier before and after each step. Bound by memory: x's bytes once.
#include "core/checks.h"
#include "cuda/dtypes.h"
#include "cuda/pieces.h"
#include "cuda/pool/pixel_sums.h"
#include "cuda/ptx/griddepcontrol.h"
#include "vggfast/cuda.h"

namespace vggfast::cuda {
namespace {

struct SumPoolTraits {
  static constexpr unsigned threads = 256;
  static constexpr unsigned groups = 8;          // side by side
  static constexpr int64_t most_images = 65535;  // of the grid's y
};

template <class T>
struct SumPoolArgs {
  const T* x;
  T* y;
  int64_t n, pixels, c;
  Wide<T> divisor;
  PixelLanes lanes;
};

template <class T, bool Aligned>
__global__ void __launch_bounds__(SumPoolTraits::threads) sum_pool_kernel(SumPoolArgs<T> a) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  Wide<T>* scratch = reinterpret_cast<Wide<T>*>(ptx::shared_memory());
  const int64_t c = (int64_t(blockIdx.x) * a.lanes.groups + a.lanes.group()) * vector_channels;
  for (int64_t n = blockIdx.y; n < a.n; n += gridDim.y) {
    Wide<T> sums[vector_channels];
    sum_pixels<Aligned>(a.lanes, a.x + n * a.pixels * a.c + c, a.pixels, a.c, a.c - c, scratch, sums);
    if (a.lanes.lane() == 0 && c < a.c) {
      Channels<T> out;
#pragma unroll
      for (int i = 0; i < vector_channels; ++i) out.at[i] = narrow<T>(sums[i] / a.divisor);
      store_channels<Aligned>(a.y + n * a.c + c, a.c - c, out);
    }
  }
}

}  // namespace

void sum_pool(const Tensor& x, bool mean, const Tensor& y, Context context) {
  check_sum_pool(x, y);
  for_float(x, "x", [&]<class T>() {
    if (y.numel() == 0) return;
    const int64_t pixels = x.size(2) * x.size(3), groups = groups_of(x.size(1));
    const SumPoolArgs<T> args{.x = x.as<T>(),
                              .y = y.as<T>(),
                              .n = x.size(0),
                              .pixels = pixels,
                              .c = x.size(1),
                              .divisor = Wide<T>(mean ? pixels : 1),
                              .lanes = pixel_lanes(groups, SumPoolTraits::groups, SumPoolTraits::threads)};
    const int64_t images = args.n < SumPoolTraits::most_images ? args.n : SumPoolTraits::most_images;
    const Grid grid{.blocks = dim3(unsigned((groups + args.lanes.groups - 1) / args.lanes.groups), unsigned(images)),
                    .threads = dim3(SumPoolTraits::threads),
                    .shared_bytes = args.lanes.scratch() * sizeof(Wide<T>)};
    for_alignment(args.c, {x.data, y.data},
                  [&]<bool Aligned>() { launch("sum_pool_kernel", sum_pool_kernel<T, Aligned>, grid, context, args); });
  });
}

}  // namespace vggfast::cuda
