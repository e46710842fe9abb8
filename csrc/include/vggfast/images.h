// Input preparation: decoded pictures to what a network's first layer reads.
#pragma once

#include <vector>

#include "vggfast/tensor.h"

namespace vggfast {

/// What to take of each picture. Tensors are contiguous; null ones change nothing.
struct Crops {
  const Tensor* corners = nullptr;  // int32 (N, 2): top row, left column
  const Tensor* flips = nullptr;    // uint8 (N): mirrored, left to right, where not 0
  const Tensor* shifts = nullptr;   // float32 (N, 3): added to each pixel's channels, in units of 0 to 255
};

/// y = (pixel + shift - mean) / std, by channel.
struct Normalisation {
  float mean[3] = {0, 0, 0};
  float std[3] = {1, 1, 1};
};

/// y (N, 3, S, T), NHWC, of a floating dtype, from images uint8 (N, H, W, 3), contiguous: the S x T pixels from each
/// corner on. A crop that leaves its picture reads the nearest pixel within.
void prepare_images(const Tensor& images, const Crops& crops, const Normalisation& normalisation, const Tensor& y,
                    Context context);

/// A decoded picture: uint8 (height, width, 3), dense.
struct Picture {
  const uint8_t* pixels;
  int64_t height, width;
};

/// y (N, 3, S, T), NHWC, float32 or bfloat16, on the CPU, from N pictures of any sizes: each is rescaled to its row of
/// `sizes` (int32 (N, 2): height, width; null keeps each picture's own), by a triangle filter as wide as an output
/// pixel, at least an input pixel, to each side; of that the S x T pixels from its corner on, which must lie within.
/// What of a picture the crop does not need is not read.
void crop_images(const std::vector<Picture>& pictures, const Tensor* sizes, const Crops& crops,
                 const Normalisation& normalisation, const Tensor& y, Context context);

}  // namespace vggfast
