// What becomes of a tile's sums: bias, ReLU, 2 x 2 max-pool, the selection's bits; then the outputs leave. Values of 16
// bits are staged in shared memory as [pixel][64 channels], swizzled, and stored by TMA, which leaves out what lies
// beyond the tensor, while the next tile is computed; float32 goes to memory from the registers. Within a warpgroup
// everybody waits for the thread that stores, before the stage is written again, and it for them, before it stores.
#pragma once

#include <cstring>

#include "cuda/conv/hopper/bits.h"
#include "cuda/conv/hopper/schedule.h"
#include "cuda/ptx/fence.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/sync.h"
#include "cuda/ptx/tma.h"
#include "cuda/vectors.h"

namespace vggfast::cuda::hopper {

template <class T>
struct Output {
  T* y;
  const T* bias;       // or null
  uint8_t* selection;  // or null
  Extent sums;         // before the pool
  bool relu, pool;
};

/// Named barriers; 0 is __syncthreads'.
enum NamedBarrier : unsigned { staging_of_first_consumer = 1, staging_of_second_consumer = 2 };

template <class Tile, class T>
class Epilogue {
 public:
  __device__ __forceinline__ Epilogue(char* stage, const TensorMap& map, const Output<T>& out, int consumer)
      : stage_(stage), map_(map), out_(out), consumer_(consumer) {}

  __device__ __forceinline__ void store(float (&sums)[Tile::pixels / 2], Place place) {
    if (!Tile::turns) place.channel += consumer_ * warpgroup_channels;
    add_bias(sums, place.channel);
    if constexpr (Tile::by_rows) {
      if (out_.pool) return store_pooled(sums, place);
    }
    if (out_.selection) store_passes(sums, place);
    if (out_.relu) rectify(sums);
    if constexpr (sizeof(T) == 2) {
      store_staged(sums, place);
    } else {
      store_plain(sums, place);
    }
  }

  /// Nobody leaves while TMA reads its shared memory.
  __device__ __forceinline__ void finish() const {
    if (stores()) ptx::cp_async_bulk_wait_group_read<0>();
  }

 private:
  static constexpr int count = Tile::pixels / 2, pixel_groups = Tile::pixels / 8;
  static constexpr int pooled_rows = Tile::rows / 2, padded_rows = (pooled_rows + 3) / 4 * 4;

  __device__ __forceinline__ bool stores() const { return threadIdx.x % warpgroup_threads == 0; }
  /// The channel of the sums of half h.
  __device__ __forceinline__ int channel_of(const Place& place, int h) const {
    return place.channel + 16 * at_.warp + 8 * h + at_.group;
  }

  __device__ __forceinline__ void add_bias(float (&sums)[count], int first_channel) const {
    float bias[2] = {};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int channel = first_channel + 16 * at_.warp + 8 * h + at_.group;
      if (out_.bias && channel < out_.sums.c) bias[h] = widen(out_.bias[channel]);
    }
#pragma unroll
    for (int i = 0; i < count; ++i) sums[i] += bias[i / 2 % 2];
  }

  __device__ __forceinline__ static bool passes(float sum) { return !(sum <= 0.0f); }  // NaN does
  __device__ __forceinline__ static void rectify(float (&sums)[count]) {
#pragma unroll
    for (int i = 0; i < count; ++i) sums[i] = passes(sums[i]) ? sums[i] : 0.0f;
  }

  /// Whether a pixel is one of the output's, and its number there.
  __device__ __forceinline__ bool inside(const Place& place, int pixel) const {
    if constexpr (!Tile::by_rows) return place.flat + pixel < out_.sums.pixels();
    return place.image < out_.sums.n && place.y + pixel / tile_width < out_.sums.h &&
           place.x + pixel % tile_width < out_.sums.w;
  }
  __device__ __forceinline__ int64_t number(const Place& place, int pixel) const {
    if constexpr (!Tile::by_rows) return place.flat + pixel;
    return (int64_t(place.image) * out_.sums.h + place.y + pixel / tile_width) * out_.sums.w + place.x +
           pixel % tile_width;
  }

