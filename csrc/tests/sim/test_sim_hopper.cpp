// Plants each kind of bug that the simulator claims to catch in kernels of sm_90's instructions other than wgmma, and
// sees it caught; the same kernels without the bug run clean. Each fault's message leads to a line of this file.
#include "cuda/ptx/cluster.h"
#include "cuda/ptx/elect.h"
#include "cuda/ptx/fence.h"
#include "cuda/ptx/griddepcontrol.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/setmaxnreg.h"
#include "cuda/ptx/sync.h"
#include "cuda/tensor_map.h"
#include "planted.h"

using namespace vggfast;
using namespace vggfast::test;

namespace {

constexpr size_t shared_bytes = 8192;
constexpr cuda::Grid one_warp{.blocks = 1, .threads = 32, .shared_bytes = shared_bytes};
constexpr cuda::Grid two_warps{.blocks = 1, .threads = 64, .shared_bytes = shared_bytes};
constexpr cuda::Grid pair{.blocks = 2, .threads = 32, .shared_bytes = shared_bytes, .cluster = 2};
const char* const here = "csrc/tests/sim/test_sim_hopper.cpp:";

// Boxes of these tests: 32 rows of 32 floats in rows of 64.
constexpr uint32_t box_floats = 32, box_rows = 32, box_bytes = box_rows * box_floats * 4;

__device__ uint64_t* barriers() { return reinterpret_cast<uint64_t*>(ptx::shared_memory()); }
__device__ float* stage() { return reinterpret_cast<float*>(ptx::shared_memory() + 1024); }

cuda::TiledMap matrix(const float* data) {
  return {data, cuda::MapElement::f32, 2, {64, 32}, {256}, {box_floats, box_rows}, cuda::MapSwizzle::none};
}

enum class Bug {
  none,
  no_wait,
  other_parity,
  no_expect,
  too_few_bytes,
  too_many_arrivals,
  no_init,
  init_not_ordered,
  init_not_fenced,
  plain_store,
  misaligned,
  early_refill,
  no_flip,
  never_waited,
  no_fence,
  early_reuse,
  no_wait_at_end,
  no_cluster_sync,
  early_exit,
};

/// A box lands and every thread reads it.
template <Bug B>
__global__ void load_box(const __grid_constant__ TensorMap map, float* out) {
  uint64_t* full = barriers();
  const unsigned i = threadIdx.x;
  if (i == 0 && B != Bug::no_init) {
    ptx::mbarrier_init(full, 1);
    if (B != Bug::init_not_fenced) ptx::fence_mbarrier_init();
  }
  if (B != Bug::init_not_ordered) ptx::sync_threads();
  // Late enough that the init has most likely been done: no order, all the same.
  for (int turn = 0; B == Bug::init_not_ordered && i >= 32 && turn < 8; ++turn) ptx::sync_warp();
  if (i == 32) {
    ptx::cp_async_bulk_tensor_load(stage() + (B == Bug::misaligned ? 8 : 0), map, full, {32, 0});
    if (B != Bug::no_expect) ptx::mbarrier_arrive_expect_tx(full, B == Bug::too_few_bytes ? box_bytes / 2 : box_bytes);
    if (B == Bug::too_many_arrivals) ptx::mbarrier_arrive(full);
  }
  ptx::sync_threads();
  if (B == Bug::no_expect && i == 32) ptx::mbarrier_arrive(full);
  if (B == Bug::plain_store && i == 5) barriers()[0] = 0;
  if (B == Bug::never_waited) return;
  if (B != Bug::no_wait) ptx::mbarrier_try_wait_parity(full, B == Bug::other_parity);
  out[i] = stage()[i];
}

/// Two boxes through one stage: the second may come once all have read the first.
template <Bug B>
__global__ void refill(const __grid_constant__ TensorMap map, float* out) {
  uint64_t *full = barriers(), *empty = barriers() + 1;
  const unsigned i = threadIdx.x;
  if (i == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::mbarrier_init(empty, 32);
    ptx::fence_mbarrier_init();
  }
  ptx::sync_threads();
  for (uint32_t step = 0; step < 4; ++step) {
    if (i == 32) {
      // It is not enough that the box before has landed.
      ptx::mbarrier_try_wait_parity(B == Bug::early_refill ? full : empty, step % 2 ^ 1);
      ptx::mbarrier_arrive_expect_tx(full, box_bytes);
      ptx::cp_async_bulk_tensor_load(stage(), map, full, {int32_t(step % 2 * 32), 0});
    } else if (i < 32) {
      ptx::mbarrier_try_wait_parity(full, B == Bug::no_flip ? 0 : step % 2);
      out[step * 32 + i] = stage()[i];
      ptx::mbarrier_arrive(empty);
    }
  }
}

/// Every thread writes a part of a box, one stores it; and again.
template <Bug B>
__global__ void store_box(const __grid_constant__ TensorMap map) {
  const unsigned i = threadIdx.x;
  for (unsigned half = 0; half < 2; ++half) {
    for (unsigned at = i; at < box_bytes / 4; at += 64) stage()[at] = static_cast<float>(1000 * half + at);
    if (B != Bug::no_fence) ptx::fence_proxy_async();
    ptx::sync_threads();
    if (i == 0) {
      ptx::cp_async_bulk_tensor_store(map, stage(), {int32_t(half * 32), 0});
      ptx::cp_async_bulk_commit_group();
      if (B != Bug::early_reuse && !(B == Bug::no_wait_at_end && half == 1)) ptx::cp_async_bulk_wait_group_read<0>();
    }
    ptx::sync_threads();
  }
}

__global__ void add_box(const __grid_constant__ TensorMap map) {
  for (unsigned at = threadIdx.x; at < box_bytes / 4; at += 32) stage()[at] = 1;
  ptx::fence_proxy_async();
  ptx::sync_warp();
  if (ptx::elect()) {
    ptx::cp_reduce_async_bulk_tensor_add(map, stage(), {0, 0});
    ptx::cp_async_bulk_commit_group();
    ptx::cp_async_bulk_wait_group<0>();
  }
}

/// Each block of a cluster writes into its peer.
template <Bug B>
__global__ void to_peer(float* out) {
  const uint32_t rank = ptx::cluster_ctarank();
  const unsigned i = threadIdx.x;
  if (B != Bug::no_cluster_sync) {
    ptx::barrier_cluster_arrive();
    ptx::barrier_cluster_wait();
  }
  ptx::mapa(stage(), rank ^ 1)[i] = static_cast<float>(100 * rank + i);
  if (B == Bug::early_exit) return;
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
  out[rank * 32 + i] = stage()[i];
}

/// Both blocks take the first one's box; block 0 refills it once both have read.
template <Bug B>
__global__ void multicast(const __grid_constant__ TensorMap map, float* out) {
  uint64_t *full = barriers(), *empty = barriers() + 1;
  const uint32_t rank = ptx::cluster_ctarank();
  const unsigned i = threadIdx.x;
  if (i == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::mbarrier_init(empty, 2);
    ptx::fence_mbarrier_init();
  }
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
  for (uint32_t step = 0; step < 2; ++step) {
    if (i == 0) {
      ptx::mbarrier_arrive_expect_tx(full, box_bytes);
      if (rank == 0) {
        if (B != Bug::early_refill) ptx::mbarrier_try_wait_parity_acquire_cluster(empty, step % 2 ^ 1);
        ptx::cp_async_bulk_tensor_load_multicast(stage(), map, full, {int32_t(step * 32), 0}, 3);
      }
    }
    ptx::mbarrier_try_wait_parity(full, step);
    out[(rank * 2 + step) * 32 + i] = stage()[i];
    ptx::sync_warp();
    if (i == 0) ptx::mbarrier_arrive_release_cluster(empty, 0);
  }
  if (B == Bug::early_exit) return;
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
}

template <unsigned Less, unsigned More>
__global__ void registers() {
  if (threadIdx.x < 128) {
    ptx::setmaxnreg_dec<Less>();
  } else {
    ptx::setmaxnreg_inc<More>();
  }
}

__global__ void elected(unsigned* out) {
  ptx::griddepcontrol_wait();
  if (ptx::elect()) out[0] = 1;
  ptx::griddepcontrol_launch_dependents();
}

__global__ void im2col_from(const __grid_constant__ TensorMap map, int32_t x) {
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(barriers(), 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect_tx(barriers(), 512);
    ptx::cp_async_bulk_tensor_im2col(stage(), map, barriers(), {0, x, 0, 0}, {0, 0});
    ptx::mbarrier_try_wait_parity(barriers(), 0);
  }
}

/// As blocks that stay do, it counts on every cluster to run from the start.
__global__ void take_turns(unsigned* out) {
  for (unsigned i = blockIdx.x; threadIdx.x == 0 && i < 264; i += gridDim.x) out[i] = gridDim.x;
}

std::vector<float> counted(size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i);
  return values;
}

