// What a lane of the kernels that compute the first layer keeps for all tiles: its weights, and where the words of its
// patches lie and which parts of them are real. Of each 32 output channels, the lane ends with eight neighbouring ones,
// from lane_channels * (lane % 4) on: product j gives it channels 2 j and 2 j + 1 of them, of each of its pixels.
#pragma once

#include "cuda/conv/stem/epilogue.h"
#include "cuda/conv/stem/halo.h"
#include "cuda/conv/stem/patch.h"

namespace vggfast::cuda {

/// For `Blocks` times 32 output channels of a tile that lies as HaloShape says.
template <class T, int Channels, class Shape, int Blocks>
struct StemLane {
  using Patch = PatchShape<T, Channels>;

  Lane at;
  uint32_t weights[Blocks][4][Patch::steps][2];
  int offset[Patch::words];
  uint32_t mask[Patch::words], one;

  __device__ __forceinline__ StemLane(const WeightView<T>& w, const T* bias, int first_channel) {
#pragma unroll
    for (int i = 0; i < Patch::words; ++i) {
      const PatchWord<T, Channels> word(w.in, 4 * i + at.within);
      mask[i] = word.mask();
      offset[i] = word.offset(Shape::row_values) * static_cast<int>(sizeof(T));
      if (i == Patch::words - 1) one = word.one();
#pragma unroll
      for (int block = 0; block < Blocks; ++block) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          // Column g of product j is a channel of lane g / 2: the one that its sums' element g % 2 is to be.
          const int channel = first_channel + 32 * block + at.group / 2 * lane_channels + 2 * j + at.group % 2;
          weights[block][j][i / 2][i % 2] = word.of_weights(w, bias, channel);
        }
      }
    }
  }

  /// The operand whose rows `group` and `group` + 8 are the patches of the pixels that lie at `first` and `second`.
  __device__ __forceinline__ void load(const char* first, const char* second,
                                       uint32_t (&pixels)[Patch::steps][4]) const {
#pragma unroll
    for (int i = 0; i < Patch::words; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t& value = pixels[i / 2][i % 2 * 2 + half];
        value = mask[i] & *reinterpret_cast<const uint32_t*>((half ? second : first) + offset[i]);
        if (i == Patch::words - 1) value |= one;
      }
    }
  }

  /// The sums of these two pixels, 32 channels: element e is channel e of this lane.
  __device__ __forceinline__ void multiply(const uint32_t (&pixels)[Patch::steps][4], int block,
                                           float (&first)[lane_channels], float (&second)[lane_channels]) const {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float sum[4] = {};
#pragma unroll
      for (int step = 0; step < Patch::steps; ++step) StemMath<T>::product(sum, pixels[step], weights[block][j][step]);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        first[2 * j + e] = sum[e];
        second[2 * j + e] = sum[2 + e];
      }
    }
  }
};

}  // namespace vggfast::cuda
