// What TMA and wgmma make of an element type, and how an operand's rows lie in a stage: 128 bytes of channels each, one
// span of the swizzle, eight rows to a group of 1024 bytes.
#pragma once

#include <type_traits>

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
template <>
struct Operand<e4m3> {
  static constexpr auto type = ptx::WgmmaType::e4m3;
  static constexpr auto element = MapElement::u8;
};

/// From T to U: whether sums are scaled, as those of quantised values are, and the bias' type.
template <class T, class U>
constexpr bool is_scaled = std::is_same_v<T, e4m3> || std::is_same_v<U, e4m3>;
template <class T, class U>
using BiasOf = std::conditional_t<is_scaled<T, U>, float, U>;

/// The channel, of 16, of row `group` + 8 `half` of a product's 16. e4m3's are in pairs, so that a thread has two
/// neighbours, which are moved as one value of 16 bits.
template <class U>
__host__ __device__ __forceinline__ constexpr int channel_of_row(int group, int half) {
  return sizeof(U) == 1 ? 2 * group + half : group + 8 * half;
}

/// Of an operand whose rows run along the sum. Adding bytes >> 4 moves it.
__device__ __forceinline__ uint64_t row_descriptor(const void* rows) {
  return ptx::wgmma_descriptor(rows, ptx::Swizzle::b128, chunk_bytes, group_bytes);
}

/// Where chunk `chunk` of row `row` lies; of rows of 64 bytes, by the swizzle of 64 bytes.
__device__ __forceinline__ int swizzled_offset(int row, int chunk) {
  return row * row_bytes + (chunk ^ (row % group_rows)) * chunk_bytes;
}
__device__ __forceinline__ int swizzled_half_offset(int row, int chunk) {
  return row * (row_bytes / 2) + (chunk ^ (row / 2 % 4)) * chunk_bytes;
}

}  // namespace vggfast::cuda::hopper