void test_loads() {
  std::vector<float> in = counted(64 * 32), out(128);
  const sim::Global source(in.data(), in.size() * 4), target(out.data(), 512);
  const TensorMap map = cuda::tensor_map(matrix(in.data()));
  float* o = out.data();
  CHECK_CLEAN((load_box<Bug::none>, two_warps, map, o));
  CHECK_EQUAL(o[33], 64.0f + 33);
  CHECK_FAULT((load_box<Bug::no_wait>, two_warps, map, o), "has yet to land", here);
  CHECK_FAULT((load_box<Bug::other_parity>, two_warps, map, o), "has yet to land", here);
  CHECK_FAULT((load_box<Bug::no_expect>, two_warps, map, o), "nobody can go on",
              "phase 0 (parity 0), pending arrivals 0 of 1, transactions -4096 bytes", here);
  CHECK_FAULT((load_box<Bug::too_few_bytes>, two_warps, map, o), "pending arrivals 0 of 1, transactions -2048 bytes",
              here);
  CHECK_FAULT((load_box<Bug::too_many_arrivals>, two_warps, map, o), "too many arrivals", "transactions 4096 bytes",
              here);
  CHECK_FAULT((load_box<Bug::no_init>, two_warps, map, o), "no mbarrier is initialised there", here);
  CHECK_FAULT((load_box<Bug::init_not_ordered>, two_warps, map, o), "is not ordered before", here);
  CHECK_FAULT((load_box<Bug::init_not_fenced>, two_warps, map, o), "did neither fence.mbarrier_init nor", here);
  CHECK_FAULT((load_box<Bug::plain_store>, two_warps, map, o), "which is an mbarrier's", here);
  CHECK_FAULT((load_box<Bug::misaligned>, two_warps, map, o), "must begin at a multiple of 128 bytes of shared memory",
              here);
  CHECK_FAULT((load_box<Bug::never_waited>, two_warps, map, o), "the block ends with", here);
  CHECK_CLEAN((refill<Bug::none>, two_warps, map, o));
  CHECK_EQUAL(o[32 * 3 + 2], 34.0f);
  CHECK_FAULT((refill<Bug::no_flip>, two_warps, map, o), "of shared memory", here);
  CHECK_FAULT((refill<Bug::early_refill>, two_warps, map, o), "overwrites byte", "has read with nothing to order",
              here);
}

