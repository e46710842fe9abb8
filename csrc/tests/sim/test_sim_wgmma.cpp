// wgmma in the simulator: each kind of bug planted and seen caught, and what the products are against their definition:
// all types, both orders of operands, every swizzle; and a small product with TMA, a ring of mbarriers and two
// consumers.
#include "cuda/ptx/elect.h"
#include "cuda/ptx/fence.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/sync.h"
#include "cuda/ptx/wgmma.h"
#include "cuda/tensor_map.h"
#include "planted.h"
#include "sim/numbers.h"

using namespace vggfast;
using namespace vggfast::test;
using ptx::Major;
using ptx::Swizzle;
using ptx::WgmmaType;

namespace {

constexpr unsigned m = 64;
constexpr cuda::Grid warpgroup{.blocks = 1, .threads = 128, .shared_bytes = 64 << 10};
const char* const here = "csrc/tests/sim/test_sim_wgmma.cpp:";

enum class Bug {
  none,
  read_before_wait,
  written_in_flight,
  no_proxy_fence,
  operand_overwritten,
  other_descriptor,
  a_warp_less,
  no_fence,
  written_without_fence,
  wrong_swizzle,
};

/// Where byte `k` of row `row` lies among rows of 128 bytes, 16-byte chunks swizzled: the definition.
unsigned swizzled_place(unsigned row, unsigned k) { return row * 128 + ((k / 16 ^ row % 8) * 16 + k % 16); }

/// c (64 x 32) = a (64 x 64) b (32 x 64, transposed), bf16, laid out by plain stores.
template <Bug B>
__global__ void product(const uint16_t* a, const uint16_t* b, float* c) {
  constexpr unsigned n = 32, k = 64;
  char *as = ptx::shared_memory(), *bs = as + m * k * 2;
  const unsigned i = threadIdx.x;
  for (unsigned at = i; at < m * k; at += 128) {
    *reinterpret_cast<uint16_t*>(as + swizzled_place(at / k, at % k * 2)) = a[at];
  }
  for (unsigned at = i; at < n * k; at += 128) {
    *reinterpret_cast<uint16_t*>(bs + swizzled_place(at / k, at % k * 2)) = b[at];
  }
  if (B != Bug::no_proxy_fence) ptx::fence_proxy_async();
  ptx::sync_threads();
  if (B == Bug::a_warp_less && i >= 96) return;
  float d[n / 2] = {};
  if (B != Bug::no_fence) ptx::wgmma_fence();
  for (unsigned step = 0; step < k / 16; ++step) {
    const Swizzle swizzle = B == Bug::wrong_swizzle ? Swizzle::b64 : Swizzle::b128;
    const unsigned skew = B == Bug::other_descriptor && i >= 64 ? 16 : 0;
    const uint64_t da = ptx::wgmma_descriptor(as + step * 32, Swizzle::b128, 16, 1024);
    const uint64_t db = ptx::wgmma_descriptor(bs + step * 32 + skew, swizzle, 16, 1024);
    ptx::wgmma<WgmmaType::bf16, n>(d, da, db, true);
  }
  ptx::wgmma_commit_group();
  if (B == Bug::operand_overwritten && i == 7) *reinterpret_cast<uint16_t*>(bs) = 0;
  if (B == Bug::written_in_flight) d[3] += 1;
  if (B == Bug::read_before_wait) {
    for (unsigned r = 0; r < n / 2; ++r) c[i * 16 + r] = d[r];
  }
  ptx::wgmma_wait_group<0>();
  if (B == Bug::read_before_wait) return;
  if (B == Bug::written_without_fence) {
    d[5] *= 2;
    ptx::wgmma<WgmmaType::bf16, n>(d, ptx::wgmma_descriptor(as, Swizzle::b128, 16, 1024),
                                   ptx::wgmma_descriptor(bs, Swizzle::b128, 16, 1024), true);
    ptx::wgmma_commit_group();
    ptx::wgmma_wait_group<0>();
  }
  const unsigned row = i / 32 * 16 + i % 32 / 4, column = i % 4 * 2;
  for (unsigned r = 0; r < n / 2; ++r) c[(row + r / 2 % 2 * 8) * n + column + r / 4 * 8 + r % 2] = d[r];
}

float value(size_t i, size_t j, size_t seed) { return static_cast<float>((i * 5 + j * 3 + i * j + seed) % 7) - 3; }
uint16_t narrow(float v) { return sim::to_bf16(v); }

float expected(size_t row, size_t column, size_t k) {
  float sum = 0;
  for (size_t i = 0; i < k; ++i) sum += value(row, i, 1) * value(column, i, 2);
  return sum;
}

void test_bugs() {
  constexpr size_t n = 32, k = 64;
  std::vector<uint16_t> a(m * k), b(n * k);
  std::vector<float> c(m * n);
  for (size_t i = 0; i < a.size(); ++i) a[i] = narrow(value(i / k, i % k, 1));
  for (size_t i = 0; i < b.size(); ++i) b[i] = narrow(value(i / k, i % k, 2));
  const sim::Global ga(a.data(), a.size() * 2), gb(b.data(), b.size() * 2), gc(c.data(), c.size() * 4);
  const auto count_wrong = [&] {
    size_t wrong = 0;
    for (size_t i = 0; i < c.size(); ++i) wrong += !(c[i] == expected(i / n, i % n, k));
    return wrong;
  };
  CHECK_CLEAN((product<Bug::none>, warpgroup, a.data(), b.data(), c.data()));
  CHECK_EQUAL(count_wrong(), size_t(0));
  CHECK_CLEAN((product<Bug::read_before_wait>, warpgroup, a.data(), b.data(), c.data()));
  for (const float got : c) CHECK(got != got, "an accumulator read before the wait is ", got);
  CHECK_CLEAN((product<Bug::wrong_swizzle>, warpgroup, a.data(), b.data(), c.data()));
  CHECK(count_wrong() > c.size() / 2, "a wrong swizzle gives ", count_wrong(), " wrong values");
  CHECK_FAULT((product<Bug::written_in_flight>, warpgroup, a.data(), b.data(), c.data()),
              "register 3 of the accumulators was written while a wgmma was in flight", here);
  CHECK_FAULT((product<Bug::no_proxy_fence>, warpgroup, a.data(), b.data(), c.data()),
              "generic write is not yet fenced", here);
  CHECK_FAULT((product<Bug::operand_overwritten>, warpgroup, a.data(), b.data(), c.data()), "overwrites byte",
              "which wgmma in flight", here);
  CHECK_FAULT((product<Bug::other_descriptor>, warpgroup, a.data(), b.data(), c.data()), "divergent warpgroup", here);
  CHECK_FAULT((product<Bug::a_warp_less>, warpgroup, a.data(), b.data(), c.data()), "nobody can go on", "96 threads",
              "for all four warps", here);
  CHECK_FAULT((product<Bug::no_fence>, warpgroup, a.data(), b.data(), c.data()), "without wgmma.fence", here);
  CHECK_FAULT((product<Bug::written_without_fence>, warpgroup, a.data(), b.data(), c.data()),
              "accumulators were written without wgmma.fence", here);
}

// ---- operands of every type and layout
// --------------------------------------------------------------------------------

/// One instruction on operands that lie in shared memory as in `a` and `b`, 16 KB each.
template <WgmmaType Type, int N, Major A, Major B, bool Registers, bool Negate>
__global__ void one_product(const uint32_t* a, const uint32_t* b, const uint32_t* fragments, uint64_t a_layout,
                            uint64_t b_layout, float* c) {
  uint32_t* shared = reinterpret_cast<uint32_t*>(ptx::shared_memory());
  const unsigned i = threadIdx.x;
  for (unsigned at = i; at < 4096; at += 128) {
    shared[at] = a[at];
    shared[4096 + at] = b[at];
  }
  ptx::fence_proxy_async();
  ptx::sync_threads();
  float d[N / 2];
  for (float& each : d) each = 1;
  const uint64_t at_b = b_layout + ptx::wgmma_descriptor(shared + 4096, Swizzle::none, 0, 0);
  uint32_t registers[4];
  for (unsigned r = 0; r < 4; ++r) registers[r] = fragments[i * 4 + r];
  ptx::wgmma_fence();
  if constexpr (Registers) {
    ptx::wgmma<Type, N, B>(d, registers, at_b, false);
  } else {
    ptx::wgmma<Type, N, A, B, Negate>(d, a_layout + ptx::wgmma_descriptor(shared, Swizzle::none, 0, 0), at_b, true);
  }
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  const unsigned row = i / 32 * 16 + i % 32 / 4, column = i % 4 * 2;
  for (unsigned r = 0; r < N / 2; ++r) c[(row + r / 2 % 2 * 8) * N + column + r / 4 * 8 + r % 2] = d[r];
}

struct Format {
  unsigned bytes;
  uint32_t (*encode)(float);
};
template <WgmmaType Type>
constexpr Format format = {Type == WgmmaType::tf32                             ? 4u
                           : Type == WgmmaType::bf16 || Type == WgmmaType::f16 ? 2u
                                                                               : 1u,
                           [](float v) -> uint32_t {
                             switch (Type) {
                               case WgmmaType::bf16:
                                 return sim::to_bf16(v);
                               case WgmmaType::f16:
                                 return sim::to_f16(v);
                               case WgmmaType::tf32:
                                 return sim::to_tf32(v);
                               case WgmmaType::e4m3:
                                 return sim::to_e4m3(v);
                               default:
                                 return sim::to_e5m2(v);
                             }
                           }};

/// A canonical layout: the byte at which element (row, k) lies, by the manual's figures, and its descriptor.
struct Layout {
  Swizzle swizzle;
  Major major;
  unsigned span() const {
    return swizzle == Swizzle::b128 ? 128 : swizzle == Swizzle::b64 ? 64 : swizzle == Swizzle::b32 ? 32 : 16;
  }
  static constexpr unsigned mn_block = 4096;  // where M or N is contiguous: from a span to the next

