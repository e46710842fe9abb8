// Input preparation: from decoded pictures to the tensor that a network's first layer reads.
#pragma once

#include <vector>

#include "vggfast/tensor.h"

namespace vggfast {

/// Which part of each picture to take, and how to change it. Tensors are contiguous; a null one changes nothing.
struct Crops {
  const Tensor* corners = nullptr;  // int32 (N, 2): top row, left column
  const Tensor* flips = nullptr;    // uint8 (N): where not 0, the crop is mirrored, left to right
  const Tensor* shifts = nullptr;   // float32 (N, 3): added to each pixel's channels, in units of 0 to 255
};

/// y = (pixel + shift - mean) / std, by channel.
struct Normalisation {
  float mean[3] = {0, 0, 0};
  float std[3] = {1, 1, 1};
};

/// Writes y (N, 3, S, T), NHWC, of a floating dtype, from images uint8 (N, H, W, 3), contiguous: of each image, the
/// S x T pixels from its corner on. Where a crop reaches outside its image, it reads the nearest pixel inside.
void prepare_images(const Tensor& images, const Crops& crops, const Normalisation& normalisation, const Tensor& y,
                    Context context);

/// A decoded picture: uint8 (height, width, 3), dense.
struct Picture {
  const uint8_t* pixels;
  int64_t height, width;
};

/// Writes y (N, 3, S, T), NHWC, float32 or bfloat16, on the CPU, from N pictures of any sizes. Each picture is rescaled
/// to its row of `sizes` (int32 (N, 2): height, width; null keeps its own size) by a triangle filter, which reaches one
/// output pixel to each side, at least one input pixel. y takes the S x T pixels from the picture's corner on, which
/// must lie within the rescaled picture. Pixels that the crop does not need are not read.
void crop_images(const std::vector<Picture>& pictures, const Tensor* sizes, const Crops& crops,
                 const Normalisation& normalisation, const Tensor& y, Context context);

}  // namespace vggfast
