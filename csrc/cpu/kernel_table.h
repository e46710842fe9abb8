// The interface between the ops and algorithms (cpu/ops/, cpu/algorithms/, compiled once) and their kernels
// (cpu/kernels/, once per instruction set). A kernel works on a range of independent units; the op or algorithm divides
// the units among threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vggfast::cpu {

/// A bfloat16 as it lies in memory: the upper half of a float. Kernels compute in float. vdpbf16ps was measured (Zen 5,
/// 236 GFLOP/s a core, fma 118), and lost: a direct convolution by it is slower than Winograd's in float on every layer
/// of a VGG but the first.
struct Bf16 {
  uint16_t bits;
};

/// What values that lie as S are computed in.
template <class S>
struct ComputedIn {
  using Type = S;
};
template <>
struct ComputedIn<Bf16> {
  using Type = float;
};
template <class S>
using Computed = typename ComputedIn<S>::Type;

/// NHWC: the extents of an activation.
struct Extent {
  int64_t n, h, w, c;
};

/// What a convolution reads: NHWC of this extent, or what mask_scatter would make of it from the smaller tensor
/// that is stored (vggfast/mask.h).
template <class S>
struct ConvInput {
  const S* data;
  Extent extent;
  const uint8_t* mask = nullptr;       // null: `data` is the activation itself
  bool relu = false, pool = false;     // of the mask
  int64_t stored_h = 0, stored_w = 0;  // of `data` where there is a mask
};

/// What a convolution writes: NHWC, pooled when `pool`.
template <class S>
struct ConvOutput {
  S* y;
  int64_t h, w, c;
  bool relu = false, pool = false;
  uint8_t* mask = nullptr;  // or as in vggfast/mask.h
  bool stream = false;      // past the caches
};

/// Weights seen as [out][in][row][column], in elements from `data`. dgrad sees them transposed and flipped.
template <class T>
struct WeightView {
  const T* data;
  int64_t out, in, kernel;
  int64_t stride_out, stride_in, stride_row, stride_column;

  /// Of at most `count` output channels from `first` on.
  WeightView outputs(int64_t first, int64_t count) const {
    WeightView part = *this;
    part.data += first * stride_out;
    part.out = out - first < count ? out - first : count;
    return part;
  }
};

template <class T>
struct ConvArgs {
  const T* x;
  Extent in;
  int64_t kernel;   // 1 or 3
  const T* packed;  // [block][tap][cin][block_channels], zero-padded
  const T* bias;    // [block][block_channels], zero-padded
  const T* zeros;   // cin zeros: what a tap outside the image reads
  ConvOutput<T> out;
};

/// Winograd's tiles of m x m output pixels. They cover mosaics of `down` x `across` images, with a line or two of zeros
/// between neighbours, which serve both as padding: small images fill whole tiles better together.
struct TileGrid {
  int64_t rows, columns;  // of tiles, to a mosaic
  int64_t down, across;   // images
  // Pixels from one image to the next: even, so that the pool's windows lie alike in all.
  int64_t pitch_down, pitch_across;
};

template <class S, class U = float>
struct WinogradArgs {
  TileGrid grid;
  int64_t images, cin;
  const U* packed;        // [point][pair of cout blocks][cin][2][lanes], zero-padded, from the call's first block on
  int64_t packed_blocks;  // from one point to the next
  const float* bias;      // [cout block][lanes], zero-padded
  ConvOutput<S> out;
  int64_t group;  // blocks of output channels whose products are kept at a time
};

/// Kernels of F(m x m, 3 x 3), or for m = 1 of 1x1 convolution, on activations of type S; everything between is float.
template <class S>
struct WinogradKernels {
  /// Transforms tiles [begin, end) into planes of `tiles` tiles.
  void (*inputs)(const ConvInput<S>&, const TileGrid&, int64_t begin, int64_t end, int64_t tiles, float* v);
  /// fprop of the tiles and the blocks of `lanes` output channels given, from planes of these tiles.
  void (*outputs)(const WinogradArgs<S>&, const float* v, int64_t tile_begin, int64_t tile_end, int64_t block_begin,
                  int64_t block_end, float* products);
  /// For wgrad, of the outputs' gradients.
  void (*gradients)(const ConvInput<S>&, const TileGrid&, int64_t begin, int64_t end, int64_t tiles, float* z,
                    float* bias);
};

/// One point of wgrad's products: planes of V and Z, and dU's part of the point, from some cout block on.
struct WgradPoint {
  const float* v;
  const float* z;
  float* du;
  int64_t cin, tiles, plane_tiles;  // tiles to sum over, and tiles that a plane has room for
};

