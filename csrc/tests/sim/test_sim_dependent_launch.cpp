// Plants what a kernel can do wrong that may start before the one before it has ended (csrc/sim/dependent_launch.cpp),
// behind a kernel that does right; and variants that are right.
#include <memory>

#include "cuda/ptx/atomics.h"
#include "cuda/ptx/cluster.h"
#include "cuda/ptx/cp_async.h"
#include "cuda/ptx/fence.h"
#include "cuda/ptx/griddepcontrol.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/sync.h"
#include "cuda/tensor_map.h"
#include "planted.h"

using namespace vggfast;
using namespace vggfast::test;

namespace {

constexpr unsigned count = 128;  // values of a buffer, and threads of a block
constexpr cuda::Grid one_block{.blocks = 1, .threads = count, .shared_bytes = 4096};
constexpr cuda::Grid pair{.blocks = 2, .threads = count, .shared_bytes = 4096, .cluster = 2};
const char* const here = "csrc/tests/sim/test_sim_dependent_launch.cpp:";

struct Buffers {
  const float* weights;  // which no kernel here writes
  const float* x;        // which the kernel before writes
  float* y;              // which nobody uses, or the kernel before reads
};

__global__ void predecessor(const float* from, float* to) {
  ptx::griddepcontrol_wait();
  const float value = from[threadIdx.x];
  ptx::griddepcontrol_launch_dependents();
  to[threadIdx.x] = value + 1;
}

enum class Bug {
  none,
  reads_early,
  writes_early,
  adds_early,
  copies_early,
  launches_early,
  launches_without_wait,
  does_nothing,
};

/// y = x + weights, where each thread waits for itself.
template <Bug B>
__global__ void successor(Buffers b) {
  const unsigned i = threadIdx.x;
  float* const shared = reinterpret_cast<float*>(ptx::shared_memory());
  if (B == Bug::does_nothing) return;
  const float weight = b.weights[i];
  float x = 0;
  if (B == Bug::reads_early) x = b.x[i];
  if (B == Bug::writes_early) b.y[i] = weight;
  if (B == Bug::adds_early) ptx::atomic_add(reinterpret_cast<unsigned*>(b.y), 1);
  if (B == Bug::copies_early && i < count / 4) ptx::cp_async_ca_16(shared + 4 * i, b.x + 4 * i, true);
  if (B == Bug::launches_early || B == Bug::launches_without_wait) ptx::griddepcontrol_launch_dependents();
  if (B == Bug::launches_without_wait) return;
  ptx::griddepcontrol_wait();
  ptx::cp_async_wait_group<0>();
  if (B != Bug::reads_early) x = b.x[i];
  ptx::griddepcontrol_launch_dependents();
  if (B != Bug::adds_early) b.y[i] = x + weight;
}

/// One thread waits for all; without the barrier the others know nothing of it.
template <bool Barrier>
__global__ void one_waits(Buffers b) {
  const unsigned i = threadIdx.x;
  if (i == 0) ptx::griddepcontrol_wait();
  if (Barrier) ptx::sync_threads();
  b.y[i] = b.x[i];
}

/// One block of a cluster waits for both, or each for itself.
template <bool Both>
__global__ void a_cluster_waits(Buffers b) {
  const unsigned rank = ptx::cluster_ctarank();
  if (Both || rank == 0) ptx::griddepcontrol_wait();
  ptx::barrier_cluster_arrive();
  ptx::barrier_cluster_wait();
  if (rank == 1) b.y[threadIdx.x] = b.x[threadIdx.x];
}

/// A box of x by TMA, before or after the wait, and from there to y.
template <bool LoadsEarly, bool StoresEarly>
__global__ void boxes(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap y) {
  char* const box = ptx::shared_memory();
  uint64_t* const full = reinterpret_cast<uint64_t*>(box + 2048);
  if (threadIdx.x > 0) return;
  ptx::mbarrier_init(full, 1);
  ptx::fence_mbarrier_init();
  if (!LoadsEarly && !StoresEarly) ptx::griddepcontrol_wait();
  if (!StoresEarly) {
    ptx::mbarrier_arrive_expect_tx(full, count * 4);
    ptx::cp_async_bulk_tensor_load(box, x, full, {0, 0});
    ptx::mbarrier_try_wait_parity(full, 0);
  } else {
    for (unsigned i = 0; i < count; ++i) reinterpret_cast<float*>(box)[i] = 0;
    ptx::fence_proxy_async();
  }
  ptx::cp_async_bulk_tensor_store(y, box, {0, 0});
  ptx::griddepcontrol_wait();
  ptx::cp_async_bulk_commit_group();
  ptx::cp_async_bulk_wait_group_read<0>();
}

std::vector<float> weights(count, 1), first(count, 2), x(count), y(count);
const Buffers buffers{weights.data(), x.data(), y.data()};

std::unique_ptr<sim::Global> announced(const std::vector<float>& buffer) {
  return std::make_unique<sim::Global>(buffer.data(), count * sizeof(float));
}

/// The faults of a launch right behind predecessor's, which reads `from` and writes `to`, in several random orders.
template <class... Params, class... Args>
std::string faults_behind(const std::vector<float>& from, std::vector<float>& to, void (*kernel)(Params...),
                          const cuda::Grid& grid, const Args&... args) {
  std::string faults;
  for (int seed = 0; seed < seeds; ++seed) {
    sim::settings().seed = static_cast<uint64_t>(seed) * 1000;
    {  // its tensors are announced for its call alone, as those of an op are
      const auto source = announced(from), target = announced(to);
      cuda::launch("predecessor", predecessor, one_block, {}, from.data(), to.data());
    }
    const auto a = announced(weights), b = announced(x), c = announced(y);
    try {
      cuda::launch("planted", kernel, grid, {}, args...);
    } catch (const sim::Fault& fault) {
      faults += std::string(fault.what()) + "\n";
    }
  }
  return faults;
}

#define CHECK_BEHIND(kernel, grid, ...) \
  check_fault(__FILE__, __LINE__, "(" #kernel ",", faults_behind(first, x, kernel, grid, buffers), {__VA_ARGS__})
#define CHECK_CLEAN_BEHIND(...) CHECK_EQUAL(faults_behind(first, x, __VA_ARGS__), std::string(), "a correct kernel")

void test_waits() {
  CHECK_CLEAN_BEHIND(successor<Bug::none>, one_block, buffers);
  CHECK_EQUAL(y[5], 4.0f, "(2 + 1) + 1");
  CHECK_BEHIND(successor<Bug::reads_early>, one_block,
               "of a tensor, which kernel predecessor has written, before "
               "griddepcontrol.wait",
               here);
  CHECK_BEHIND(successor<Bug::copies_early>, one_block, "which kernel predecessor has written", here);
  CHECK_BEHIND(successor<Bug::writes_early>, one_block, "writes 4 bytes of global memory before griddepcontrol.wait",
               here);
  CHECK_BEHIND(successor<Bug::adds_early>, one_block, "updates 4 bytes of global memory before griddepcontrol.wait",
               here);
  CHECK_BEHIND(successor<Bug::launches_early>, one_block, "launch_dependents before griddepcontrol.wait", here);
  CHECK_BEHIND(successor<Bug::launches_without_wait>, one_block, "launch_dependents before griddepcontrol.wait", here);
  CHECK_BEHIND(successor<Bug::does_nothing>, one_block,
               "the block ends, and none of its threads has come to "
               "griddepcontrol.wait");
}

void test_who_waits() {
  CHECK_CLEAN_BEHIND(one_waits<true>, one_block, buffers);
  CHECK_BEHIND(one_waits<false>, one_block, "which kernel predecessor has written", here);
  CHECK_CLEAN_BEHIND(a_cluster_waits<true>, pair, buffers);
  CHECK_BEHIND(a_cluster_waits<false>, pair, "block (1, 0, 0)", "the block ends, and none of its threads");
}

void test_boxes() {
  const auto map = [](std::vector<float>& of) {
    return cuda::tensor_map(
        cuda::TiledMap{of.data(), cuda::MapElement::f32, 2, {32, 4}, {128}, {32, 4}, cuda::MapSwizzle::none});
  };
  const TensorMap from = map(x), to = map(y);
  CHECK_CLEAN_BEHIND(boxes<false, false>, one_block, from, to);
  CHECK_EQUAL(y[count - 1], 3.0f);
  const auto check = [&](auto kernel, const char* name, const char* wanted) {
    check_fault(__FILE__, __LINE__, name, faults_behind(first, x, kernel, one_block, from, to), {wanted, here});
  };
  check(boxes<true, false>, "(boxes<loads early>,", "which kernel predecessor has written");
  check(boxes<false, true>, "(boxes<stores early>,", "bytes of global memory before griddepcontrol.wait");
}

/// What may be touched early: anything of kernels that are known to have ended, as the one before has waited for them.
void test_what_is_published() {
  const std::string early = faults_behind(y, first, successor<Bug::reads_early>, one_block, buffers);
  CHECK_EQUAL(early, std::string(), "x was written two kernels ago");
  CHECK_EQUAL(fault_of(successor<Bug::reads_early>, one_block, buffers), std::string(), "an ordinary launch");
}

}  // namespace

int main() {
  test_waits();
  test_who_waits();
  test_boxes();
  const auto a = announced(weights), b = announced(x), c = announced(y);
  test_what_is_published();
  return result();
}
