// The producer's side: threads of the first warpgroup, one for the ring of pixels and one for each ring of weights.
// Each waits for the next stage to be empty, tells its `full` barrier how many bytes will come, and starts a TMA load.
// They go through tiles, chunks of channels and taps in the order in which the consumers do. At the end of a ring that
// blocks share, they wait for the last arrivals: no block may end while others arrive at its barriers.
#pragma once

#include "cuda/conv/sm90/core/schedule.h"
#include "cuda/ptx/tma.h"

namespace vggfast::cuda::sm90 {

/// What a convolution sums over: for each chunk of input channels (128 bytes), the taps, box by box.
struct KRange {
  int begin, end;  // chunks of input channels
  int kernel;      // 1 or 3

  /// The part of block `rank` of Tile::split.
  template <class Tile>
  __device__ __forceinline__ KRange part(int rank) const {
    if constexpr (Tile::split == 1) return *this;
    return {end * rank / Tile::split, end * (rank + 1) / Tile::split, kernel};
  }
};

/// A bit for each of the blocks of ranks first, first + step, ...
template <int Blocks>
__device__ __forceinline__ uint16_t blocks_from(int first, int step) {
  unsigned mask = 0;
#pragma unroll
  for (int i = 0; i < Blocks; ++i) mask |= 1u << (first + i * step);
  return static_cast<uint16_t>(mask);
}

template <class Tile, class T>
__device__ __forceinline__ void load_pixels(char* stage, const TensorMap& x, uint64_t* full, const Place& place,
                                            int channel, int box, int kernel, const InCluster<Tile>& in) {
  char* const to = stage + in.down * (Tile::pixel_bytes / Tile::down);
  [[maybe_unused]] const uint16_t sharers = blocks_from<Tile::down>(in.across * Tile::down, 1);
  if constexpr (Tile::halo) {
    const int y = place.y - 1 + in.down * (Tile::box_rows / Tile::down);
    const int32_t at[4] = {channel, place.x + box - 1, y, place.image};
    if constexpr (Tile::down > 1) {
      ptx::cp_async_bulk_tensor_load_multicast(to, x, full, at, sharers);
    } else {
      ptx::cp_async_bulk_tensor_load(to, x, full, at);
    }
  } else {
    const int padding = kernel / 2;
    const int32_t at[4] = {channel, place.x - padding, place.y - padding, place.image};
    const uint16_t offset[2] = {static_cast<uint16_t>(box % kernel), static_cast<uint16_t>(box / kernel)};
    if constexpr (Tile::down > 1) {
      ptx::cp_async_bulk_tensor_im2col_multicast(to, x, full, at, offset, sharers);
    } else {
      ptx::cp_async_bulk_tensor_im2col(to, x, full, at, offset);
    }
  }
}

/// x: boxes of the stored tensor for halo tiles, columns by im2col for the others.
template <class Tile, class T>
__device__ __forceinline__ void feed_pixels(char* stages, Barriers<Tile::pixel_stages>& barriers, const TensorMap& x,
                                            const Schedule& schedule, KRange k, int first, int step) {
  const InCluster<Tile> in;
  PipelineState<Tile::pixel_stages> at;
  for (int group = first; group < schedule.groups; group += step) {
    const Place place =
        schedule.template place<Tile>(group, in, Tile::halo ? 0 : in.down * (Tile::pixels / Tile::down));
    for (int chunk = k.begin; chunk < k.end; ++chunk) {
      for (int box = 0; box < Tile::boxes(k.kernel); ++box) {
        at.wait_empty(barriers);
        uint64_t* const full = &barriers.full[at.stage()];
        ptx::mbarrier_arrive_expect_tx(full, Tile::pixel_bytes);
        load_pixels<Tile, T>(stages + at.stage() * Tile::pixel_bytes, x, full, place, chunk * channels_of<T>, box,
                             k.kernel, in);
        at.advance();
      }
    }
  }
  if constexpr (Tile::down > 1) at.wait_all_empty(barriers);
}

/// U: the outputs' type, which says in which order their channels are.
template <class Tile, class U>
__device__ __forceinline__ void load_weights(char* stage, const TensorMap& weights, uint64_t* full, int channel,
                                             int tap, int cout, const InCluster<Tile>& in) {
  constexpr int part = warpgroup_channels / Tile::across;
  char* const to = stage + in.across * part * row_bytes;
  const auto load = [&](const auto& at) {
    if constexpr (Tile::across > 1) {
      const uint16_t sharers = blocks_from<Tile::across>(in.down, Tile::down);
      ptx::cp_async_bulk_tensor_load_multicast(to, weights, full, at, sharers);
    } else {
      ptx::cp_async_bulk_tensor_load(to, weights, full, at);
    }
  };
  const int first = cout + in.across * part;
  if constexpr (sizeof(U) == 1) {
    const int32_t at[5] = {channel, tap, 0, 0, first / 16};
    load(at);
  } else {
    const int32_t at[3] = {channel, tap, first};
    load(at);
  }
}

/// Of the 64 channels of a tile whose weights are in ring `ring`.
template <class Tile, class T, class U>
__device__ __forceinline__ void feed_weights(char* stages, Barriers<Tile::weight_stages>& barriers,
                                             const TensorMap& weights, const Schedule& schedule, KRange k, int ring,
                                             int first, int step) {
  const InCluster<Tile> in;
  PipelineState<Tile::weight_stages> at;
  for (int group = first; group < schedule.groups; group += step) {
    const int cout = schedule.template place<Tile>(group, in).channel + ring * warpgroup_channels;
    for (int chunk = k.begin; chunk < k.end; ++chunk) {
      for (int box = 0; box < Tile::boxes(k.kernel); ++box) {
        for (int i = 0; i < Tile::taps_of_a_box; ++i) {
          at.wait_empty(barriers);
          uint64_t* const full = &barriers.full[at.stage()];
          ptx::mbarrier_arrive_expect_tx(full, Tile::weight_bytes);
          load_weights<Tile, U>(stages + at.stage() * Tile::weight_bytes, weights, full, chunk * channels_of<T>,
                                Tile::tap(box, i), cout, in);
          at.advance();
        }
      }
    }
    if constexpr (Tile::stationary) return;  // the first tile's weights serve all tiles
  }
  if constexpr (Tile::across > 1) at.wait_all_empty(barriers);
}

}  // namespace vggfast::cuda::sm90
