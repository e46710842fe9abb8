// What becomes of a tile's sums: bias, ReLU, 2 x 2 max-pool, the mask's bits; then the outputs leave (staging.h, which
// shows which thread holds which sum).
//
// In a halo tile, whose rows are eight pixels wide, one thread holds the four pixels of a window, for each of its two
// channels h = 0, 1. With i even and `within` from 0 to 3:
//
//                          column 2 within       column 2 within + 1
//   row i of the tile      sums[4 i + 2 h]       sums[4 i + 2 h + 1]
//   row i + 1              sums[4 i + 2 h + 4]   sums[4 i + 2 h + 5]
//
// The pixels of an im2col tile have no such order: the windows are formed in the output stage (staged_pool.h).
#pragma once

#include "cuda/conv/sm90/epilogue/staged_pool.h"

namespace vggfast::cuda::sm90 {

template <int Count>
__device__ __forceinline__ void rectify(float (&sums)[Count]) {
#pragma unroll
  for (float& sum : sums) sum = passes(sum) ? sum : 0.0f;
}

/// From sums of products of T to outputs of type U.
template <class Tile, class T, class U>
class Epilogue {
  static constexpr int count = Tile::out_pixels / 2, groups = Tile::out_pixels / 8;
  static constexpr int pooled_rows = Tile::out_rows / 2, pooled_groups = (pooled_rows + 3) / 4 * 2;

 public:
  __device__ __forceinline__ Epilogue(char* stage, const TensorMap& map, const Output<T, U>& out, int consumer)
      : map_(map), out_(out), consumer_(consumer), staging_(stage, consumer) {}

  __device__ __forceinline__ void store(float (&sums)[count], Place place) {
    if (!Tile::pingpong) place.channel += consumer_ * warpgroup_channels;
    add_bias(sums, place.channel);
    if constexpr (Tile::halo) {
      if (Tile::only_pools || out_.pool) return store_pooled(sums, place);
    } else if constexpr (sizeof(U) == 2) {
      if (out_.pool) {
        return staging_.template visit<Pairs::beside>(sums, [&](const char* stage, int group) {
          pool_stage<Tile::staged_pixels>(stage, out_, place.channel, place.pixel + 8 * group);
        });
      }
    }
    if (out_.mask) store_mask(sums, place);
    if (out_.relu) rectify(sums);
    if constexpr (sizeof(U) > 1) {  // there is no dgrad of e4m3
      if (out_.x_mask) apply_mask(sums, place);
    }
    staging_.template store<Pairs::beside>(sums, [&](char* stage, int channel, int group) {
      if constexpr (Tile::halo) {
        ptx::cp_async_bulk_tensor_store(map_, stage, {place.channel + channel, place.x, place.y, place.image});
      } else {
        ptx::cp_async_bulk_tensor_store(map_, stage, {place.channel + channel, place.pixel + 8 * group});
      }
    });
  }

  __device__ __forceinline__ void finish() const { staging_.finish(); }

 private:
  __device__ __forceinline__ void add_bias(float (&sums)[count], int first_channel) const {
    float bias[2] = {};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int channel = first_channel + 16 * at_.warp + channel_of_row<U>(at_.group, h);
      if (out_.bias && channel < out_.sums.c) bias[h] = widen(out_.bias[channel]);
    }
#pragma unroll
    for (int i = 0; i < count; ++i) sums[i] = (is_scaled<T, U> ? out_.scale * sums[i] : sums[i]) + bias[i / 2 % 2];
  }

  /// Whether a pixel is one of the output's, and its number there.
  __device__ __forceinline__ bool inside(const Place& place, int pixel) const {
    if constexpr (!Tile::halo) return place.pixel + pixel < out_.sums.pixels();
    return place.image < out_.sums.n && place.y + pixel / tile_width < out_.sums.h &&
           place.x + pixel % tile_width < out_.sums.w;
  }
  __device__ __forceinline__ int64_t number(const Place& place, int pixel) const {
    if constexpr (!Tile::halo) return place.pixel + pixel;
    return (int64_t(place.image) * out_.sums.h + place.y + pixel / tile_width) * out_.sums.w + place.x +
           pixel % tile_width;
  }

  // ---- A mask of one bit a pixel. Item 2 i + e of a thread is its pixel 8 i + 2 within + e.

  static constexpr int items = 2 * groups;

