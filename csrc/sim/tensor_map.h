// A tensor map as the simulator reads it: what the device's CUtensorMap hides. csrc/cuda/tensor_map.h makes and checks
// it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vggfast::sim {

struct TensorMap {
  enum class Element { u8, f16, bf16, f32, tf32 };  // as MapElement

  const char* data;
  Element element;
  unsigned element_bytes;
  unsigned rank;
  uint64_t dims[5];     // innermost first
  uint64_t strides[5];  // in bytes
  unsigned swizzle;     // the span in bytes, or 0
  bool im2col;
  uint32_t box[5];  // tiled
  // im2col, of a tensor of rank 4: channels, width, height, images.
  int32_t lower[2], upper[2];  // corners of the box of base pixels: width, height
  uint32_t channels, pixels;
};

}  // namespace vggfast::sim
