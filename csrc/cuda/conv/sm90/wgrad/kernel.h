// The weights' gradient of a 3x3 layer on Hopper, an implicit GEMM whose sum runs over pixels, and the bias' beside it.
//
//   gw (cout x 9 cin) = gz^T (cout x pixels) * x, shifted by each tap (pixels x cin);   gb (cout) = sums of gz
//
// x and gz are NHWC. A block owns 64 couts x 64 cins x 9 taps, in registers, and a part of the steps (walk.h). Each of
// three warpgroups has a column of taps: its products are 64 couts x (3 row taps * 64 cins) over 16 pixels, where the
// next row tap lies 1024 bytes on in the same box of x. Sums go to partial (splits x cout x 9 cin) and partial_bias
// (splits x cout), which reduce.cu adds up. Shared memory: 9 boxes of x (16 KB) and 5 of gz (14 KB), or 14 (10 KB) and
// 8 (8 KB); then barriers. One warp loads boxes once they are `empty`: all readers have read them or passed over them.
// The warpgroups wait for `full` boxes and multiply; one warp more adds up gz for the bias.
#pragma once

#include "cuda/conv/sm90/core/pipeline.h"
#include "cuda/conv/sm90/wgrad/walk.h"
#include "cuda/ptx/elect.h"
#include "cuda/ptx/fence.h"
#include "cuda/ptx/griddepcontrol.h"

namespace vggfast::cuda::sm90 {

struct WgradArgs {
  WgradWalk walk;
  int cout, cin, cout_tiles, cin_tiles, splits;
  float *partial, *partial_bias;  // partial_bias may be null
};

template <class T, int Rows>
struct WgradTraits : WgradTile<Rows> {
  using Element = T;
  using Tile = WgradTile<Rows>;
  static constexpr int consumers = column_taps * warpgroup_warps;  // warps, of which each stage of x waits for all
  static constexpr int producer_warp = consumers, bias_warp = consumers + 1, threads = (consumers + 2) * 32;
  static constexpr int columns = row_taps * wgrad_channels;  // N of a product
  static constexpr int sums = columns / 2;                   // of a thread

  struct Rings {
    Barriers<Tile::x_stages> x;
    Barriers<Tile::gz_stages> gz;
  };
  static constexpr int x_at = 0, gz_at = Tile::x_stages * Tile::x_bytes;
  static constexpr int rings_at = gz_at + Tile::gz_stages * Tile::gz_bytes;
  static constexpr int shared_bytes = rings_at + static_cast<int>(sizeof(Rings));
  static_assert(shared_bytes <= 227 << 10);
};

/// A block's part of the problem.
struct WgradShare {
  int cout, cin;  // its first channels
  int split;
  int begin, end;  // of its steps
  bool with_bias;