/// What of F(m x m, 3 x 3) does not depend on the type of the activations.
struct WinogradTable {
  int m;
  void (*pack)(const WeightView<float>&, int64_t pair, float* packed);
  void (*unpack)(const float* du, int64_t block, const WeightView<float>& shape, float* gw);
  WinogradKernels<float> f32;
  WinogradKernels<Bf16> bf16;

  template <class S>
  const WinogradKernels<S>& of() const {
    if constexpr (sizeof(S) == 4) {
      return f32;
    } else {
      return bf16;
    }
  }
};

template <class S>
struct StemArgs {
  ConvInput<S> in;      // 3 channels
  const float* packed;  // [cout block][kernel row][kernel column][channel][lanes], zero-padded
  const float* bias;    // [cout block][lanes], zero-padded
  ConvOutput<S> out;
  int64_t y_row = 0;  // of the n * h rows, the one that out.y begins with; there is no mask unless it is the first
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
struct MaskArgs {
  T* z;  // the larger side, (n, h, w, c)
  T* y;  // the smaller side, (n, oh, ow, c)
  uint8_t* mask;
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

/// Arrays of a value a channel are padded to whole vectors.
template <class S>
struct BatchNormArgs {
  const S* x;
  Extent in;
  const Computed<S>*mean, *scale, *bias;  // a value becomes (x - mean) * scale + bias
  ConvOutput<S> out;
};

/// gx = scale * g + slope * (x - mean) + offset, g being the gradient that reaches x; in training, else scale * g.
template <class S>
struct BatchNormGradient {
  MaskArgs<S> maps;  // z is x, y its output's gradient
  const Computed<S>*mean, *scale = nullptr, *slope = nullptr, *offset = nullptr;
  bool training;
  S* gx = nullptr;
  bool stream = false;
};

/// Batch norm of maps of S. `scratch` holds three padded arrays.
template <class S>
struct BatchNormKernels {
  /// Adds to `sums` those of x - origin and of its square, a double a channel each. Units: pixels.
  void (*moments)(const S* x, const Computed<S>* origin, int64_t channels, int64_t pixel_begin, int64_t pixel_end,
                  Computed<S>* scratch, double* sums);
  /// Units: rows of y.
  void (*fprop)(const BatchNormArgs<S>&, int64_t row_begin, int64_t row_end);
  /// Adds to `sums` those of g and of g * (x - mean).
  void (*sums)(const BatchNormGradient<S>&, int64_t row_begin, int64_t row_end, Computed<S>* scratch, double* sums);
  void (*dgrad)(const BatchNormGradient<S>&, int64_t row_begin, int64_t row_end);
};

/// A linear layer: x and gx (rows, inputs), weight and gw (outputs, inputs), y or its gradient (rows, outputs); each
/// product uses its own.
struct LinearArgs {
  int64_t rows, inputs, outputs;
  const float* x = nullptr;
  const float* weight = nullptr;
  const float* bias = nullptr;  // may be null
  float* y = nullptr;           // read alone in the backward
  float* gx = nullptr;
  float* gw = nullptr;
  bool stream = false;  // gw, past the caches
};

/// What each output of a resampled axis reads: `count` inputs from `first` on, weighted.
struct Taps {
  const int32_t* first;
  const int32_t* count;
  const float* weights;  // [output][most]; null where every output is one input as it is
  int64_t most;
};

/// A crop of a picture, uint8 (height, width, 3). Scratch: 3 * columns + 4 floats, and 3 * (column_end - column_begin)
/// + 4 more.
struct CropArgs {
  const uint8_t* pixels;
  int64_t width;
  Taps down = {}, across = {};               // of the crop's rows and columns; neither has weights, or both
  int64_t column_begin = 0, column_end = 0;  // of the picture, what the crop reads
  int64_t columns;                           // of the crop
  bool mirrored, stream;
  float scale[3] = {}, offset[3] = {};  // a value becomes value * scale + offset
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
  void (*max_pool)(const MaskArgs<T>&, int64_t row_begin, int64_t row_end);
  void (*mask_gather)(const MaskArgs<T>&, int64_t row_begin, int64_t row_end);
  void (*mask_scatter)(const MaskArgs<T>&, int64_t row_begin, int64_t row_end);
  BatchNormKernels<T> batch_norm;
  /// Units: pixels. `scratch` holds 2 * channels values.
  void (*lrn_fprop)(const LrnArgs<T>&, int64_t pixel_begin, int64_t pixel_end);
  void (*lrn_dgrad)(const LrnArgs<T>&, int64_t pixel_begin, int64_t pixel_end, T* scratch);
  /// One image's pixels, into y.
  void (*sum_pool)(const T* x, int64_t pixels, int64_t channels, T scale, T* y);
};

struct Int8Kernels;      // cpu/int8_kernels.h
struct TileKernels;      // cpu/tile_kernels.h
struct TileInt8Kernels;  // cpu/tile_int8_kernels.h

struct KernelTable {
  const char* name;
  int64_t lanes;              // floats of a vector
  int64_t gemm_rows;          // tiles that a register tile of Winograd's products holds
  WinogradTable winograd[4];  // m = 1, 2, 4, 6
  /// wgrad's products for so many cout blocks, at most wgrad_vectors: added to dU, or its first.
  int64_t wgrad_vectors;
  void (*multiply)(const WgradPoint&, int64_t blocks, bool add);
  /// 1x1 convolution, so FC layers too, with weights kept in bfloat16; as WinogradKernels::outputs.
  void (*outputs_bf16_weights)(const WinogradArgs<float, Bf16>&, const float* v, int64_t tile_begin, int64_t tile_end,
                               int64_t block_begin, int64_t block_end, float* products);
  /// The first layer. Units: rows of the output (fprop), rows of the input (wgrad).
  int64_t stem_segment;  // pixels whose products its scratch holds, twice 2 vectors of them
  void (*stem_fprop_f32)(const StemArgs<float>&, int64_t row_begin, int64_t row_end, float* scratch);
  void (*stem_fprop_bf16)(const StemArgs<Bf16>&, int64_t row_begin, int64_t row_end, float* scratch);
  void (*stem_wgrad)(const ConvInput<float>& x, const ConvInput<float>& gy, int64_t row_begin, int64_t row_end,
                     float* partial, float* bias, float* scratch);
  /// Linear layers over few rows. Units: outputs (fprop, wgrad), inputs (dgrad).
  void (*linear_fprop)(const LinearArgs&, int64_t begin, int64_t end);
  void (*linear_dgrad)(const LinearArgs&, int64_t begin, int64_t end);
  void (*linear_wgrad)(const LinearArgs&, int64_t begin, int64_t end);
  void (*crop_rows_f32)(const CropArgs&, int64_t row_begin, int64_t row_end, float* y, float* scratch);
  void (*crop_rows_bf16)(const CropArgs&, int64_t row_begin, int64_t row_end, Bf16* y, float* scratch);
  void (*to_bf16)(const float* from, int64_t count, Bf16* to);
  void (*to_float)(const Bf16* from, int64_t count, float* to);
  Kernels<float> f32;
  Kernels<double> f64;
  BatchNormKernels<Bf16> batch_norm_bf16;
  const TileKernels* tiles = nullptr;           // null: none
  const TileInt8Kernels* int8_tiles = nullptr;  // with `tiles`: what layers of 8 bits run on in place of `int8`
  const Int8Kernels* int8;

