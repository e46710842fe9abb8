// Tensor maps for TMA, on the host: checked by the driver's rules, each by name, then encoded by the driver or, for the
// simulator, as they are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cuda/ptx/tma.h"
#include "vggfast/error.h"
#ifndef VGGFAST_SIM
#include <cuda_runtime.h>
#endif

namespace vggfast::cuda {

/// tf32: of float32 in memory, which loads round to the nearest value of TF32, ties to even.
enum class MapElement { u8, f16, bf16, f32, tf32 };
/// The span in bytes within which 16-byte chunks change places.
enum class MapSwizzle { none = 0, b32 = 32, b64 = 64, b128 = 128 };

/// Boxes of a tensor; all arrays from the innermost dimension on.
struct TiledMap {
  const void* data;
  MapElement element;
  unsigned rank;
  uint64_t dims[5];
  uint64_t strides[4];  // in bytes, from dimension 1 on
  uint32_t box[5];
  MapSwizzle swizzle = MapSwizzle::none;
};

/// Columns of pixels of a tensor of channels, width, height, images. Base pixels run from `lower` to the tensor's size
/// plus `upper`; both width, height: -padding, and padding - (filter - 1).
struct Im2colMap {
  const void* data;
  MapElement element;
  uint64_t dims[4];
  uint64_t strides[3];  // in bytes, from width on
  int32_t lower[2], upper[2];
  uint32_t channels, pixels;  // of a load
  MapSwizzle swizzle = MapSwizzle::none;
};

inline unsigned bytes_of(MapElement element) {
  return element == MapElement::u8 ? 1 : element == MapElement::f16 || element == MapElement::bf16 ? 2 : 4;
}

inline void check_map_tensor(const void* data, unsigned rank, const uint64_t* dims, const uint64_t* strides) {
  VGGFAST_CHECK(rank >= 1 && rank <= 5, "tensor map: rank must be 1 to 5, got ", rank);
  VGGFAST_CHECK(reinterpret_cast<uintptr_t>(data) % 16 == 0,
                "tensor map: data must begin at a multiple of 16 bytes, got address ", data);
  for (unsigned d = 0; d < rank; ++d) {
    VGGFAST_CHECK(dims[d] > 0 && dims[d] <= 1ull << 32, "tensor map: dims[", d, "] must be 1 to 2^32, got ", dims[d]);
    if (d == 0) continue;
    VGGFAST_CHECK(strides[d - 1] % 16 == 0 && strides[d - 1] < 1ull << 40, "tensor map: strides[", d - 1,
                  "] must be a multiple of 16 bytes below 2^40, got ", strides[d - 1]);
  }
}

inline void check_map_row(const char* name, uint64_t bytes, MapSwizzle swizzle) {
  VGGFAST_CHECK(bytes % 16 == 0, "tensor map: ", name, " must be a multiple of 16 bytes, got ", bytes);
  VGGFAST_CHECK(swizzle == MapSwizzle::none || bytes <= static_cast<uint64_t>(swizzle), "tensor map: ", name,
                " must be at most the swizzle's ", static_cast<int>(swizzle), " bytes, got ", bytes);
}

inline void check_map(const TiledMap& map) {
  check_map_tensor(map.data, map.rank, map.dims, map.strides);
  for (unsigned d = 0; d < map.rank; ++d) {
    VGGFAST_CHECK(map.box[d] > 0 && map.box[d] <= 256, "tensor map: box[", d, "] must be 1 to 256, got ", map.box[d]);
  }
  check_map_row("box[0]", uint64_t(map.box[0]) * bytes_of(map.element), map.swizzle);
}

inline void check_map(const Im2colMap& map) {
  check_map_tensor(map.data, 4, map.dims, map.strides);
  for (unsigned d = 0; d < 2; ++d) {
    VGGFAST_CHECK(map.lower[d] >= -128 && map.lower[d] <= 127, "tensor map: lower[", d, "] must be -128 to 127, got ",
                  map.lower[d]);
    VGGFAST_CHECK(map.upper[d] >= -128 && map.upper[d] <= 127, "tensor map: upper[", d, "] must be -128 to 127, got ",
                  map.upper[d]);
    VGGFAST_CHECK(int64_t(map.dims[d + 1]) + map.upper[d] > map.lower[d], "tensor map: lower[", d, "] and upper[", d,
                  "] must leave a box of at least one pixel, got ", map.lower[d], " and ", map.upper[d]);
  }
  VGGFAST_CHECK(map.channels > 0 && map.channels <= 256, "tensor map: channels must be 1 to 256, got ", map.channels);
  VGGFAST_CHECK(map.pixels > 0 && map.pixels <= 1024, "tensor map: pixels must be 1 to 1024, got ", map.pixels);
  check_map_row("channels", uint64_t(map.channels) * bytes_of(map.element), map.swizzle);
}

/// From a tensor's first byte to the last that a map knows of, or a little beyond.
inline uint64_t map_bytes(MapElement element, unsigned rank, const uint64_t* dims, const uint64_t* strides) {
  uint64_t bytes = dims[0] * bytes_of(element);
  for (unsigned d = 1; d < rank; ++d) bytes = std::max(bytes, dims[d] * strides[d - 1]);
  return bytes;
}

/// Mends what the driver encoded, tiled or im2col: up to CUDA 13.1's, it sets a bit that is wrong for tensors under 128
/// KiB. CUTLASS 4.3.4 clears it too.
inline void mend_map(void* map, uint64_t bytes, int driver_version) {
  constexpr int last_wrong_driver = 13010;
  constexpr uint64_t small = 128 << 10, wrong_bit = uint64_t(1) << 21;
  if (driver_version > last_wrong_driver || bytes >= small) return;
  char* const second = static_cast<char*>(map) + sizeof(uint64_t);
  uint64_t word;
  std::memcpy(&word, second, sizeof(word));
  word &= ~wrong_bit;
  std::memcpy(second, &word, sizeof(word));
}

#ifdef VGGFAST_SIM

inline TensorMap plain_map(const void* data, MapElement element, MapSwizzle swizzle, unsigned rank,
                           const uint64_t* dims, const uint64_t* strides) {
  TensorMap map{};
  map.data = static_cast<const char*>(data);
  map.element = static_cast<TensorMap::Element>(element);
  map.element_bytes = bytes_of(element);
  map.swizzle = static_cast<unsigned>(swizzle);
  map.rank = rank;
  for (unsigned d = 0; d < rank; ++d) {
    map.dims[d] = dims[d];
    map.strides[d] = d ? strides[d - 1] : map.element_bytes;
  }
  return map;
}

inline TensorMap tensor_map(const TiledMap& from) {
  check_map(from);
  TensorMap map = plain_map(from.data, from.element, from.swizzle, from.rank, from.dims, from.strides);
  std::memcpy(map.box, from.box, sizeof map.box);
  return map;
}

inline TensorMap tensor_map(const Im2colMap& from) {
  check_map(from);
  TensorMap map = plain_map(from.data, from.element, from.swizzle, 4, from.dims, from.strides);
  map.im2col = true;
  std::memcpy(map.lower, from.lower, sizeof map.lower);
  std::memcpy(map.upper, from.upper, sizeof map.upper);
  map.channels = from.channels;
  map.pixels = from.pixels;
  return map;
}

#else

/// The driver's function of this name. The library links no driver, so that it loads where there is none.
template <class Function>
Function* driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  constexpr unsigned since = 12000;
  const cudaError_t status = cudaGetDriverEntryPointByVersion(name, &found, since, cudaEnableDefault, &result);
  VGGFAST_CHECK(status == cudaSuccess && result == cudaDriverEntryPointSuccess && found, "the driver has no ", name);
  return reinterpret_cast<Function*>(found);
}

