// 2x2/2 max-pool, NHWC: y (n, oh, ow, c) and, unless null, its selection (vggfast/selection.h, 2 planes).
// A thread owns 8 channels of one output: one byte of each plane. Threads of a warp run along the channels, so that
// loads and stores are contiguous; there is no shared memory and nobody waits. Bound by memory: 1.25 x's bytes.
#include "cuda/launch.h"
#include "vggfast/cuda.h"
#include "vggfast/pool.h"

namespace vggfast::cuda {
namespace {

struct MaxPoolTraits {
  static constexpr int channels = 8;  // of a thread
  static constexpr int threads = 256;
  static constexpr unsigned max_blocks = 1u << 20;
};

template <class T>
struct MaxPoolArgs {
  const T* x;
  T* y;
  uint8_t* selection;
  int64_t n, h, w, c, oh, ow;
};

template <class T>
__global__ void __launch_bounds__(MaxPoolTraits::threads) max_pool2x2_kernel(MaxPoolArgs<T> a) {
  const int64_t bytes = (a.c + 7) / 8, image = a.oh * a.ow, units = a.n * image * bytes;
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t unit = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; unit < units; unit += step) {
    const int64_t byte = unit % bytes, output = unit / bytes;
    const int64_t n = output / image, y = output / a.ow % a.oh, x = output % a.ow;
    const bool wide = 2 * x + 1 < a.w, high = 2 * y + 1 < a.h;  // else the window is cut by the edge
    const T* window = a.x + ((n * a.h + 2 * y) * a.w + 2 * x) * a.c;
    unsigned columns = 0, rows = 0;
#pragma unroll
    for (int i = 0; i < MaxPoolTraits::channels; ++i) {
      const int64_t c = byte * MaxPoolTraits::channels + i;
      if (c >= a.c) break;
      T best = window[c];
      const auto offer = [&](int64_t row, int64_t column) {
        const T v = window[(row * a.w + column) * a.c + c];
        if (v > best || v != v) {
          best = v;
          columns = (columns & ~(1u << i)) | unsigned(column) << i;
          rows = (rows & ~(1u << i)) | unsigned(row) << i;
        }
      };
      if (wide) offer(0, 1);
      if (high) offer(1, 0);
      if (wide && high) offer(1, 1);
      a.y[output * a.c + c] = best;
    }
    if (a.selection) {
      uint8_t* plane = a.selection + ((2 * n) * image + output % image) * bytes + byte;
      plane[0] = uint8_t(columns);
      plane[image * bytes] = uint8_t(rows);
    }
  }
}

template <class T>
void run(const Tensor& x, const Tensor& y, const Tensor* selection, const Context& context) {
  const MaxPoolArgs<T> args{.x = x.as<T>(),
                            .y = y.as<T>(),
                            .selection = selection ? selection->as<uint8_t>() : nullptr,
                            .n = x.size(0),
                            .h = x.size(2),
                            .w = x.size(3),
                            .c = x.size(1),
                            .oh = y.size(2),
                            .ow = y.size(3)};
  const int64_t units = args.n * args.oh * args.ow * ((args.c + 7) / 8);
  if (units == 0) return;
  const int64_t blocks = (units + MaxPoolTraits::threads - 1) / MaxPoolTraits::threads;
  const Grid grid{.blocks = dim3(unsigned(blocks < MaxPoolTraits::max_blocks ? blocks : MaxPoolTraits::max_blocks)),
                  .threads = dim3(MaxPoolTraits::threads)};
  launch("max_pool2x2", max_pool2x2_kernel<T>, grid, context, args);
}

}  // namespace

void max_pool2x2(const Tensor& x, const Tensor& y, const Tensor* selection, Context context) {
  check_pool_outputs(x, y, selection, {.relu = false, .pool = true});
  VGGFAST_CHECK(x.device == Device::cuda, "x is on ", name_of(x.device), ": cuda is wanted");
  VGGFAST_CHECK(x.dtype != DType::u8, "x is ", name_of(x.dtype), ": float32 or float64 is wanted");
  x.dtype == DType::f32 ? run<float>(x, y, selection, context) : run<double>(x, y, selection, context);
}

}  // namespace vggfast::cuda