  /// ReLU's selection: item 2 i + e of a thread is its pixel 8 i + 2 within + e.
  __device__ __forceinline__ void store_passes(const float (&sums)[count], const Place& place) const {
    constexpr int items = 2 * pixel_groups;
    const int64_t bytes = (out_.sums.c + 7) / 8;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t words[(items + 31) / 32] = {};
#pragma unroll
      for (int item = 0; item < items; ++item) {
        words[item / 32] |= uint32_t(passes(sums[item / 2 * 4 + 2 * h + item % 2])) << item % 32;
      }
      const int byte = (place.channel + 16 * at_.warp + 8 * h) / 8;
      store_bytes<items>(words, at_, [&](int item) -> uint8_t* {
        const int pixel = item / 2 * 8 + 2 * at_.within + item % 2;
        return byte < bytes && inside(place, pixel) ? out_.selection + number(place, pixel) * bytes + byte : nullptr;
      });
    }
  }

  // ---- 2 x 2 max-pool: row j of a tile's pooled pixels, of which a thread has number `within`

  struct Pooled {
    float best[2][padded_rows];             // by half
    uint32_t pass[2], column[2], below[2];  // bit j is row j
  };

  __device__ __forceinline__ static Pooled pool(const float (&sums)[count]) {
    Pooled pooled{};
#pragma unroll
    for (int j = 0; j < pooled_rows; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        unsigned chosen = 0;
        float best = sums[8 * j + 2 * h];
#pragma unroll
        for (unsigned part = 1; part < 4; ++part) {
          const float next = sums[8 * j + 4 * (part / 2) + 2 * h + part % 2];
          if (!(next > best) && next == next) continue;  // the first maximum wins, NaN passes
          best = next;
          chosen = part;
        }
        pooled.best[h][j] = best;
        pooled.pass[h] |= uint32_t(passes(best)) << j;
        pooled.column[h] |= (chosen & 1) << j;
        pooled.below[h] |= (chosen >> 1) << j;
      }
    }
    return pooled;
  }

  __device__ __forceinline__ void store_pooled(const float (&sums)[count], const Place& place) {
    Pooled pooled = pool(sums);
    const int h = out_.sums.h / 2, w = out_.sums.w / 2, x = place.x / 2 + at_.within;
    const bool real = place.image < out_.sums.n && x < w;
    if (out_.selection) store_selection(pooled, place, real, h, w, x);
    if (out_.relu) {
#pragma unroll
      for (int i = 0; i < 2 * padded_rows; ++i) {
        float& value = pooled.best[i / padded_rows][i % padded_rows];
        value = passes(value) ? value : 0.0f;
      }
    }
    if constexpr (sizeof(T) == 2) {
      stage_pooled(pooled, place);
    } else {
      store_plain_pooled(pooled, place, real, h, w, x);
    }
  }

  __device__ __forceinline__ void store_selection(const Pooled& pooled, const Place& place, bool real, int h, int w,
                                                  int x) const {
    const int64_t bytes = (out_.sums.c + 7) / 8, plane_bytes = int64_t(h) * w * bytes;
    const int byte = (place.channel + 16 * at_.warp) / 8, y = place.y / 2;
    uint8_t* plane = out_.selection + place.image * ((out_.relu ? 3 : 2) * plane_bytes) + byte;
    const auto store_plane = [&](const uint32_t (&bits)[2]) {
      const uint32_t words[1] = {bits[0] | bits[1] << 16};  // a half's rows are under 16: a byte of eight items each
      store_bytes<32>(words, at_, [&](int item) -> uint8_t* {
        const int half = item / 16, j = item % 16;
        const bool exists = real && j < pooled_rows && y + j < h && byte + half < bytes;
        return exists ? plane + (int64_t(y + j) * w + x) * bytes + half : nullptr;
      });
      plane += plane_bytes;
    };
    if (out_.relu) store_plane(pooled.pass);
    store_plane(pooled.column);
    store_plane(pooled.below);
  }

  // ---- stores

  __device__ __forceinline__ static uint32_t pack(float first, float second) {
    const T pair[2] = {narrow<T>(first), narrow<T>(second)};
    uint32_t word;
    std::memcpy(&word, pair, sizeof(word));
    return word;
  }
  /// Where this lane's row of four 8 x 8 matrices lies: of pixel `pixel`, the half of lane / 8 % 2.
  __device__ __forceinline__ char* row_of(int pixel) const {
    return stage_ + swizzled_offset(pixel, 2 * at_.warp + at_.lane / 8 % 2);
  }
  __device__ __forceinline__ void wait() const {
    ptx::barrier_sync(consumer_ == 0 ? staging_of_first_consumer : staging_of_second_consumer, warpgroup_threads);
  }
  /// Calls fill() between the two waits, and `send` in one thread after them.
  template <class Fill, class Send>
  __device__ __forceinline__ void through_stage(Fill fill, Send send) const {
    if (stores()) ptx::cp_async_bulk_wait_group_read<0>();
    wait();
    fill();
    ptx::fence_proxy_async();
    wait();
    if (!stores()) return;
    send();
    ptx::cp_async_bulk_commit_group();
  }

  __device__ __forceinline__ void store_staged(const float (&sums)[count], const Place& place) const {
    constexpr int groups = Tile::staged_pixels / 8;
#pragma unroll
    for (int begin = 0; begin < pixel_groups; begin += groups) {
      const auto fill = [&] {
#pragma unroll
        for (int i = begin; i < begin + groups; i += 2) {
          const uint32_t matrices[4] = {pack(sums[4 * i], sums[4 * i + 1]), pack(sums[4 * i + 2], sums[4 * i + 3]),
                                        pack(sums[4 * i + 4], sums[4 * i + 5]), pack(sums[4 * i + 6], sums[4 * i + 7])};
          ptx::stmatrix_x4_trans(row_of(8 * (i - begin + at_.lane / 16) + at_.lane % 8), matrices);
        }
      };
      through_stage(fill, [&] {
        if constexpr (Tile::by_rows) {
          ptx::cp_async_bulk_tensor_store(map_, stage_, {place.channel, place.x, place.y, place.image});
        } else {
          ptx::cp_async_bulk_tensor_store(map_, stage_, {place.channel, place.flat + 8 * begin});
        }
      });
    }
  }

  /// A matrix takes two pooled rows: its pixels in turn are of the one and the other.
  __device__ __forceinline__ void stage_pooled(const Pooled& pooled, const Place& place) const {
    const auto fill = [&] {
#pragma unroll
      for (int j = 0; j < padded_rows; j += 4) {
        const uint32_t matrices[4] = {
            pack(pooled.best[0][j], pooled.best[0][j + 1]), pack(pooled.best[1][j], pooled.best[1][j + 1]),
            pack(pooled.best[0][j + 2], pooled.best[0][j + 3]), pack(pooled.best[1][j + 2], pooled.best[1][j + 3])};
        const int row = j + at_.lane / 16 * 2 + at_.lane % 2;
        ptx::stmatrix_x4_trans(row_of(row * (tile_width / 2) + at_.lane % 8 / 2), matrices);
      }
    };
    through_stage(fill, [&] {
      ptx::cp_async_bulk_tensor_store(map_, stage_, {place.channel, place.x / 2, place.y / 2, place.image});
    });
  }

  __device__ __forceinline__ void store_plain(const float (&sums)[count], const Place& place) const {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int channel = channel_of(place, i / 2 % 2), pixel = i / 4 * 8 + 2 * at_.within + i % 2;
      if (channel < out_.sums.c && inside(place, pixel)) {
        out_.y[number(place, pixel) * out_.sums.c + channel] = sums[i];
      }
    }
  }
  __device__ __forceinline__ void store_plain_pooled(const Pooled& pooled, const Place& place, bool real, int h, int w,
                                                     int x) const {
#pragma unroll
    for (int i = 0; i < 2 * pooled_rows; ++i) {
      const int half = i / pooled_rows, j = i % pooled_rows, y = place.y / 2 + j, channel = channel_of(place, half);
      if (!real || y >= h || channel >= out_.sums.c) continue;
      out_.y[((int64_t(place.image) * h + y) * w + x) * out_.sums.c + channel] = pooled.best[half][j];
    }
  }

  char* const stage_;
  const TensorMap& map_;
  const Output<T>& out_;
  const int consumer_;
  const Lane at_;
};

}  // namespace vggfast::cuda::hopper
