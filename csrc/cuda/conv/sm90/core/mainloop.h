// The consumers' side: a warpgroup's sums of one tile, 64 channels x Tile::pixels. A step waits for a stage of weights
// (and, at the first tap of a box, for the box of pixels), starts its products, waits for the products of the step
// before, and then releases the stages of that step. So one group of products is always in flight. Where two warpgroups
// cooperate, the second begins a tile when the first is Tile::lag boxes ahead in it, and stays behind: products of the
// one go on while the other stores.
#pragma once

#include "cuda/conv/sm90/core/feed.h"
#include "cuda/ptx/sync.h"

namespace vggfast::cuda::sm90 {

template <class Tile>
using Sums = float[Tile::pixels / 2];

/// Products of a stage: 128 bytes of channels. They add to the sums unless they are a tile's first.
template <class Tile, class T>
__device__ __forceinline__ void multiply_stage(Sums<Tile>& sums, uint64_t weights, uint64_t pixels, bool first) {
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < row_bytes / product_bytes; ++k) {
    ptx::wgmma<Operand<T>::type, Tile::pixels>(sums, weights + (k * product_bytes >> 4),
                                               pixels + (k * Tile::pixels_step >> 4), !first || k > 0);
  }
  ptx::wgmma_commit_group();
}

template <class Tile, class T>
class Consumer {
 public:
  __device__ __forceinline__ Consumer(char* shared, Barriers<Tile::pixel_stages>& pixels,
                                      Barriers<Tile::weight_stages>& weights, KRange k, int warpgroup)
      : pixel_barriers_(pixels), weight_barriers_(weights), k_(k), warpgroup_(warpgroup) {
    constexpr int rings_apart = Tile::pingpong ? 0 : Tile::weight_stages * Tile::weight_bytes;
    first_pixels_ = Tile::pixels_descriptor(shared + Tile::pixels_at);
    first_weights_ = row_descriptor(shared + Tile::weights_at + warpgroup * rings_apart);
    if (Tile::pingpong && warpgroup == 1) skip_tile();
  }

  /// Ping-pong: `before` and `after` say whether the other warpgroup has a tile before and after this one.
  __device__ __forceinline__ void multiply_tile(Sums<Tile>& sums, bool before, bool after) {
    if (Tile::pingpong && before) ptx::barrier_sync(turn_of(warpgroup_), consumers * warpgroup_threads);
    const bool apart = keep_apart();
    if (apart && warpgroup_ == 1) ptx::barrier_sync(turn_of_second_consumer, consumers * warpgroup_threads);
    int until_lag = apart && warpgroup_ == 0 ? Tile::lag : 0;
    bool first = true;
    uint64_t *used_pixels = nullptr, *used_weights = nullptr;  // to be released
    for (int chunk = k_.begin; chunk < k_.end; ++chunk) {
      for (int box = 0; box < Tile::boxes(k_.kernel); ++box) {
        pixels_at_.wait_full(pixel_barriers_);
        const uint64_t pixels = first_pixels_ + (pixels_at_.stage() * Tile::pixel_bytes >> 4);
#pragma unroll
        for (int i = 0; i < Tile::taps_of_a_box; ++i) {
          weights_at_.wait_full(weight_barriers_);
          const uint64_t weights = first_weights_ + (weights_at_.stage() * Tile::weight_bytes >> 4);
          multiply_stage<Tile, T>(sums, weights, pixels + (Tile::tap_bytes(i) >> 4), first);
          ptx::wgmma_wait_group<1>();
          if (!first) release(i == 0 ? used_pixels : nullptr, used_weights);
          first = false;
          used_weights = &weight_barriers_.empty[weights_at_.stage()];
          next_weights();
        }
        used_pixels = &pixel_barriers_.empty[pixels_at_.stage()];
        pixels_at_.advance();
        if (Tile::lag > 0 && --until_lag == 0) {
          ptx::barrier_arrive(turn_of_second_consumer, consumers * warpgroup_threads);
        }
      }
    }
    if (Tile::pingpong && after) ptx::barrier_arrive(turn_of(1 - warpgroup_), consumers * warpgroup_threads);
    ptx::wgmma_wait_group<0>();
    ptx::wgmma_hold(sums);
    release(used_pixels, used_weights);
    if constexpr (Tile::pingpong) skip_tile();
  }

 private:
  __device__ __forceinline__ static unsigned turn_of(int warpgroup) {
    return warpgroup == 0 ? turn_of_first_consumer : turn_of_second_consumer;
  }
  /// Whether one warpgroup follows the other. A tile must have more boxes than the first can be ahead, or it would come
  /// to the barrier twice before the second does.
  __device__ __forceinline__ bool keep_apart() const {
    return Tile::lag > 0 && (k_.end - k_.begin) * Tile::boxes(k_.kernel) >= Tile::pixel_stages;
  }
  /// Passes over the stages of the other warpgroup's tile.
  __device__ __forceinline__ void skip_tile() {
    const int boxes = (k_.end - k_.begin) * Tile::boxes(k_.kernel);
    pixels_at_.skip(boxes);
    if (!Tile::stationary) weights_at_.skip(boxes * Tile::taps_of_a_box);
  }
  /// Stationary weights are waited for in every tile, but they arrive only once.
  __device__ __forceinline__ void next_weights() {
    weights_at_.advance();
    if (Tile::stationary && weights_at_.stage() == 0) weights_at_ = {};
  }
  __device__ __forceinline__ void release(uint64_t* pixels, uint64_t* weights) const {
    if (pixels) arrive<Tile::down>(pixels, in_.across * Tile::down, 1);
    if (!Tile::stationary) arrive<Tile::across>(weights, in_.down, Tile::down);
  }

  Barriers<Tile::pixel_stages>& pixel_barriers_;
  Barriers<Tile::weight_stages>& weight_barriers_;
  const KRange k_;
  const int warpgroup_;
  const InCluster<Tile> in_;
  uint64_t first_pixels_, first_weights_;
  PipelineState<Tile::pixel_stages> pixels_at_;
  PipelineState<Tile::weight_stages> weights_at_;
};

}  // namespace vggfast::cuda::sm90
