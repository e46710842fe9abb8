// What TMA and wgmma make of an element type, and how an operand's rows lie in a stage. A row is 128 bytes of channels,
// one span of the 128-byte swizzle; eight rows are a group of 1024 bytes. Chunk c of 16 bytes of row r lies at position
// c ^ (r % 8), so that the same chunk of eight rows falls into different banks. The chunk at each position:
//
//   position   0  1  2  3  4  5  6  7          position   0  1  2  3  4  5  6  7
//   row 0      0  1  2  3  4  5  6  7          row 4      4  5  6  7  0  1  2  3
//   row 1      1  0  3  2  5  4  7  6          row 5      5  4  7  6  1  0  3  2
//   row 2      2  3  0  1  6  7  4  5          row 6      6  7  4  5  2  3  0  1
//   row 3      3  2  1  0  7  6  5  4          row 7      7  6  5  4  3  2  1  0
//
// Rows of 64 bytes (outputs of e4m3) have the 64-byte swizzle: chunk c of row r lies at position c ^ (r / 2 % 4).
#pragma once

#include <type_traits>

#include "cuda/ptx/cvt.h"
#include "cuda/ptx/wgmma.h"
#include "cuda/tensor_map.h"

namespace vggfast::cuda::sm90 {

constexpr int row_bytes = 128, group_rows = 8, group_bytes = group_rows * row_bytes, chunk_bytes = 16;
constexpr int product_bytes = 32;  // of a row: what one wgmma takes

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
struct Operand<float> {  // of which the tensor cores read TF32, cutting off the rest: loads round
  static constexpr auto type = ptx::WgmmaType::tf32;
  static constexpr auto element = MapElement::f32;
};
template <>
struct Operand<e4m3> {
  static constexpr auto type = ptx::WgmmaType::e4m3;
  static constexpr auto element = MapElement::u8;
};

/// Of a map for loads of an operand; Operand's own is for stores.
template <class T>
constexpr MapElement loaded_element = std::is_same_v<T, float> ? MapElement::tf32 : Operand<T>::element;

/// Of a convolution from T to U: whether its sums are scaled, as those of quantised values are; and the bias' type.
template <class T, class U>
constexpr bool is_scaled = std::is_same_v<T, e4m3> || std::is_same_v<U, e4m3>;
template <class T, class U>
using BiasOf = std::conditional_t<is_scaled<T, U>, float, U>;

/// Which of 16 channels is row `group` + 8 `half` of a product. Those of e4m3 are interleaved, so that a thread holds
/// two neighbours, which it moves as one value of 16 bits.
template <class U>
__host__ __device__ __forceinline__ constexpr int channel_of_row(int group, int half) {
  return sizeof(U) == 1 ? 2 * group + half : group + 8 * half;
}

/// The descriptor of a K-major operand: its rows run along the sum. Adding bytes >> 4 moves it.
__device__ __forceinline__ uint64_t row_descriptor(const void* rows) {
  return ptx::wgmma_descriptor(rows, ptx::Swizzle::b128, chunk_bytes, group_bytes);
}

/// Where chunk `chunk` of row `row` lies, of rows of 128 bytes and of 64.
__device__ __forceinline__ int swizzled_offset(int row, int chunk) {
  return row * row_bytes + (chunk ^ (row % group_rows)) * chunk_bytes;
}
__device__ __forceinline__ int swizzled_half_offset(int row, int chunk) {
  return row * (row_bytes / 2) + (chunk ^ (row / 2 % 4)) * chunk_bytes;
}

}  // namespace vggfast::cuda::sm90
