// How a warpgroup's outputs reach memory. They go to a stage in shared memory, [pixel][up to 128 bytes of channels],
// swizzled (operand.h). From there TMA stores them while the next tile is computed; it leaves out what lies beyond the
// tensor. Before the stage is written again all threads wait for the one that stores; before it stores, it waits for
// all of them. The 64 channels of float32 take two passes, and so do the pixels of a tile that the stage cannot hold.
//
// 16-bit values leave the registers by stmatrix.x4.trans: four 8 x 8 matrices, whose memory rows are pixels and whose
// columns are eight channels (one chunk of 16 bytes). Of warp w, for the groups of pixels i and i + 1:
//
//   lanes     hold the addresses of the rows of          which are made of each lane's
//   0 - 7     pixels 8 i + 0..7,   channels 16 w + 0..7   values[4 i], values[4 i + 1]
//   8 - 15    pixels 8 i + 0..7,   channels 16 w + 8..15  values[4 i + 2], values[4 i + 3]
//   16 - 23   pixels 8 i + 8..15,  channels 16 w + 0..7   values[4 i + 4], values[4 i + 5]
//   24 - 31   pixels 8 i + 8..15,  channels 16 w + 8..15  values[4 i + 6], values[4 i + 7]
//
// e4m3 goes by stmatrix.x2.trans, where an element of 16 bits is two neighbouring channels of a pixel.
#pragma once

#include <cstring>

#include "cuda/conv/sm90/core/operand.h"
#include "cuda/conv/sm90/core/pipeline.h"
#include "cuda/ptx/fence.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/sync.h"
#include "cuda/ptx/tma.h"
#include "cuda/vectors.h"

namespace vggfast::cuda::sm90 {

/// The accumulator of wgmma m64nN, channels x pixels. Warp w of the warpgroup has the channels 16 w + r; of the pixels
/// 8 i + p, r and p belong to lane 4 group + within as follows:
///
///             p = 0   1   2   3   4   5   6   7
///   r = 0         0   0   1   1   2   2   3   3     values[4 i + e]:      group = r,      p = 2 within + e
///   r = 1         4   4   5   5   6   6   7   7
///       ...
///   r = 7        28  28  29  29  30  30  31  31
///   r = 8         0   0   1   1   2   2   3   3     values[4 i + 2 + e]:  group = r - 8,  p = 2 within + e
///       ...
///   r = 15       28  28  29  29  30  30  31  31
///
/// So values[4 i + 2 h + e] is channel 16 w + channel_of_row(group, h), pixel 8 i + 2 within + e.
struct Lane {
  int warp, lane, group, within;

  __device__ __forceinline__ Lane()
      : warp(static_cast<int>(threadIdx.x) / 32 % warpgroup_warps),
        lane(static_cast<int>(threadIdx.x) % 32),
        group(lane / 4),
        within(lane % 4) {}
};

/// Which of a group's eight pixels thread `within` holds: 2 within + e (beside), or, where the eight are two rows of
/// four pooled ones, within + 4 e (below).
enum class Pairs { beside, below };

template <class T, int StagedGroups>
class Staging {
 public:
  static constexpr int passes = sizeof(T) == 4 ? 2 : 1;  // over channels

  __device__ __forceinline__ Staging(char* stage, int consumer) : stage_(stage), consumer_(consumer) {}

  /// Stores the groups of pixels from First on. One thread calls send(stage, channel, First), which issues the store.
  template <Pairs Way, int First = 0, int Count, class Send>
  __device__ __forceinline__ void store(const float (&values)[Count], Send send) const {
    constexpr int groups = Count / 4, end = First + StagedGroups < groups ? First + StagedGroups : groups;
#pragma unroll
    for (int pass = 0; pass < passes; ++pass) {
      if (stores()) ptx::cp_async_bulk_wait_group_read<0>();
      wait();
      fill<Way, First, end>(values, pass);
      ptx::fence_proxy_async();
      wait();
      if (stores()) {
        send(stage_, pass * channels_of<T>, First);
        ptx::cp_async_bulk_commit_group();
      }
    }
    if constexpr (end < groups) store<Way, end>(values, send);
  }

