// Input preparation: y (n, rows, columns, 3) = (pixel + shift - mean) / std from images uint8 (n, h, w, 3),
// cropped and mirrored. A thread owns 8 values of an output row, which lie in 3 or 4 pixels: 8 loads of a byte, that a
// warp makes from a run of 256 bytes, and stores of 16 bytes. There is no shared memory and nobody waits. Bound by
// memory: the crops' bytes and y's.
#include "core/checks.h"
#include "cuda/dtypes.h"
#include "cuda/pieces.h"
#include "cuda/ptx/griddepcontrol.h"
#include "vggfast/cuda.h"

namespace vggfast::cuda {
namespace {

template <class T>
struct PrepareArgs {
  const uint8_t* images;
  const int32_t* corners;  // these three may be null
  const uint8_t* flips;
  const float* shifts;
  T* y;
  Pieces outputs;  // of y's rows; columns and channels in one
  int64_t h, w;
  int columns;
  Wide<T> mean[3];
  Wide<T> divisor[3];  // deviations; their reciprocals for narrow dtypes, which hide a rounding of float32
};

/// What one value of a pixel needs.
template <class T>
struct Channel {
  Wide<T> offset, divisor;

  __device__ __forceinline__ Channel(const PrepareArgs<T>& a, int64_t n, int c)
      : offset((a.shifts ? Wide<T>(a.shifts[3 * n + c]) : Wide<T>(0)) - (c == 0 ? a.mean[0] : a.mean[c == 1 ? 1 : 2])),
        divisor(c == 0 ? a.divisor[0] : a.divisor[c == 1 ? 1 : 2]) {}
  __device__ __forceinline__ T operator()(uint8_t value) const {
    const Wide<T> shifted = Wide<T>(value) + offset;
    return narrow<T>(sizeof(T) < sizeof(float) ? shifted * divisor : shifted / divisor);
  }
};

__device__ __forceinline__ int64_t clamp_to(int64_t low, int64_t value, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

template <class T, bool Aligned>
__global__ void __launch_bounds__(PieceTraits::threads, 2) prepare_images_kernel(PrepareArgs<T> a) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  for_each_piece(a.outputs, [&](int64_t n, int64_t s, int64_t, int64_t group) {
    const int values = 3 * a.columns, first = int(group) * vector_channels;
    const int64_t top = a.corners ? a.corners[2 * n] : 0, left = a.corners ? a.corners[2 * n + 1] : 0;
    const bool mirrored = a.flips && a.flips[n] != 0;
    const uint8_t* row = a.images + (n * a.h + clamp_to(0, top + s, a.h - 1)) * a.w * 3;
    const int first_pixel = first / 3, first_channel = first - 3 * first_pixel;
    int64_t pixels[4];  // that the 8 values lie in
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = mirrored ? a.columns - 1 - (first_pixel + i) : first_pixel + i;
      pixels[i] = 3 * clamp_to(0, left + t, a.w - 1);
    }
    // Value i is of channel (first_channel + i) % 3, and of pixel i / 3 or the next.
    const int channels[3] = {first_channel, first_channel < 2 ? first_channel + 1 : 0,
                             first_channel > 0 ? first_channel - 1 : 2};
    const Channel<T> prepare[3] = {{a, n, channels[0]}, {a, n, channels[1]}, {a, n, channels[2]}};
    Channels<T> out = {};
#pragma unroll
    for (int i = 0; i < vector_channels; ++i) {
      if (!Aligned && first + i >= values) break;
      const int64_t pixel = first_channel + i % 3 < 3 ? pixels[i / 3] : pixels[i / 3 + 1];
      out.at[i] = prepare[i % 3](row[pixel + channels[i % 3]]);
    }
    store_channels<Aligned>(a.y + (n * a.outputs.rows + s) * values + first, values - first, out);
  });
}

}  // namespace

void prepare_images(const Tensor& images, const Crops& crops, const Normalisation& normalisation, const Tensor& y,
                    Context context) {
  check_prepare_images(images, crops, y);
  for_float(y, "y", [&]<class T>() {
    if (y.numel() == 0) return;
    constexpr int64_t most_columns = int64_t(1) << 29;
    VGGFAST_CHECK(y.size(3) <= most_columns, "y must have rows of at most ", most_columns, " pixels on cuda, got ",
                  y.size(3));
    const int64_t values = 3 * y.size(3);
    PrepareArgs<T> args{.images = images.as<uint8_t>(),
                        .corners = crops.corners ? crops.corners->as<int32_t>() : nullptr,
                        .flips = crops.flips ? crops.flips->as<uint8_t>() : nullptr,
                        .shifts = crops.shifts ? crops.shifts->as<float>() : nullptr,
                        .y = y.as<T>(),
                        .outputs = pieces(y.size(0), y.size(2), 1, groups_of(values)),
                        .h = images.size(1),
                        .w = images.size(2),
                        .columns = int(y.size(3)),
                        .mean = {},
                        .divisor = {}};
    for (int c = 0; c < 3; ++c) {
      const auto std = Wide<T>(normalisation.std[c]);
      args.mean[c] = Wide<T>(normalisation.mean[c]);
      args.divisor[c] = sizeof(T) < sizeof(float) ? 1 / std : std;
    }
    for_alignment(values, {y.data}, [&]<bool Aligned>() {
      launch("prepare_images_kernel", prepare_images_kernel<T, Aligned>, grid_of(args.outputs), context, args);
    });
  });
}

}  // namespace vggfast::cuda