  unsigned place(unsigned row, unsigned k_byte, unsigned k) const {
    const unsigned lines = span() / 16;
    if (major == Major::k) {
      if (swizzle == Swizzle::none) return row / 8 * 128 + row % 8 * 16 + k_byte / 16 * 8192 + k_byte % 16;
      const unsigned chunk = k_byte / 16 ^ row % 8 * lines / 8;
      return row * span() + chunk * 16 + k_byte % 16;
    }
    const unsigned byte = row * 2;
    if (swizzle == Swizzle::none) return byte / 16 * 256 + k * 16 + byte % 16;
    const unsigned chunk = byte % span() / 16 ^ k % 8 * lines / 8;
    return byte / span() * mn_block + k * span() + chunk * 16 + byte % 16;
  }
  uint64_t descriptor() const {
    const bool plain = swizzle == Swizzle::none;
    const uint64_t leading = major == Major::k ? (plain ? 8192 : 16) : (plain ? 128 : mn_block);
    const uint64_t stride = major == Major::k ? (plain ? 128 : span() * 8) : (plain ? 256 : span() * 8);
    return leading >> 4 << 16 | stride >> 4 << 32 | static_cast<uint64_t>(swizzle) << 62;
  }
};

template <WgmmaType Type, int N, Major A = Major::k, Major B = Major::k, bool Registers = false, bool Negate = false>
void check_product(Swizzle swizzle_a, Swizzle swizzle_b) {
  constexpr unsigned bytes = format<Type>.bytes, k = 32 / bytes;
  const Layout la{swizzle_a, A}, lb{swizzle_b, B};
  std::vector<char> a(16384), b(16384);
  std::vector<uint32_t> fragments(512);
  std::vector<float> c(m * N);
  const auto put = [&](std::vector<char>& to, const Layout& layout, unsigned row, unsigned i, float v) {
    const uint32_t bits = format<Type>.encode(v);
    std::memcpy(&to.at(layout.place(row, i * bytes, i)), &bits, bytes);
  };
  for (unsigned i = 0; i < k; ++i) {
    for (unsigned row = 0; row < m; ++row) {
      put(a, la, row, i, value(row, i, 1));
      const unsigned per = 4 / bytes, thread = row / 16 * 32 + row % 8 * 4 + i / per % 4;
      const unsigned reg = row % 16 / 8 + i / (4 * per) * 2;
      fragments[thread * 4 + reg] |= format<Type>.encode(value(row, i, 1)) << (i % per * bytes * 8);
    }
    for (unsigned row = 0; row < N; ++row) put(b, lb, row, i, value(row, i, 2));
  }
  const sim::Global ga(a.data(), a.size()), gb(b.data(), b.size()), gf(fragments.data(), 2048),
      gc(c.data(), c.size() * 4);
  CHECK_CLEAN((one_product<Type, N, A, B, Registers, Negate>, warpgroup, reinterpret_cast<const uint32_t*>(a.data()),
               reinterpret_cast<const uint32_t*>(b.data()), fragments.data(), la.descriptor(), lb.descriptor(),
               c.data()));
  size_t wrong = 0;
  for (size_t i = 0; i < c.size(); ++i) {
    const float sum = expected(i / N, i % N, k);
    wrong += c[i] != (Negate ? -sum : sum) + (Registers ? 0.0f : 1.0f);
  }
  CHECK_EQUAL(wrong, size_t(0), "type ", int(Type), ", N ", N, ", swizzles ", int(swizzle_a), ", ", int(swizzle_b));
}

void test_operands() {
  constexpr Major mn = Major::mn, k = Major::k;
  const Swizzle all[] = {Swizzle::none, Swizzle::b128, Swizzle::b64, Swizzle::b32};
  for (const Swizzle swizzle : all) {
    check_product<WgmmaType::bf16, 64>(swizzle, Swizzle::b128);
    check_product<WgmmaType::tf32, 32>(swizzle, swizzle);
    check_product<WgmmaType::e4m3, 96>(Swizzle::b32, swizzle);
    check_product<WgmmaType::f16, 64, mn, mn>(swizzle, swizzle);
  }
  check_product<WgmmaType::f16, 224>(Swizzle::b128, Swizzle::b32);
  check_product<WgmmaType::e5m2, 16>(Swizzle::b64, Swizzle::b64);
  check_product<WgmmaType::bf16, 128, mn, k>(Swizzle::b64, Swizzle::b32);
  check_product<WgmmaType::bf16, 64, k, mn, true>(Swizzle::none, Swizzle::b128);
  check_product<WgmmaType::tf32, 48, k, k, true>(Swizzle::none, Swizzle::b64);
  check_product<WgmmaType::e4m3, 256, k, k, true>(Swizzle::none, Swizzle::b32);
  check_product<WgmmaType::bf16, 240, k, k, false, true>(Swizzle::b32, Swizzle::b32);
}

// ---- a whole product
// --------------------------------------------------------------------------------------------------

constexpr int stages = 2, tile_m = 128, tile_n = 64, tile_k = 64;
constexpr uint32_t a_bytes = tile_m * tile_k * 2, b_bytes = tile_n * tile_k * 2;

/// c = a (m x k) b (n x k, transposed), bf16 in, float32 out: warpgroup 0 fetches, 1 and 2 multiply 64 rows each.
__global__ void ring(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                     const __grid_constant__ TensorMap c, int steps) {
  char* const shared = ptx::shared_memory();
  uint64_t* const full = reinterpret_cast<uint64_t*>(shared + stages * (a_bytes + b_bytes) + tile_m * tile_n * 4);
  uint64_t* const empty = full + stages;
  const auto a_stage = [&](int s) { return shared + s * (a_bytes + b_bytes); };
  const int group = static_cast<int>(threadIdx.x / 128), i = static_cast<int>(threadIdx.x % 128);
  const int row = static_cast<int>(blockIdx.x) * tile_m, column = static_cast<int>(blockIdx.y) * tile_n;
  if (threadIdx.x == 0) {
    for (int s = 0; s < stages; ++s) {
      ptx::mbarrier_init(full + s, 1);
      ptx::mbarrier_init(empty + s, 2);
    }
    ptx::fence_mbarrier_init();
  }
  ptx::sync_threads();
  if (group == 0) {
    if (i >= 32 || !ptx::elect()) return;
    for (int step = 0; step < steps; ++step) {
      const int s = step % stages;
      ptx::mbarrier_try_wait_parity(empty + s, (step / stages % 2) ^ 1);
      ptx::mbarrier_arrive_expect_tx(full + s, a_bytes + b_bytes);
      ptx::cp_async_bulk_tensor_load(a_stage(s), a, full + s, {step * tile_k, row});
      ptx::cp_async_bulk_tensor_load(a_stage(s) + a_bytes, b, full + s, {step * tile_k, column});
    }
    return;
  }
  float d[tile_n / 2];
  for (int step = 0; step < steps; ++step) {
    const int s = step % stages;
    ptx::mbarrier_try_wait_parity(full + s, step / stages % 2);
    ptx::wgmma_fence();
    for (int k = 0; k < tile_k * 2; k += 32) {
      ptx::wgmma<WgmmaType::bf16, tile_n>(
          d, ptx::wgmma_descriptor(a_stage(s) + (group - 1) * 8192 + k, Swizzle::b128, 16, 1024),
          ptx::wgmma_descriptor(a_stage(s) + a_bytes + k, Swizzle::b128, 16, 1024), step || k);
    }
    ptx::wgmma_commit_group();
    ptx::wgmma_wait_group<1>();
    if (step > 0 && i == 0) ptx::mbarrier_arrive(empty + (step - 1) % stages);
  }
  ptx::wgmma_wait_group<0>();
  ptx::wgmma_hold(d);
  float* const out = reinterpret_cast<float*>(shared + stages * (a_bytes + b_bytes)) + (group - 1) * 64 * tile_n;
  const int first = i / 32 * 16 + i % 32 / 4;
  for (int r = 0; r < tile_n / 2; ++r) out[(first + r / 2 % 2 * 8) * tile_n + i % 4 * 2 + r / 4 * 8 + r % 2] = d[r];
  ptx::fence_proxy_async();
  ptx::barrier_sync(static_cast<unsigned>(group), 128);
  if (i == 0) {
    ptx::cp_async_bulk_tensor_store(c, out, {column, row + (group - 1) * 64});
    ptx::cp_async_bulk_commit_group();
    ptx::cp_async_bulk_wait_group<0>();
  }
}

/// Sizes that no tile divides: loads bring zeros beyond, stores stop at the edge.
void test_ring() {
  constexpr uint64_t rows = 200, columns = 100, k = 328;
  std::vector<uint16_t> a(rows * k), b(columns * k);
  std::vector<float> c(rows * columns);
  for (size_t i = 0; i < a.size(); ++i) a[i] = narrow(value(i / k, i % k, 1));
  for (size_t i = 0; i < b.size(); ++i) b[i] = narrow(value(i / k, i % k, 2));
  const sim::Global ga(a.data(), a.size() * 2), gb(b.data(), b.size() * 2), gc(c.data(), c.size() * 4);
  const auto map = [](const void* data, cuda::MapElement type, uint64_t count, uint64_t width, uint32_t box_rows,
                      uint32_t box_columns, cuda::MapSwizzle swizzle) {
    return cuda::tensor_map(
        cuda::TiledMap{data, type, 2, {width, count}, {width * bytes_of(type)}, {box_columns, box_rows}, swizzle});
  };
  constexpr auto bf16 = cuda::MapElement::bf16, f32 = cuda::MapElement::f32;
  const TensorMap ma = map(a.data(), bf16, rows, k, tile_m, tile_k, cuda::MapSwizzle::b128);
  const TensorMap mb = map(b.data(), bf16, columns, k, tile_n, tile_k, cuda::MapSwizzle::b128);
  const TensorMap mc = map(c.data(), f32, rows, columns, 64, tile_n, cuda::MapSwizzle::none);
  const cuda::Grid grid{
      .blocks = {2, 2}, .threads = 384, .shared_bytes = stages * (a_bytes + b_bytes) + tile_m * tile_n * 4 + 64};
  constexpr int steps = (k + tile_k - 1) / tile_k;
  sim::counters().clear();
  CHECK_CLEAN((ring, grid, ma, mb, mc, steps));
  for (size_t i = 0; i < c.size(); ++i) CHECK_EQUAL(c[i], expected(i / columns, i % columns, k), "element ", i);
  const sim::Counters& counts = sim::counters()["planted"];
  CHECK_EQUAL(counts.multiply_adds, int64_t(seeds) * 4 * steps * tile_m * tile_n * tile_k);
  CHECK_EQUAL(counts.global_written, int64_t(seeds * rows * columns * 4));
  CHECK_EQUAL(counts.global_read, int64_t(seeds * 2 * (rows + columns) * k * 2));
}

}  // namespace

int main() {
  test_bugs();
  test_operands();
  test_ring();
  return result();
}