  __device__ __forceinline__ explicit WgradShare(const WgradArgs& a) {
    const int block = static_cast<int>(blockIdx.x), tile = block / a.cout_tiles;
    split = tile / a.cin_tiles;
    cout = (block - tile * a.cout_tiles) * wgrad_channels;
    cin = (tile - split * a.cin_tiles) * wgrad_channels;
    begin = static_cast<int>(int64_t(a.walk.steps) * split / a.splits);
    end = static_cast<int>(int64_t(a.walk.steps) * (split + 1) / a.splits);
    with_bias = a.partial_bias && cin == 0;
  }
};

/// By one thread: fetches the boxes of all steps.
template <class Tile>
__device__ __forceinline__ void load_steps(const WgradArgs& a, const WgradShare& share, const TensorMap& gz_map,
                                           const TensorMap& x_map, char* shared, typename Tile::Rings& rings) {
  const WgradWalk& walk = a.walk;
  const int phases = static_cast<int>(walk.phases.divisor);
  PipelineState<Tile::x_stages> x;
  PipelineState<Tile::gz_stages> gz;
  walk.for_runs(share.begin, share.end, [&](int run, int first, int count) {
    const WgradPlace place = walk.template place<Tile>(run);
    const auto load_x = [&](int phase) {
      const int over = phase < 0 ? -1 : phase == phases ? 1 : 0;  // the next tooth's first phase follows a tooth's last
      x.wait_empty(rings.x);
      uint64_t* const full = &rings.x.full[x.stage()];
      ptx::mbarrier_arrive_expect_tx(full, Tile::x_bytes);
      ptx::cp_async_bulk_tensor_load(shared + Tile::x_at + x.stage() * Tile::x_bytes, x_map, full,
                                     {share.cin, phase - over * phases, place.tooth + over, place.image, place.y - 1});
      x.advance();
    };
    load_x(first - 1);
    load_x(first);
    for (int phase = first; phase < first + count; ++phase) {
      gz.wait_empty(rings.gz);
      uint64_t* const full = &rings.gz.full[gz.stage()];
      ptx::mbarrier_arrive_expect_tx(full, Tile::gz_bytes);
      ptx::cp_async_bulk_tensor_load(shared + Tile::gz_at + gz.stage() * Tile::gz_bytes, gz_map, full,
                                     {share.cout, phase, place.tooth, place.image, place.y});
      gz.advance();
      load_x(phase + 1);
    }
  });
}

/// By a warp: sums gz over the pixels of the share, a lane 8 channels of every fourth pixel.
template <class Tile>
__device__ __forceinline__ void sum_bias(const WgradArgs& a, const WgradShare& share, const char* shared,
                                         typename Tile::Rings& rings) {
  using T = typename Tile::Element;
  constexpr int channels = chunk_bytes / static_cast<int>(sizeof(T)), chunks = row_bytes / chunk_bytes;
  struct alignas(chunk_bytes) Chunk {
    T channel[channels];
  };
  const int lane = static_cast<int>(threadIdx.x % 32), chunk = lane % chunks;
  float sums[channels] = {};
  PipelineState<Tile::gz_stages> gz;
  for (int step = share.begin; step < share.end; ++step) {
    gz.wait_full(rings.gz);
    const char* const stage = shared + Tile::gz_at + gz.stage() * Tile::gz_bytes;
#pragma unroll 2
    for (int row = 0; row < Tile::rows; ++row) {
#pragma unroll
      for (int pixel = lane / chunks; pixel < group_rows; pixel += 32 / chunks) {
        const Chunk of = *reinterpret_cast<const Chunk*>(stage + row * group_bytes + swizzled_offset(pixel, chunk));
#pragma unroll
        for (int i = 0; i < channels; ++i) sums[i] += ptx::cvt_f32(of.channel[i]);
      }
    }
    ptx::sync_warp();
    arrive<1>(&rings.gz.empty[gz.stage()], 0, 0);
    gz.advance();
  }
#pragma unroll
  for (int i = 0; i < channels; ++i) {
    for (unsigned lanes = chunks; lanes < 32; lanes *= 2) {
      sums[i] += ptx::as_float(ptx::shfl_xor(ptx::as_bits(sums[i]), lanes));
    }
  }
  const int cout = share.cout + chunk * channels;
  if (lane >= chunks || cout >= a.cout) return;
  float* const to = a.partial_bias + int64_t(share.split) * a.cout + cout;
#pragma unroll
  for (int i = 0; i < channels; ++i) to[i] = sums[i];
}

/// By a warpgroup: the products of tap column `column` over the share.
template <class Tile>
__device__ __forceinline__ void multiply_steps(float (&sums)[Tile::sums], const WgradArgs& a, const WgradShare& share,
                                               int column, const char* shared, typename Tile::Rings& rings) {
  constexpr uint64_t step_of_16_pixels = 2 * group_bytes >> 4;  // of a descriptor
  // Channels are contiguous. One span of couts; of cins three, a row of pixels apart: the row taps.
  const auto descriptor = [](const char* stages) {
    return ptx::wgmma_descriptor(stages, ptx::Swizzle::b128, group_bytes, group_bytes);
  };
  const uint64_t gz_stages = descriptor(shared + Tile::gz_at), x_stages = descriptor(shared + Tile::x_at);
  PipelineState<Tile::x_stages> x;
  PipelineState<Tile::gz_stages> gz;
  const auto pass_over = [&](int boxes) {  // only once they are full: before, `empty` may count for the boxes before
    for (; boxes > 0; --boxes) {
      x.wait_full(rings.x);
      ptx::sync_warp();  // a lane that still asked might miss the phase
      arrive<1>(&rings.x.empty[x.stage()], 0, 0);
      x.advance();
    }
  };
  uint64_t *x_read = nullptr, *gz_read = nullptr;  // to be released once the products in flight have read them
  const auto release_read = [&] {
    if (!x_read) return;
    arrive<1>(x_read, 0, 0);
    arrive<1>(gz_read, 0, 0);
  };
  a.walk.for_runs(share.begin, share.end, [&](int, int, int count) {
    pass_over(column);
    for (; count > 0; --count) {
      x.wait_full(rings.x);
      gz.wait_full(rings.gz);
      const uint64_t a_at = gz_stages + gz.stage() * (Tile::gz_bytes >> 4);
      const uint64_t b_at = x_stages + x.stage() * (Tile::x_bytes >> 4);
      ptx::wgmma_fence();
#pragma unroll
      for (int i = 0; i < Tile::rows / 2; ++i) {
        ptx::wgmma<Operand<typename Tile::Element>::type, Tile::columns, ptx::Major::mn, ptx::Major::mn>(
            sums, a_at + i * step_of_16_pixels, b_at + i * step_of_16_pixels, true);
      }
      ptx::wgmma_commit_group();
      ptx::wgmma_wait_group<1>();
      release_read();
      x_read = &rings.x.empty[x.stage()];
      gz_read = &rings.gz.empty[gz.stage()];
      x.advance();
      gz.advance();
    }
    pass_over(column_taps - 1 - column);
  });
  ptx::wgmma_wait_group<0>();
  ptx::wgmma_hold(sums);
}

/// Writes a warpgroup's sums to its part of `partial`. Of the accumulator (64 x 192, as in epilogue/staging.h), warp w
/// and lane 4 group + within hold, for i = 0 .. 23, half = 0, 1 and e = 0, 1:
///
///   sums[4 i + 2 half + e]:   cout 16 w + group + 8 half,   row tap i / 8,   cin i % 8 * 8 + 2 within + e
template <class Tile>
__device__ __forceinline__ void store_sums(const float (&sums)[Tile::sums], const WgradArgs& a, const WgradShare& share,
                                           int column) {
  struct alignas(8) Pair {
    float at[2];
  };
  const int thread = static_cast<int>(threadIdx.x) % warpgroup_threads, lane = thread % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int cout = share.cout + thread / 32 * 16 + lane / 4 + 8 * half;
    if (cout >= a.cout) continue;
    float* const row = a.partial + (int64_t(share.split) * a.cout + cout) * (row_taps * column_taps * a.cin);
#pragma unroll
    for (int i = 0; i < Tile::columns / 8; ++i) {
      const int tap = i / (wgrad_channels / 8) * column_taps + column;
      const int cin = share.cin + i % (wgrad_channels / 8) * 8;
      if (cin >= a.cin) continue;  // all eight or none
      float* const to = row + tap * a.cin + cin + lane % 4 * 2;
      *reinterpret_cast<Pair*>(to) = {sums[4 * i + 2 * half], sums[4 * i + 2 * half + 1]};
    }
  }
}

