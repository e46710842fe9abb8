// The producer's side of block 1's fused kernel: a warpgroup that fills each box with relu(conv(x, w1) + b1). It
// computes 16 pixels at a time by mma.sync, with the weights in registers. Pixels outside the image are 0: they are the
// padding of the second convolution.
#pragma once

#include "cuda/conv/sm90/block1/tile.h"
#include "cuda/conv/sm90/core/schedule.h"
#include "cuda/ptx/fence.h"

namespace vggfast::cuda::sm90 {

__device__ __forceinline__ uint32_t rectified_pair(bf16, float first, float second) {
  return ptx::cvt_rn_relu_bf16x2(second, first);
}
__device__ __forceinline__ uint32_t rectified_pair(f16, float first, float second) {
  return ptx::cvt_rn_relu_f16x2(second, first);
}

template <class Tile, class T>
class FirstLayer {
 public:
  __device__ __forceinline__ FirstLayer(char* shared, const Source<T>& x, const WeightView<T>& weights, const T* bias)
      : x_(x), lane_(weights, bias, 0), shared_(shared) {}

  /// The first tile's part of x, for all to see.
  __device__ __forceinline__ void begin(const Place& place) {
    fetch(place);
    store(0);
  }
  /// x's part of a tile, on its way to registers; and from there to one of the two buffers.
  __device__ __forceinline__ void fetch(const Place& place) {
    border_.fetch(x_, place.image, place.y - 2, place.x - 2);
  }
  __device__ __forceinline__ void store(int buffer) {
    border_.store(shared_ + Tile::borders_at + buffer * Tile::Border::bytes);
    ptx::barrier_sync(borders_of_first_layer, warpgroup_threads);
  }

  /// Fills a box.
  __device__ __forceinline__ void compute(char* box, int buffer, const Place& place) const {
    const char* const border = shared_ + Tile::borders_at + buffer * Tile::Border::bytes;
#pragma unroll 1
    for (int first = static_cast<int>(threadIdx.x) / 32 * 16; first < Tile::box_pixels; first += warpgroup_warps * 16) {
      int pixel[2];
      bool inside[2];
      const char* patch[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        pixel[half] = first + 8 * half + lane_.at.group;
        const int known = pixel[half] < Tile::box_pixels ? pixel[half] : Tile::box_pixels - 1;
        const int row = known / Tile::box_columns, column = known % Tile::box_columns;
        inside[half] = x_.inside(place.y - 1 + row, place.x - 1 + column);
        patch[half] = border + Tile::Border::offset(row, column * x_.c);
      }
      uint32_t operand[Tile::Lane::Patch::steps][4];
      lane_.load(patch[0], patch[1], operand);
#pragma unroll
      for (int block = 0; block < warpgroup_channels / 32; ++block) {
        float sums[2][lane_channels];
        lane_.multiply(operand, block, sums[0], sums[1]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Words chunk;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const uint32_t pair = rectified_pair(T{}, sums[half][2 * i], sums[half][2 * i + 1]);
            chunk.word[i] = inside[half] ? pair : 0;
          }
          if (pixel[half] >= Tile::box_pixels) continue;
          const int plane = 4 * block + lane_.at.within;
          *reinterpret_cast<Words*>(box + plane * Tile::plane_bytes + pixel[half] * chunk_bytes) = chunk;
        }
      }
    }
  }

 private:
  const Source<T>& x_;
  const typename Tile::Lane lane_;
  char* const shared_;
  Halo<T, typename Tile::Border> border_;
};

/// Fills the boxes of all tiles of this block, in the order in which the consumers take them.
template <class Tile, class T>
__device__ __forceinline__ void compute_boxes(char* shared, Barriers<Tile::pixel_stages>& barriers,
                                              const Schedule& schedule, FirstLayer<Tile, T>& layer) {
  const int step = static_cast<int>(gridDim.x);
  const auto place_of = [&](int group) { return schedule.template place<Tile>(group, InCluster<Tile>()); };
  int group = static_cast<int>(blockIdx.x);
  PipelineState<Tile::pixel_stages> at;
  Place place = place_of(group);
  layer.begin(place);
#pragma unroll 1
  for (int buffer = 0; group < schedule.groups; buffer ^= 1) {
    const Place now = place;
    group += step;
    if (group < schedule.groups) layer.fetch(place = place_of(group));
    at.wait_empty(barriers);
    layer.compute(shared + Tile::pixels_at + at.stage() * Tile::pixel_bytes, buffer, now);
    ptx::fence_proxy_async();
    ptx::sync_warp();
    arrive<1>(&barriers.full[at.stage()], 0, 0);
    at.advance();
    if (group < schedule.groups) layer.store(buffer ^ 1);
  }
}

}  // namespace vggfast::cuda::sm90
