// Plants what blocks of a cluster get wrong when they tell each other something at a block's scope, or at none, and
// sees it caught: rings, exchanges, and the barriers at a kernel's start and end. With the scope that each needs they
// run clean.
#include "cuda/ptx/cluster.h"
#include "cuda/ptx/fence.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/sync.h"
#include "cuda/tensor_map.h"
#include "planted.h"

using namespace vggfast;
using namespace vggfast::test;

namespace {

constexpr cuda::Grid pair{.blocks = 2, .threads = 32, .shared_bytes = 8192, .cluster = 2};
constexpr uint32_t box_floats = 32, box_rows = 32, box_bytes = box_rows * box_floats * 4;
const char* const here = "csrc/tests/sim/test_sim_scopes.cpp:";
const char* const no_order = "with nothing at the cluster's scope to order the two";

__device__ uint64_t* barriers() { return reinterpret_cast<uint64_t*>(ptx::shared_memory()); }
__device__ float* stage() { return reinterpret_cast<float*>(ptx::shared_memory() + 1024); }

enum class Bug { none, plain_arrive, plain_wait, relaxed, no_init_fence, early_end };

__device__ void begin_together(bool fenced = true) {
  if (threadIdx.x == 0 && fenced) ptx::fence_mbarrier_init();
  ptx::barrier_cluster_arrive_relaxed();
  ptx::barrier_cluster_wait();
}

template <Bug B>
__device__ void arrive(uint64_t* barrier, uint32_t rank) {
  B == Bug::plain_arrive ? ptx::mbarrier_arrive_cluster(barrier, rank)
                         : ptx::mbarrier_arrive_release_cluster(barrier, rank);
}

template <Bug B>
__device__ void wait(const uint64_t* barrier, uint32_t parity) {
  B == Bug::plain_wait ? ptx::mbarrier_try_wait_parity(barrier, parity)
                       : ptx::mbarrier_try_wait_parity_acquire_cluster(barrier, parity);
}

/// Each block writes numbers, and reads the other's once `full` says that both have; twice, with `empty` between.
template <Bug Full, Bug Empty>
__global__ void exchange(float* out) {
  uint64_t *full = barriers(), *empty = barriers() + 1;
  const uint32_t rank = ptx::cluster_ctarank();
  const unsigned i = threadIdx.x;
  if (i == 0) {
    ptx::mbarrier_init(full, 2);
    ptx::mbarrier_init(empty, 2);
  }
  begin_together();
  for (uint32_t turn = 0; turn < 2; ++turn) {
    wait<Empty>(empty, turn ^ 1);
    stage()[i] = static_cast<float>(1000 * turn + 100 * rank + i);
    ptx::sync_warp();
    if (i < 2) arrive<Full>(full, i);
    wait<Full>(full, turn);
    out[(2 * turn + rank) * 32 + i] = ptx::mapa(stage(), rank ^ 1)[i];
    ptx::sync_warp();
    if (i < 2) arrive<Empty>(empty, i);
  }
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
}

/// A ring of one stage, which block 0 fills for both. Its readers load it: what wgmma reads, and has been waited for,
/// would need no more than a block's scope.
template <Bug B>
__global__ void ring(const __grid_constant__ TensorMap map, float* out) {
  uint64_t *full = barriers(), *empty = barriers() + 1;
  const uint32_t rank = ptx::cluster_ctarank();
  const unsigned i = threadIdx.x;
  if (i == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::mbarrier_init(empty, 2);
  }
  begin_together(B != Bug::no_init_fence);
  for (uint32_t step = 0; step < 2; ++step) {
    if (i == 0) {
      ptx::mbarrier_arrive_expect_tx(full, box_bytes);
      if (rank == 0) {
        wait<B>(empty, step % 2 ^ 1);
        ptx::cp_async_bulk_tensor_load_multicast(stage(), map, full, {int32_t(step * 32), 0}, 3);
      }
    }
    ptx::mbarrier_try_wait_parity(full, step);
    out[(rank * 2 + step) * 32 + i] = stage()[i];
    ptx::sync_warp();
    if (i == 0) arrive<B>(empty, 0);
  }
  if (rank == 0 && i == 0 && B != Bug::early_end) wait<B>(empty, 1);  // the last arrivals come to this block
}

/// Each block of a cluster writes into its peer, or reads from it, and comes to its end.
template <Bug B>
__global__ void write_to_peer(float* out) {
  const uint32_t rank = ptx::cluster_ctarank();
  begin_together();
  ptx::mapa(stage(), rank ^ 1)[threadIdx.x] = static_cast<float>(rank);
  B == Bug::relaxed ? ptx::barrier_cluster_arrive_relaxed() : ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
  out[rank * 32 + threadIdx.x] = stage()[threadIdx.x];
}

template <Bug B>
__global__ void read_from_peer(float* out) {
  const uint32_t rank = ptx::cluster_ctarank();
  stage()[threadIdx.x] = static_cast<float>(rank);
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
  out[rank * 32 + threadIdx.x] = ptx::mapa(stage(), rank ^ 1)[threadIdx.x];
  B == Bug::relaxed ? ptx::barrier_cluster_arrive_relaxed() : ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
}

void test_exchanges() {
  std::vector<float> out(128);
  const sim::Global target(out.data(), 512);
  float* o = out.data();
  CHECK_CLEAN((exchange<Bug::none, Bug::none>, pair, o));
  for (size_t i = 0; i < 128; ++i) {
    const size_t turn = i / 64, rank = i / 32 % 2;
    CHECK_EQUAL(out[i], static_cast<float>(1000 * turn + 100 * (rank ^ 1) + i % 32), "exchange, ", i);
  }
  CHECK_FAULT((exchange<Bug::plain_arrive, Bug::none>, pair, o), "reads byte", no_order, here);
  CHECK_FAULT((exchange<Bug::plain_wait, Bug::none>, pair, o), "reads byte", no_order, here);
  CHECK_FAULT((exchange<Bug::none, Bug::plain_arrive>, pair, o), "overwrites byte", no_order, here);
  CHECK_FAULT((exchange<Bug::none, Bug::plain_wait>, pair, o), "overwrites byte", no_order, here);
}

void test_rings() {
  std::vector<float> in(64 * 32), out(128);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  const sim::Global source(in.data(), in.size() * 4), target(out.data(), 512);
  const TensorMap map = cuda::tensor_map(cuda::TiledMap{
      in.data(), cuda::MapElement::f32, 2, {64, 32}, {256}, {box_floats, box_rows}, cuda::MapSwizzle::none});
  float* o = out.data();
  CHECK_CLEAN((ring<Bug::none>, pair, map, o));
  for (size_t i = 0; i < 128; ++i) CHECK_EQUAL(out[i], static_cast<float>(i % 64), "ring, ", i);
  CHECK_FAULT((ring<Bug::plain_arrive>, pair, map, o), "overwrites byte", no_order, here);
  CHECK_FAULT((ring<Bug::plain_wait>, pair, map, o), "overwrites byte", no_order, here);
  CHECK_FAULT((ring<Bug::early_end>, pair, map, o), "the block ends while", "may still access its shared memory", here);
  CHECK_FAULT((ring<Bug::no_init_fence>, pair, map, o), "an mbarrier whose init by", "is not ordered before", here);
}

void test_ends() {
  std::vector<float> out(64);
  const sim::Global target(out.data(), 256);
  CHECK_CLEAN((write_to_peer<Bug::none>, pair, out.data()));
  CHECK_EQUAL(out[5], 1.0f);
  CHECK_FAULT((write_to_peer<Bug::relaxed>, pair, out.data()), "reads byte", no_order, here);
  CHECK_CLEAN((read_from_peer<Bug::none>, pair, out.data()));
  CHECK_EQUAL(out[5], 1.0f);
  CHECK_FAULT((read_from_peer<Bug::relaxed>, pair, out.data()), "the block ends while", here);
}

}  // namespace

int main() {
  test_exchanges();
  test_rings();
  test_ends();
  return result();
}