void test_stores() {
  std::vector<float> out(64 * 32);
  const sim::Global target(out.data(), out.size() * 4);
  const TensorMap map = cuda::tensor_map(matrix(out.data()));
  CHECK_CLEAN((store_box<Bug::none>, two_warps, map));
  CHECK_EQUAL(out[64 + 32 + 5], 1000.0f + 37);
  CHECK_FAULT((store_box<Bug::no_fence>, two_warps, map), "generic write is not yet fenced", here);
  CHECK_FAULT((store_box<Bug::early_reuse>, two_warps, map), "overwrites byte", "a TMA store in flight", "still reads",
              here);
  CHECK_FAULT((store_box<Bug::no_wait_at_end>, two_warps, map), "may still read shared memory", here);
  cuda::TiledMap rounded = matrix(out.data());
  rounded.element = cuda::MapElement::tf32;
  CHECK_FAULT((store_box<Bug::none>, two_warps, cuda::tensor_map(rounded)), "a TMA store by a map of TF32", here);
  std::vector<float> sums(64 * 32);
  const sim::Global summed(sums.data(), sums.size() * 4);
  const cuda::Grid eight{.blocks = 8, .threads = 32, .shared_bytes = shared_bytes};
  CHECK_CLEAN((add_box, eight, cuda::tensor_map(matrix(sums.data()))));
  CHECK_EQUAL(sums[64 * 31 + 31], 8.0f * seeds);
  CHECK_EQUAL(sums[64 * 31 + 32], 0.0f);
}

void test_clusters() {
  std::vector<float> in = counted(64 * 32), out(128);
  const sim::Global source(in.data(), in.size() * 4), target(out.data(), 512);
  const TensorMap map = cuda::tensor_map(matrix(in.data()));
  CHECK_CLEAN((to_peer<Bug::none>, pair, out.data()));
  CHECK_EQUAL(out[32 + 7], 7.0f);
  CHECK_FAULT((to_peer<Bug::no_cluster_sync>, pair, out.data()), "a cluster barrier comes first", here);
  CHECK_FAULT((to_peer<Bug::early_exit>, pair, out.data()), "the block ends while", here);
  CHECK_CLEAN((multicast<Bug::none>, pair, map, out.data()));
  for (size_t i = 0; i < 128; ++i) CHECK_EQUAL(out[i], static_cast<float>(i % 64), "multicast, ", i);
  CHECK_FAULT((multicast<Bug::early_refill>, pair, map, out.data()), "with nothing to order the two", here);
  CHECK_FAULT((multicast<Bug::early_exit>, pair, map, out.data()), "the block ends while", here);
}