template <class Tile>
__global__ void __launch_bounds__(Tile::threads, 1)
    conv_wgrad_hopper_kernel(const __grid_constant__ TensorMap gz_map, const __grid_constant__ TensorMap x_map,
                             const __grid_constant__ WgradArgs a) {
  char* const shared = ptx::shared_memory();
  auto& rings = *reinterpret_cast<typename Tile::Rings*>(shared + Tile::rings_at);
  const WgradShare share(a);
  const int warp = static_cast<int>(ptx::shfl(threadIdx.x / 32, 0));  // which the compiler then knows to be uniform
  if (threadIdx.x == 0) {
    ptx::prefetch_tensormap(gz_map);
    ptx::prefetch_tensormap(x_map);
    rings.x.init(Tile::consumers);
    rings.gz.init(Tile::consumers + share.with_bias);
    ptx::fence_mbarrier_init();
  }
  ptx::sync_threads();
  ptx::griddepcontrol_wait();
  if (warp == Tile::producer_warp) {
    if (ptx::elect()) {
      load_steps<Tile>(a, share, gz_map, x_map, shared, rings);
      ptx::griddepcontrol_launch_dependents();
    }
  } else if (warp == Tile::bias_warp) {
    if (share.with_bias) sum_bias<Tile>(a, share, shared, rings);
  } else {
    const int column = warp / warpgroup_warps;
    float sums[Tile::sums] = {};
    multiply_steps<Tile>(sums, a, share, column, shared, rings);
    store_sums<Tile>(sums, a, share, column);
  }
}

}  // namespace vggfast::cuda::sm90
