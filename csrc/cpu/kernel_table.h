// The face between the ops (cpu/*.cpp, compiled once) and their kernels (cpu/kernels/, once per instruction set).
// A kernel works on a range of independent units; the op cuts the ranges and shares them among threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vggfast::cpu {

/// NHWC: the extents of an activation.
struct Extent {
  int64_t n, h, w, c;
};

/// Weights seen as [out][in][row][column], in elements from `data`. dgrad sees them transposed and flipped.
template <class T>
struct WeightView {
  const T* data;
  int64_t out, in, kernel;
  int64_t stride_out, stride_in, stride_row, stride_column;
};

template <class T>
struct ConvArgs {
  const T* x;
  Extent in;
  int64_t kernel;  // 1 or 3
  int64_t cout;
  const T* packed;  // [block][tap][cin][block_channels], zero-padded
  const T* bias;    // [block][block_channels], zero-padded
  const T* zeros;   // cin zeros: what a tap outside the image reads
  T* y;
  int64_t oh, ow;  // y's extents: pooled when `pool`
  bool relu, pool;
  uint8_t* selection;  // null, or as in vggfast/selection.h
};

template <class T>
struct WgradArgs {
  const T* x;
  const T* gy;
  Extent in;
  int64_t kernel, cout;
  int64_t row_begin, row_end;  // rows of the flattened (n, h) to sum over
  T* partial;                  // [block][tap][cin][block_channels], added to
  T* partial_bias;             // [block][block_channels], added to; may be null
};

template <class T>
struct SelectArgs {
  T* z;  // the larger side, (n, h, w, c)
  T* y;  // the smaller side, (n, oh, ow, c)
  uint8_t* selection;
  Extent big;
  int64_t oh, ow;
  bool relu, pool;
};

template <class T>
struct LrnArgs {
  const T* x;
  const T* gy;  // dgrad only
  T* out;       // y or gx
  int64_t channels, size;
  T alpha_over_size, beta, k;
};

template <class T>
struct Kernels {
  int64_t block_channels;  // output channels of one packed block
  int64_t tile_pixels;     // pixels (before pooling) of one fprop tile
  int64_t wgrad_inputs;    // input channels of one wgrad unit

  void (*conv_pack)(const WeightView<T>&, int64_t block, T* packed_block);
  void (*conv_fprop)(const ConvArgs<T>&, int64_t tile_begin, int64_t tile_end, int64_t block_begin, int64_t block_end);
  void (*conv_wgrad)(const WgradArgs<T>&, int64_t input_unit, int64_t block);
  /// Units: rows of y, n * oh of them.
  void (*max_pool)(const SelectArgs<T>&, int64_t row_begin, int64_t row_end);
  void (*gather_selected)(const SelectArgs<T>&, int64_t row_begin, int64_t row_end);
  void (*scatter_selected)(const SelectArgs<T>&, int64_t row_begin, int64_t row_end);
  /// Units: pixels. `scratch` holds 2 * channels values.
  void (*lrn_fprop)(const LrnArgs<T>&, int64_t pixel_begin, int64_t pixel_end);
  void (*lrn_dgrad)(const LrnArgs<T>&, int64_t pixel_begin, int64_t pixel_end, T* scratch);
  /// One image's pixels, into y.
  void (*sum_pool)(const T* x, int64_t pixels, int64_t channels, T scale, T* y);
};

struct KernelTable {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;

  template <class T>
  const Kernels<T>& of() const {
    if constexpr (sizeof(T) == 4) {
      return f32;
    } else {
      return f64;
    }
  }
};

namespace portable {
const KernelTable& table();
}
namespace avx2 {
const KernelTable& table();
}
namespace avx512 {
const KernelTable& table();
}

/// The table of the instruction set in use.
const KernelTable& kernels();

}  // namespace vggfast::cpu