void test_residency() {
  std::vector<unsigned> out(264);
  const sim::Global target(out.data(), out.size() * 4);
  const auto grid = [](unsigned clusters, unsigned blocks, bool persistent = true) {
    return cuda::Grid{.blocks = clusters * blocks, .threads = 32, .cluster = blocks, .persistent = persistent};
  };
  for (const auto& [blocks, most] : {std::pair(1u, 132u), {2u, 66u}, {4u, 32u}, {8u, 15u}}) {
    CHECK_CLEAN((take_turns, grid(most, blocks), out.data()));
    const std::string words = "a persistent grid must have at most " + std::to_string(most) + " clusters of " +
                              std::to_string(blocks) + " blocks, which run at once, got " + std::to_string(most + 1);
    CHECK_FAULT((take_turns, grid(most + 1, blocks), out.data()), words.c_str());
    CHECK_CLEAN((take_turns, grid(most + 1, blocks, false), out.data()));
  }
  const sim::Settings before = sim::settings();
  sim::settings().clusters = {{8, 16}};
  CHECK_CLEAN((take_turns, grid(16, 8), out.data()));
  CHECK_CLEAN((take_turns, grid(33, 4), out.data()));
  CHECK_FAULT((take_turns, grid(34, 4), out.data()), "at most 33 clusters of 4 blocks");
  sim::settings().num_sms = 23;
  CHECK_FAULT((take_turns, grid(3, 8), out.data()), "at most 2 clusters of 8 blocks");
  sim::settings() = before;
}

void test_registers() {
  const cuda::Grid three{.blocks = 1, .threads = 384};
  unsigned out = 0;
  const sim::Global target(&out, 4);
  CHECK_CLEAN((registers<24, 240>, three));
  CHECK_FAULT((registers<40, 240>, three), "nobody can go on", "registers that other warps have yet to give up", here);
  CHECK_FAULT((registers<36, 240>, three), "a multiple of 8 from 24 to 256", here);
  CHECK_FAULT((registers<176, 240>, three), "from 168 to 176 registers", here);
  CHECK_CLEAN((elected, one_warp, &out));
}

void test_illegal_maps() {
  std::vector<float> in(64 * 32);
  const auto with = [&](auto change) {
    cuda::TiledMap map = matrix(in.data());
    change(map);
    return map;
  };
  CHECK_ERROR(cuda::tensor_map(with([](auto& m) { m.box[1] = 257; })), "box[1] must be 1 to 256, got 257");
  CHECK_ERROR(cuda::tensor_map(with([](auto& m) { m.box[0] = 3; })), "box[0] must be a multiple of 16 bytes, got 12");
  CHECK_ERROR(cuda::tensor_map(with([](auto& m) { m.strides[0] = 20; })),
              "strides[0] must be a multiple of 16 bytes below 2^40, got 20");
  CHECK_ERROR(cuda::tensor_map(with([](auto& m) { m.dims[1] = 0; })), "dims[1] must be 1 to 2^32, got 0");
  CHECK_ERROR(cuda::tensor_map(with([](auto& m) { m.rank = 6; })), "rank must be 1 to 5, got 6");
  CHECK_ERROR(cuda::tensor_map(with([](auto& m) { m.data = static_cast<const float*>(m.data) + 1; })),
              "data must begin at a multiple of 16 bytes, got address");
  CHECK_ERROR(cuda::tensor_map(with([](auto& m) { m.swizzle = cuda::MapSwizzle::b64; })),
              "box[0] must be at most the swizzle's 64 bytes, got 128");
  cuda::Im2colMap column{in.data(), cuda::MapElement::f32, {8, 4, 4, 1}, {32, 128, 512}, {-1, -1}, {-1, -1}, 8,
                         16,        cuda::MapSwizzle::none};
  const sim::Global source(in.data(), in.size() * 4);
  const TensorMap map = cuda::tensor_map(column);
  CHECK_CLEAN((im2col_from, one_warp, map, -1));
  CHECK_FAULT((im2col_from, one_warp, map, 3), "starts at pixel (3, 0), outside the box (-1, -1) to (2, 2)", here);
  CHECK_FAULT((im2col_from, one_warp, cuda::tensor_map(matrix(in.data())), 0), "a tiled tensor map for the other kind",
              here);
  column.pixels = 1025;
  CHECK_ERROR(cuda::tensor_map(column), "pixels must be 1 to 1024, got 1025");
  column.pixels = 16;
  column.upper[0] = -5;
  CHECK_ERROR(cuda::tensor_map(column), "a box of at least one pixel");
}

}  // namespace

int main() {
  test_loads();
  test_stores();
  test_clusters();
  test_residency();
  test_registers();
  test_illegal_maps();
  return result();
}