  /// Fills the stage likewise, for all threads to read it: read(stage, First).
  template <Pairs Way, int First = 0, int Count, class Read>
  __device__ __forceinline__ void visit(const float (&values)[Count], Read read) const {
    constexpr int groups = Count / 4, end = First + StagedGroups < groups ? First + StagedGroups : groups;
    wait();
    fill<Way, First, end>(values, 0);
    wait();
    read(static_cast<const char*>(stage_), First);
    if constexpr (end < groups) visit<Way, end>(values, read);
  }

  /// Waits for TMA to have read the stage: shared memory is gone when the block ends.
  __device__ __forceinline__ void finish() const {
    if (stores()) ptx::cp_async_bulk_wait_group_read<0>();
  }

 private:
  __device__ __forceinline__ bool stores() const { return threadIdx.x % warpgroup_threads == 0; }
  __device__ __forceinline__ void wait() const {
    ptx::barrier_sync(consumer_ == 0 ? staging_of_first_consumer : staging_of_second_consumer, warpgroup_threads);
  }
  __device__ __forceinline__ static uint32_t pack(float first, float second) {
    const T pair[2] = {narrow<T>(first), narrow<T>(second)};
    uint32_t word;
    std::memcpy(&word, pair, sizeof(word));
    return word;
  }
  /// Two neighbouring channels of each of two pixels.
  __device__ __forceinline__ static uint32_t pack_channels(const float* v) {
    return ptx::cvt_rn_satfinite_e4m3x2(v[2], v[0]) | uint32_t(ptx::cvt_rn_satfinite_e4m3x2(v[3], v[1])) << 16;
  }
  /// The pixel of its group that is number e of thread `within`.
  template <Pairs Way>
  __device__ __forceinline__ static int pixel_of(int within, int e) {
    return Way == Pairs::beside ? 2 * within + e : within + 4 * e;
  }

  template <Pairs Way, int First, int End, int Count>
  __device__ __forceinline__ void fill(const float (&values)[Count], [[maybe_unused]] int pass) const {
    static_assert((End - First) % 2 == 0);
    const int column = at_.lane % 8;  // which memory row of a matrix this lane has the address of
    [[maybe_unused]] const int pixel_in_group = pixel_of<Way>(column / 2, column % 2);
    if constexpr (sizeof(T) == 1) {
      char* const to = stage_ + swizzled_half_offset(at_.lane / 8 % 2 * 8 + pixel_in_group, at_.warp);
#pragma unroll
      for (int i = First; i < End; i += 2) {
        const float* v = values + 4 * i;
        const uint32_t matrices[2] = {pack_channels(v), pack_channels(v + 4)};
        ptx::stmatrix_x2_trans(to + (i - First) * (group_bytes / 2), matrices);
      }
    } else if constexpr (sizeof(T) == 2) {
      const int pixel = at_.lane / 16 * 8 + pixel_in_group;
      char* const to = stage_ + swizzled_offset(pixel, 2 * at_.warp + at_.lane / 8 % 2);
#pragma unroll
      for (int i = First; i < End; i += 2) {
        const float* v = values + 4 * i;
        const uint32_t matrices[4] = {pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7])};
        ptx::stmatrix_x4_trans(to + (i - First) * group_bytes, matrices);
      }
    } else if (at_.warp / 2 == pass) {
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const int channel = at_.warp % 2 * 16 + part / 2 * 8 + at_.group, pixel = pixel_of<Way>(at_.within, part % 2);
        char* const to = stage_ + swizzled_offset(pixel, channel / 4) + channel % 4 * static_cast<int>(sizeof(T));
#pragma unroll
        for (int i = First; i < End; ++i) {
          *reinterpret_cast<T*>(to + (i - First) * group_bytes) = values[4 * i + part];
        }
      }
    }
  }

  char* const stage_;
  const int consumer_;
  const Lane at_;
};

}  // namespace vggfast::cuda::sm90
