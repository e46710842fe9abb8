// 2x2/2 max-pool, NHWC: y (n, oh, ow, c) and, unless null, its mask (vggfast/mask.h, 2 planes).
// A thread owns 8 channels of one output: one byte of each plane, four loads that it issues together. There is no
// shared memory and nobody waits. Bound by memory: 1.25 x's bytes, and 1/4 bit to each of x's values for the mask.
#include <cmath>

#include "cuda/dtypes.h"
#include "cuda/pieces.h"
#include "cuda/ptx/griddepcontrol.h"
#include "vggfast/cuda.h"

namespace vggfast::cuda {
namespace {

template <class T>
struct MaxPoolArgs {
  const T* x;
  T* y;
  uint8_t* mask;
  Pieces outputs;
  int64_t h, w, c;
};

/// What takes the place of elements that the edge cuts: it replaces no maximum.
template <class T>
__device__ __forceinline__ Channels<T> lowest() {
  Channels<T> v;
#pragma unroll
  for (int i = 0; i < vector_channels; ++i) v.at[i] = narrow<T>(-Wide<T>(INFINITY));
  return v;
}

template <class T, bool Aligned>
__global__ void __launch_bounds__(PieceTraits::threads) max_pool2x2_kernel(MaxPoolArgs<T> a) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const int64_t image = a.outputs.rows * a.outputs.columns;
  for_each_piece(a.outputs, [&](int64_t n, int64_t y, int64_t x, int64_t group) {
    const int64_t c = group * vector_channels, count = a.c - c;
    const bool wide = 2 * x + 1 < a.w, high = 2 * y + 1 < a.h;  // else the window is cut by the edge
    const T* window = a.x + ((n * a.h + 2 * y) * a.w + 2 * x) * a.c + c;
    Channels<T> elements[4], best;
    elements[0] = load_channels<Aligned>(window, count);
    elements[1] = wide ? load_channels<Aligned>(window + a.c, count) : lowest<T>();
    elements[2] = high ? load_channels<Aligned>(window + a.w * a.c, count) : lowest<T>();
    elements[3] = wide && high ? load_channels<Aligned>(window + (a.w + 1) * a.c, count) : lowest<T>();
    unsigned columns = 0, rows = 0;
#pragma unroll
    for (int i = 0; i < vector_channels; ++i) {
      Wide<T> most = widen(elements[0].at[i]);
      const auto replaced = [&](const Channels<T>& by) {
        const Wide<T> value = widen(by.at[i]);
        const bool better = value > most || value != value;
        most = better ? value : most;
        return better;
      };
      const bool second = replaced(elements[1]), third = replaced(elements[2]), fourth = replaced(elements[3]);
      columns |= (fourth || (second && !third) ? 1u : 0u) << i;
      rows |= (fourth || third ? 1u : 0u) << i;
      best.at[i] = narrow<T>(most);
    }
    const int64_t pixel = y * a.outputs.columns + x;
    store_channels<Aligned>(a.y + (n * image + pixel) * a.c + c, count, best);
    if (a.mask) {
      uint8_t* plane = a.mask + (2 * n * image + pixel) * a.outputs.groups + group;
      plane[0] = uint8_t(columns);
      plane[image * a.outputs.groups] = uint8_t(rows);
    }
  });
}

}  // namespace

void max_pool2x2(const Tensor& x, const Tensor& y, const Tensor* mask, Context context) {
  check_pool_outputs(x, y, mask, {.relu = false, .pool = true});
  for_float(x, "x", [&]<class T>() {
    const MaxPoolArgs<T> args{.x = x.as<T>(),
                              .y = y.as<T>(),
                              .mask = mask ? mask->as<uint8_t>() : nullptr,
                              .outputs = pieces(y.size(0), y.size(2), y.size(3), groups_of(y.size(1))),
                              .h = x.size(2),
                              .w = x.size(3),
                              .c = x.size(1)};
    if (args.outputs.count() == 0) return;
    for_alignment(args.c, {x.data, y.data}, [&]<bool Aligned>() {
      launch("max_pool2x2_kernel", max_pool2x2_kernel<T, Aligned>, grid_of(args.outputs), context, args);
    });
  });
}

}  // namespace vggfast::cuda