  /// Of a mask's bytes for channels h: of those of eight items from `item` on, the one of number at_.group, or null.
  template <class Byte>
  __device__ __forceinline__ auto bytes_of(Byte* mask, const Place& place, int h) const {
    const int bytes = (out_.sums.c + 7) / 8, first_byte = (place.channel + 16 * at_.warp) / 8 + h;
    const int pixel = at_.group / 2 * 8 + 2 * at_.within + at_.group % 2;
    const int64_t step = int64_t(bytes) * (Tile::halo ? out_.sums.w : 8);  // from eight pixels to the next
    Byte* const first = mask + number(place, pixel) * bytes + first_byte;
    return [=, this, &place](int item) -> Byte* {
      const bool exists = first_byte < bytes && item + at_.group < items && inside(place, item * 4 + pixel);
      return exists ? first + item / 2 * step : nullptr;
    };
  }

  /// ReLU's.
  __device__ __forceinline__ void store_mask(const float (&sums)[count], const Place& place) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t words[(items + 31) / 32] = {};
#pragma unroll
      for (int item = 0; item < items; ++item) {
        words[item / 32] |= uint32_t(passes(sums[item / 2 * 4 + 2 * h + item % 2])) << item % 32;
      }
      store_bytes<items>(words, at_, bytes_of(out_.mask, place, h));
    }
  }

  /// That of the ReLU before this dgrad's layer.
  __device__ __forceinline__ void apply_mask(float (&sums)[count], const Place& place) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t words[(items + 31) / 32];
      load_bytes<items>(words, at_, bytes_of(out_.x_mask, place, h));
#pragma unroll
      for (int item = 0; item < items; ++item) {
        float& sum = sums[item / 2 * 4 + 2 * h + item % 2];
        sum = words[item / 32] >> item % 32 & 1 ? sum : 0.0f;
      }
    }
  }

  // ---- 2 x 2 max-pool. Of pooled row j, four pixels wide, thread `within` has one: best[4 (j / 2) + 2 h + j % 2].

  struct Chosen {
    uint32_t passes[2], column[2], below[2];  // by half; bit j is row j
  };

  __device__ __forceinline__ static void pool(const float (&sums)[count], float (&best)[4 * pooled_groups],
                                              Chosen& chosen) {
#pragma unroll
    for (int j = 0; j < pooled_rows; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float* upper = sums + 8 * j + 2 * h;  // and the row below is four further on
        unsigned part;
        const float most = first_maximum({upper[0], upper[1], upper[4], upper[5]}, part);
        best[j / 2 * 4 + 2 * h + j % 2] = most;
        chosen.passes[h] |= uint32_t(passes(most)) << j;
        chosen.column[h] |= (part & 1) << j;
        chosen.below[h] |= (part >> 1) << j;
      }
    }
  }

  __device__ __forceinline__ void store_pooled(const float (&sums)[count], const Place& place) {
    float best[4 * pooled_groups] = {};
    Chosen chosen{};
    pool(sums, best, chosen);
    if (!Tile::only_pools && out_.mask) store_mask(chosen, place);
    if (out_.relu) rectify(best);
    staging_.template store<Pairs::below>(best, [&](char* stage, int channel, int) {
      ptx::cp_async_bulk_tensor_store(map_, stage, {place.channel + channel, place.x / 2, place.y / 2, place.image});
    });
  }

  __device__ __forceinline__ void store_mask(const Chosen& chosen, const Place& place) const {
    const int h = out_.sums.h / 2, w = out_.sums.w / 2, y = place.y / 2, x = place.x / 2 + at_.within;
    const int64_t bytes = (out_.sums.c + 7) / 8, plane_bytes = int64_t(h) * w * bytes, line = w * bytes;
    const int first_byte = (place.channel + 16 * at_.warp) / 8;
    uint8_t* plane = out_.mask + place.image * ((out_.relu ? 3 : 2) * plane_bytes) +
                     (int64_t(y + at_.group) * w + x) * bytes + first_byte;
    const bool real = place.image < out_.sums.n && x < w;
    const auto store_plane = [&](const uint32_t (&bits)[2]) {
      const uint32_t words[1] = {bits[0] | bits[1] << 16};  // a tile has at most 16 pooled rows
      store_bytes<32>(words, at_, [&](int item) -> uint8_t* {
        const int half = item / 16, j = item % 16;
        const bool exists = j + at_.group < pooled_rows && y + j + at_.group < h && first_byte + half < bytes;
        return real && exists ? plane + j * line + half : nullptr;
      });
      plane += plane_bytes;
    };
    if (out_.relu) store_plane(chosen.passes);
    store_plane(chosen.column);
    store_plane(chosen.below);
  }

  const TensorMap& map_;
  const Output<T, U>& out_;
  const int consumer_;
  const Lane at_;
  const Staging<U, Tile::staged_pixels / 8> staging_;
};

}  // namespace vggfast::cuda::sm90