  template <class S>
  auto stem_fprop() const {
    if constexpr (sizeof(S) == 4) {
      return stem_fprop_f32;
    } else {
      return stem_fprop_bf16;
    }
  }
  template <class S>
  auto crop_rows() const {
    if constexpr (sizeof(S) == 4) {
      return crop_rows_f32;
    } else {
      return crop_rows_bf16;
    }
  }
  template <class S>
  const BatchNormKernels<S>& batch_norm() const {
    if constexpr (sizeof(S) == sizeof(Computed<S>)) {
      return of<S>().batch_norm;
    } else {
      return batch_norm_bf16;
    }
  }
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

// Outputs too large for the caches are written past them: nobody would find them there, and a line that is written
// whole need not be read first. A copy of memory runs at 51 to 58 GB/s that way, and at 40 through the caches (2 cores
// of Zen 5).

/// Bytes of an output from which on that pays.
inline constexpr int64_t streamed_bytes = 10 << 20;

/// Whether to stream `values` of this type at `to`, in rows of `row`: they are many, and their vectors aligned.
template <class S>
bool streams(const S* to, int64_t values, int64_t row) {
  const int64_t bytes = static_cast<int64_t>(sizeof(S)), vector = kernels().lanes * static_cast<int64_t>(sizeof(float));
  return sizeof(S) == sizeof(float) && values * bytes >= streamed_bytes && row * bytes % vector == 0 &&
         reinterpret_cast<uintptr_t>(to) % static_cast<uintptr_t>(vector) == 0;
}

/// `out`, of so many images, with `stream` set as it should be.
template <class S>
ConvOutput<S> streamed(ConvOutput<S> out, int64_t images) {
  out.stream = streams(out.y, images * out.h * out.w * out.c, out.c);
  return out;
}

}  // namespace vggfast::cpu
