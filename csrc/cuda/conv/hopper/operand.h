// What TMA and wgmma make of an element type, and how an operand's rows lie in a stage: 128 bytes of channels each, one
// span of the swizzle, eight rows to a group of 1024 bytes.
#pragma once

#include "cuda/ptx/cvt.h"
#include "cuda/ptx/wgmma.h"
#include "cuda/tensor_map.h"

namespace vggfast::cuda::hopper {

constexpr int row_bytes = 128, group_rows = 8, group_bytes = group_rows * row_bytes, chunk_bytes = 16;
constexpr int product_bytes = 32;  // of a row, that one wgmma takes

/// Channels of a row.
template <class T>
constexpr int channels_of = row_bytes / static_cast<int>(sizeof(T));

template <class T>
struct Operand;
template <>
struct Operand<bf16> {
  static constexpr auto type = ptx::WgmmaType::bf16;
  static constexpr auto element = MapElement::bf16;
};
template <>
struct Operand<f16> {
  static constexpr auto type = ptx::WgmmaType::f16;
  static constexpr auto element = MapElement::f16;
};
template <>
struct Operand<float> {  // of which the tensor cores read TF32
  static constexpr auto type = ptx::WgmmaType::tf32;
  static constexpr auto element = MapElement::f32;
};

/// Of an operand whose rows run along the sum. Adding bytes >> 4 moves it.
__device__ __forceinline__ uint64_t row_descriptor(const void* rows) {
  return ptx::wgmma_descriptor(rows, ptx::Swizzle::b128, chunk_bytes, group_bytes);
}

/// Where chunk `chunk` of row `row` lies.
__device__ __forceinline__ int swizzled_offset(int row, int chunk) {
  return row * row_bytes + (chunk ^ (row % group_rows)) * chunk_bytes;
}

}  // namespace vggfast::cuda::hopper
