// The two ops on masks (vggfast/mask.h), NHWC: mask_gather takes from z (n, h, w, c) what was masked, y
// (n, oh, ow, c), 0 where ReLU cut; mask_scatter puts y there and 0 in every other place of z. A thread owns 8
// channels of a window (one byte of each plane): up to four pixels of z, one without pool. There is no shared memory
// and nobody waits. Bound by memory: z's, y's and the mask's bytes once.
#include "cuda/dtypes.h"
#include "cuda/pieces.h"
#include "cuda/ptx/griddepcontrol.h"
#include "vggfast/cuda.h"

namespace vggfast::cuda {
namespace {

template <class T>
struct SelectedArgs {
  T* z;
  T* y;
  const uint8_t* mask;
  Pieces windows;  // gather's: y's pixels; scatter's: z's windows, of which those at the edge may have no y
  int64_t h, w, c, oh, ow;
  bool relu;
};

/// Bit i of each tells of channel i. Without ReLU everything passes, without pool the window is one element.
struct Bits {
  unsigned passes = 0xff, column = 0, row = 0;

  __device__ bool selects(int channel, int element) const {
    return (column >> channel & 1) == unsigned(element % 2) && (row >> channel & 1) == unsigned(element / 2);
  }
};

template <bool Pool, class T>
__device__ __forceinline__ Bits load_bits(const SelectedArgs<T>& a, int64_t n, int64_t y, int64_t x, int64_t group) {
  const int64_t planes = (a.relu ? 1 : 0) + (Pool ? 2 : 0), plane = a.oh * a.ow * a.windows.groups;
  const uint8_t* byte = a.mask + n * planes * plane + (y * a.ow + x) * a.windows.groups + group;
  Bits bits;
  if (a.relu) {
    bits.passes = *byte;
    byte += plane;
  }
  if constexpr (Pool) {
    bits.column = byte[0];
    bits.row = byte[plane];
  }
  return bits;
}

/// The elements of a window, row-major. Those that the edge cuts are not inside, whatever a mask says.
template <class T, bool Pool>
struct Window {
  static constexpr int elements = Pool ? 4 : 1;
  T* first;
  int64_t c, row;
  bool wide, high;

  __device__ __forceinline__ Window(const SelectedArgs<T>& a, int64_t n, int64_t y, int64_t x, int64_t channel)
      : first(a.z + ((n * a.h + (Pool ? 2 * y : y)) * a.w + (Pool ? 2 * x : x)) * a.c + channel),
        c(a.c),
        row(a.w * a.c),
        wide(2 * x + 1 < a.w),
        high(2 * y + 1 < a.h) {}
  __device__ __forceinline__ bool inside(int i) const { return (i % 2 == 0 || wide) && (i / 2 == 0 || high); }
  __device__ __forceinline__ T* at(int i) const { return first + i / 2 * row + i % 2 * c; }
};

template <class T, bool Pool, bool Aligned>
__global__ void __launch_bounds__(PieceTraits::threads, 2) mask_gather_kernel(SelectedArgs<T> a) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  for_each_piece(a.windows, [&](int64_t n, int64_t y, int64_t x, int64_t group) {
    const int64_t c = group * vector_channels, count = a.c - c;
    const Window<T, Pool> window(a, n, y, x, c);
    Channels<T> elements[window.elements] = {};
#pragma unroll
    for (int i = 0; i < window.elements; ++i) {  // all loads on their way before any is used
      if (window.inside(i)) elements[i] = load_channels<Aligned>(window.at(i), count);
    }
    const Bits bits = load_bits<Pool>(a, n, y, x, group);
    Channels<T> picked = elements[0];
#pragma unroll
    for (int channel = 0; channel < vector_channels; ++channel) {
#pragma unroll
      for (int i = 1; i < window.elements; ++i) {
        if (window.inside(i) && bits.selects(channel, i)) picked.at[channel] = elements[i].at[channel];
      }
      if (!(bits.passes >> channel & 1)) picked.at[channel] = T{};
    }
    store_channels<Aligned>(a.y + ((n * a.oh + y) * a.ow + x) * a.c + c, count, picked);
  });
}

template <class T, bool Pool, bool Aligned>
__global__ void __launch_bounds__(PieceTraits::threads, 2) mask_scatter_kernel(SelectedArgs<T> a) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  for_each_piece(a.windows, [&](int64_t n, int64_t y, int64_t x, int64_t group) {
    const int64_t c = group * vector_channels, count = a.c - c;
    Bits bits{.passes = 0};
    Channels<T> g = {};
    if (y < a.oh && x < a.ow) {  // an odd last row or column may belong to no window
      bits = load_bits<Pool>(a, n, y, x, group);
      g = load_channels<Aligned>(a.y + ((n * a.oh + y) * a.ow + x) * a.c + c, count);
    }
    const Window<T, Pool> window(a, n, y, x, c);
#pragma unroll
    for (int i = 0; i < window.elements; ++i) {
      Channels<T> v;
#pragma unroll
      for (int channel = 0; channel < vector_channels; ++channel) {
        v.at[channel] = (bits.passes >> channel & 1) && bits.selects(channel, i) ? g.at[channel] : T{};
      }
      if (window.inside(i)) store_channels<Aligned>(window.at(i), count, v);
    }
  });
}

template <class T>
SelectedArgs<T> mask_args(const Tensor& z, const Tensor& y, const Tensor& mask, Epilogue e, int64_t rows,
                          int64_t columns) {
  return {.z = z.as<T>(),
          .y = y.as<T>(),
          .mask = mask.as<uint8_t>(),
          .windows = pieces(z.size(0), rows, columns, groups_of(z.size(1))),
          .h = z.size(2),
          .w = z.size(3),
          .c = z.size(1),
          .oh = y.size(2),
          .ow = y.size(3),
          .relu = e.relu};
}

template <class Body>
void for_kind(const Tensor& z, const Tensor& y, Epilogue e, Body body) {
  for_alignment(z.size(1), {z.data, y.data}, [&]<bool Aligned>() {
    e.pool ? body.template operator()<true, Aligned>() : body.template operator()<false, Aligned>();
  });
}

}  // namespace

void mask_gather(const Tensor& z, const Tensor& mask, Epilogue e, const Tensor& y, Context context) {
  check_pool_outputs(z, y, &mask, e);
  for_float(z, "z", [&]<class T>() {
    const auto args = mask_args<T>(z, y, mask, e, y.size(2), y.size(3));
    if (args.windows.count() == 0) return;
    for_kind(z, y, e, [&]<bool Pool, bool Aligned>() {
      launch("mask_gather_kernel", mask_gather_kernel<T, Pool, Aligned>, grid_of(args.windows), context, args);
    });
  });
}

void mask_scatter(const Tensor& y, const Tensor& mask, Epilogue e, const Tensor& z, Context context) {
  check_pool_outputs(z, y, &mask, e);
  for_float(z, "z", [&]<class T>() {
    const int64_t rows = e.pool ? pooled(z.size(2), true) : z.size(2);
    const int64_t columns = e.pool ? pooled(z.size(3), true) : z.size(3);
    const auto args = mask_args<T>(z, y, mask, e, rows, columns);
    if (args.windows.count() == 0) return;
    for_kind(z, y, e, [&]<bool Pool, bool Aligned>() {
      launch("mask_scatter_kernel", mask_scatter_kernel<T, Pool, Aligned>, grid_of(args.windows), context, args);
    });
  });
}

}  // namespace vggfast::cuda