inline CUtensorMapDataType driver_type(MapElement element) {
  constexpr CUtensorMapDataType types[] = {CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                                           CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
                                           CU_TENSOR_MAP_DATA_TYPE_TFLOAT32};
  return types[static_cast<int>(element)];
}

inline CUtensorMapSwizzle driver_swizzle(MapSwizzle swizzle) {
  return swizzle == MapSwizzle::none  ? CU_TENSOR_MAP_SWIZZLE_NONE
         : swizzle == MapSwizzle::b32 ? CU_TENSOR_MAP_SWIZZLE_32B
         : swizzle == MapSwizzle::b64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                      : CU_TENSOR_MAP_SWIZZLE_128B;
}

constexpr uint32_t each_element[5] = {1, 1, 1, 1, 1};

inline int driver_version() {
  static const int version = [] {
    int found = 0;
    cudaDriverGetVersion(&found);
    return found;
  }();
  return version;
}

inline TensorMap tensor_map(const TiledMap& from) {
  check_map(from);
  static auto* const encode = driver_function<decltype(cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  TensorMap map;
  const CUresult status =
      encode(&map, driver_type(from.element), from.rank, const_cast<void*>(from.data), from.dims, from.strides,
             from.box, each_element, CU_TENSOR_MAP_INTERLEAVE_NONE, driver_swizzle(from.swizzle),
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  VGGFAST_CHECK(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled: CUresult ", static_cast<int>(status));
  mend_map(&map, map_bytes(from.element, from.rank, from.dims, from.strides), driver_version());
  return map;
}

inline TensorMap tensor_map(const Im2colMap& from) {
  check_map(from);
  static auto* const encode = driver_function<decltype(cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  TensorMap map;
  const CUresult status =
      encode(&map, driver_type(from.element), 4, const_cast<void*>(from.data), from.dims, from.strides, from.lower,
             from.upper, from.channels, from.pixels, each_element, CU_TENSOR_MAP_INTERLEAVE_NONE,
             driver_swizzle(from.swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  VGGFAST_CHECK(status == CUDA_SUCCESS, "cuTensorMapEncodeIm2col: CUresult ", static_cast<int>(status));
  mend_map(&map, map_bytes(from.element, 4, from.dims, from.strides), driver_version());
  return map;
}

#endif

}  // namespace vggfast::cuda
