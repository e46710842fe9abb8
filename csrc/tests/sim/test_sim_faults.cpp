// Plants each kind of bug that the simulator claims to catch in kernels of sm_80's instructions, and sees it caught;
// and the same kernels without the bug run clean. Each fault's message leads to a line of this file.
#include <bit>

#include "cuda/ptx/atomics.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/mma.h"
#include "cuda/ptx/warp.h"
#include "planted.h"

using namespace vggfast;
using namespace vggfast::test;

namespace {

constexpr cuda::Grid one_warp{.blocks = 1, .threads = 32, .shared_bytes = 4096};
constexpr cuda::Grid four_warps{.blocks = 1, .threads = 128, .shared_bytes = 4096};
const char* const here = "csrc/tests/sim/test_sim_faults.cpp:";

float* shared_floats() { return reinterpret_cast<float*>(ptx::shared_memory()); }

/// Each thread writes a value and takes another warp's.
template <bool Barrier>
__global__ void exchange(float* out) {
  float* shared = shared_floats();
  const unsigned i = threadIdx.x;
  shared[i] = static_cast<float>(i);
  if (Barrier) ptx::sync_threads();
  out[i] = shared[(i + 64) % 128];
}

/// One half reads what the other half then overwrites.
template <bool Barrier>
__global__ void overwrite(float* out) {
  float* shared = shared_floats();
  const unsigned i = threadIdx.x;
  shared[i] = 1;
  ptx::sync_threads();
  if (i < 64) out[i] = shared[i + 64];
  if (Barrier) ptx::sync_threads();
  if (i >= 64) shared[i] = 2;
}

template <bool Sync>
__global__ void within_a_warp(float* out) {
  float* shared = shared_floats();
  const unsigned i = threadIdx.x;
  shared[i] = static_cast<float>(i);
  if (Sync) ptx::sync_warp();
  out[i] = shared[31 - i];
}

template <bool Wait, bool Barrier>
__global__ void copy_in(const float* in, float* out) {
  float* shared = shared_floats();
  const unsigned i = threadIdx.x;
  ptx::cp_async_ca_16(shared + 4 * i, in + 4 * i, true);
  ptx::cp_async_commit_group();
  if (Wait) ptx::cp_async_wait_group<0>();
  if (Barrier) ptx::sync_threads();
  for (int j = 0; j < 4; ++j) out[4 * i + j] = shared[4 * ((i + 32) % 128) + j];
}

__global__ void refill_too_early(const float* in, float* out) {
  float* shared = shared_floats();
  const unsigned i = threadIdx.x;
  for (int step = 0; step < 2; ++step) {
    ptx::cp_async_ca_16(shared + 4 * i, in + 4 * i, true);
    ptx::cp_async_commit_group();
    ptx::cp_async_wait_group<0>();
    ptx::sync_threads();
    out[i] = shared[4 * ((i + 32) % 128)];  // and no barrier before the next copy
  }
}

__global__ void misaligned_copy(const float* in) {
  ptx::cp_async_ca_16(shared_floats() + 4 * threadIdx.x + 1, in + 4 * threadIdx.x, true);
}

__global__ void never_written(float* out) { out[threadIdx.x] = shared_floats()[threadIdx.x]; }
__global__ void beyond_shared() { shared_floats()[1024 - 31 + threadIdx.x] = 0; }
__global__ void beyond_a_tensor(float* out) { out[threadIdx.x + 1] = 0; }
__global__ void read_beyond(const float* in, float* out) { out[threadIdx.x] = in[threadIdx.x * 2]; }
__global__ void blocks_write_the_same(float* out) { out[threadIdx.x] = static_cast<float>(blockIdx.x); }
__global__ void blocks_add_to_the_same(unsigned* out) { ptx::atomic_add(out, 1u); }
__global__ void block_reads_another(float* out) {
  if (blockIdx.x == 0) out[threadIdx.x] = 1;
  if (blockIdx.x == 1) out[32 + threadIdx.x] = out[threadIdx.x];
}

__global__ void divergent_barrier() {
  if (threadIdx.x % 32 < 16) {
    ptx::sync_threads();
  } else {
    ptx::sync_warp(0xffff0000);
    ptx::sync_threads();
  }
}
__global__ void barrier_that_some_skip() {
  if (threadIdx.x >= 32) ptx::sync_threads();
}
__global__ void unequal_barriers() { ptx::barrier_sync(1, threadIdx.x < 64 ? 64 : 128); }
__global__ void divergent_warp(uint32_t* out) {
  out[threadIdx.x] = threadIdx.x < 7 ? ptx::ballot(true) : ptx::shfl_xor(threadIdx.x, 1);
}

/// The producer's half signals, the consumer's half waits.
template <bool Wait>
__global__ void producer_and_consumer(float* out) {
  constexpr unsigned full = 1;
  float* shared = shared_floats();
  const unsigned i = threadIdx.x;
  if (i < 64) {
    shared[i] = static_cast<float>(i);
    ptx::barrier_arrive(full, 128);
  } else {
    if (Wait) ptx::barrier_sync(full, 128);
    out[i - 64] = shared[127 - i];
  }
}

/// The second half takes two turns, each behind one of the first half, which must not be two ahead.
template <bool Wait>
__global__ void turns() {
  constexpr unsigned turn = 1, taken = 2;
  for (int i = 0; i < 2; ++i) {
    if (threadIdx.x >= 64) {
      ptx::barrier_sync(turn, 128);
      ptx::barrier_arrive(taken, 128);
    } else {
      ptx::barrier_arrive(turn, 128);
      if (Wait) ptx::barrier_sync(taken, 128);
    }
  }
}

void test_races() {
  std::vector<float> out(128);
  const sim::Global memory(out.data(), 512);
  CHECK_CLEAN((exchange<true>, four_warps, out.data()));
  CHECK_EQUAL(out[3], 67.0f);
  CHECK_FAULT((exchange<false>, four_warps, out.data()), "reads byte", "of shared memory", here);
  CHECK_CLEAN((overwrite<true>, four_warps, out.data()));
  CHECK_FAULT((overwrite<false>, four_warps, out.data()), "overwrites byte", "has read with nothing to order", here);
  CHECK_CLEAN((within_a_warp<true>, one_warp, out.data()));
  CHECK_FAULT((within_a_warp<false>, one_warp, out.data()), "reads byte", here);
  CHECK_CLEAN((producer_and_consumer<true>, four_warps, out.data()));
  CHECK_FAULT((producer_and_consumer<false>, four_warps, out.data()), "reads byte", here);
}

void test_copies() {
  std::vector<float> in(512), out(512);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  const sim::Global source(in.data(), 2048), target(out.data(), 2048);
  CHECK_CLEAN((copy_in<true, true>, four_warps, in.data(), out.data()));
  CHECK_EQUAL(out[4], 132.0f);
  CHECK_FAULT((copy_in<false, true>, four_warps, in.data(), out.data()), "asynchronous copy has yet to land", here);
  CHECK_FAULT((copy_in<true, false>, four_warps, in.data(), out.data()), "of shared memory", here);
  CHECK_FAULT((refill_too_early, four_warps, in.data(), out.data()), "overwrites byte", here);
  CHECK_FAULT((misaligned_copy, one_warp, in.data()), "cp.async must copy from and to multiples of 16 bytes", here);
}

void test_addresses() {
  std::vector<float> in(32), out(64);
  const sim::Global source(in.data(), 128), target(out.data(), 128);
  CHECK_FAULT((never_written, one_warp, out.data()), "which nobody has written", here);
  CHECK_FAULT((beyond_shared, one_warp), "bytes 4096 to 4100 of shared memory: the launch asked for 4096", here);
  CHECK_FAULT((beyond_a_tensor, one_warp, out.data()), "writes 4 bytes of global memory, 128 bytes from the start",
              here);
  CHECK_FAULT((read_beyond, one_warp, in.data(), out.data()), "reads 4 bytes of global memory", here);
}

void test_blocks() {
  std::vector<float> out(64);
  unsigned count = 0;
  const sim::Global target(out.data(), 256), counter(&count, 4);
  const cuda::Grid two{.blocks = 2, .threads = 32};
  CHECK_FAULT((blocks_write_the_same, two, out.data()), "another thread of this launch has written", here);
  CHECK_FAULT((block_reads_another, two, out.data()), "another thread of this launch has written", here);
  CHECK_CLEAN((blocks_add_to_the_same, two, &count));
  CHECK_EQUAL(count, 64u * seeds);
}

void test_meeting_points() {
  std::vector<uint32_t> out(32);
  const sim::Global target(out.data(), 128);
  CHECK_FAULT((divergent_barrier, one_warp), "divergent barrier", here);
  CHECK_FAULT((barrier_that_some_skip, four_warps), "nobody can go on", "96 threads", "__syncthreads", here);
  CHECK_FAULT((unequal_barriers, four_warps), "comes to barrier 1 of", here);
  CHECK_CLEAN((turns<true>, four_warps));
  CHECK_FAULT((turns<false>, four_warps), "comes to barrier 1 a second time", here);
  CHECK_FAULT((divergent_warp, one_warp, out.data()), "divergent warp", here);
}

// ---- what the matrix instructions compute ---------------------------------------------------------------------------

/// c (16 x 8) = a (16 x 16) b (8 x 16, its columns in rows), whole numbers in bf16.
__global__ void product(const uint16_t* a, const uint16_t* b, float* c) {
  uint16_t* shared = reinterpret_cast<uint16_t*>(ptx::shared_memory());
  const unsigned lane = threadIdx.x, group = lane / 4, within = lane % 4;
  for (unsigned i = lane; i < 256; i += 32) shared[i] = a[i];
  for (unsigned i = lane; i < 128; i += 32) shared[256 + i] = b[i];
  ptx::sync_warp();
  uint32_t fa[4], fb[4];
  ptx::ldmatrix_x4(fa, shared + lane % 16 * 16 + lane / 16 * 8);
  ptx::ldmatrix_x4(fb, shared + 256 + lane % 8 * 16 + lane / 8 % 2 * 8);
  float d[4] = {};
  ptx::mma_bf16(d, fa, {fb[0], fb[1]});
  for (unsigned i = 0; i < 4; ++i) c[(group + i / 2 * 8) * 8 + within * 2 + i % 2] = d[i];
}

__global__ void transposed(const uint16_t* in, uint32_t* out) {
  uint16_t* shared = reinterpret_cast<uint16_t*>(ptx::shared_memory());
  for (unsigned i = threadIdx.x; i < 256; i += 32) shared[i] = in[i];
  ptx::sync_warp();
  uint32_t fragment[4];
  ptx::ldmatrix_x4_trans(fragment, shared + threadIdx.x * 8);
  for (unsigned i = 0; i < 4; ++i) out[i * 32 + threadIdx.x] = fragment[i];
}

void test_matrices() {
  std::vector<uint16_t> a(256), b(128);
  std::vector<float> c(128);
  const auto value = [](size_t i, size_t j, size_t seed) { return static_cast<float>((i * 5 + j * 3 + seed) % 7) - 3; };
  const auto narrow = [](float v) { return static_cast<uint16_t>(std::bit_cast<uint32_t>(v) >> 16); };
  for (size_t i = 0; i < 256; ++i) a[i] = narrow(value(i / 16, i % 16, 1));
  for (size_t i = 0; i < 128; ++i) b[i] = narrow(value(i / 16, i % 16, 2));
  const sim::Global ga(a.data(), 512), gb(b.data(), 256), gc(c.data(), 512);
  CHECK_CLEAN((product, one_warp, a.data(), b.data(), c.data()));
  for (size_t i = 0; i < 16; ++i) {
    for (size_t j = 0; j < 8; ++j) {
      float expected = 0;
      for (size_t k = 0; k < 16; ++k) expected += value(i, k, 1) * value(j, k, 2);
      CHECK_EQUAL(c[i * 8 + j], expected, "row ", i, ", column ", j);
    }
  }
  std::vector<uint32_t> t(128);
  const sim::Global gt(t.data(), 512);
  for (size_t i = 0; i < 256; ++i) a[i] = static_cast<uint16_t>(i);
  CHECK_CLEAN((transposed, one_warp, a.data(), t.data()));
  for (uint32_t matrix = 0; matrix < 4; ++matrix) {
    for (uint32_t lane = 0; lane < 32; ++lane) {
      const uint32_t first = matrix * 64 + lane % 4 * 16 + lane / 4;
      CHECK_EQUAL(t[matrix * 32 + lane], first | (first + 8) << 16, "matrix ", matrix, ", lane ", lane);
    }
  }
}

}  // namespace

int main() {
  test_races();
  test_copies();
  test_addresses();
  test_blocks();
  test_meeting_points();
  test_matrices();
  return result();
}
