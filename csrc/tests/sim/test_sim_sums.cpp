// What wgmma's sums keep in the simulator: of 8-bit values 13 bits, so that a long sum of them loses its small terms
// unless it is cut into parts that are added in float32; of others, float32's bits.
#include <cmath>

#include "cuda/ptx/fence.h"
#include "cuda/ptx/sync.h"
#include "cuda/ptx/wgmma.h"
#include "planted.h"
#include "sim/numbers.h"

using namespace vggfast;
using namespace vggfast::test;
using ptx::WgmmaType;

namespace {

constexpr unsigned rows = 64, bytes = 32, operand_bytes = rows * bytes, n = 16;
constexpr cuda::Grid warpgroup{.blocks = 1, .threads = 128, .shared_bytes = 2 * operand_bytes, .dependent = false};

/// The two factors of each product, 32 bytes of K, the same in all rows and columns.
struct Factors {
  uint32_t a[bytes / 4] = {}, b[bytes / 4] = {};
};

/// out: first + `steps` times the products; after every `Promoted` steps, if not 0, what there is goes into a float32
/// sum.
template <WgmmaType Type, int Promoted = 0>
__global__ void long_sum(Factors factors, float first, int steps, float* out) {
  char* const shared = ptx::shared_memory();
  for (unsigned at = threadIdx.x * 4; at < operand_bytes; at += 512) {  // cores of 8 rows of 16 bytes
    const unsigned k = at / (operand_bytes / 2) * 16 + at % 16;
    *reinterpret_cast<uint32_t*>(shared + at) = factors.a[k / 4];
    *reinterpret_cast<uint32_t*>(shared + operand_bytes + at) = factors.b[k / 4];
  }
  ptx::fence_proxy_async();
  ptx::sync_threads();
  const uint64_t a = ptx::wgmma_descriptor(shared, ptx::Swizzle::none, operand_bytes / 2, 128);
  const uint64_t b = ptx::wgmma_descriptor(shared + operand_bytes, ptx::Swizzle::none, operand_bytes / 2, 128);
  float d[n / 2], total[n / 2] = {};
  for (float& each : d) each = first;
  for (int step = 0; step < steps; ++step) {
    const bool begins = Promoted > 0 && step > 0 && step % std::max(1, Promoted) == 0;
    if (begins) {
      for (unsigned r = 0; r < n / 2; ++r) total[r] += d[r];
    }
    ptx::wgmma_fence();
    ptx::wgmma<Type, n>(d, a, b, !begins);
    ptx::wgmma_commit_group();
    ptx::wgmma_wait_group<0>();
  }
  for (unsigned r = 0; r < n / 2; ++r) out[threadIdx.x * n / 2 + r] = total[r] + d[r];
}

template <WgmmaType Type>
void encode(float value, uint32_t* to, size_t i) {
  constexpr unsigned size = Type == WgmmaType::bf16 ? 2 : 1;
  const uint32_t code = Type == WgmmaType::bf16   ? sim::to_bf16(value)
                        : Type == WgmmaType::e4m3 ? sim::to_e4m3(value)
                                                  : sim::to_e5m2(value);
  to[i * size / 4] |= code << i * size % 4 * 8;
}

/// The sum, which all threads must agree on.
template <WgmmaType Type, int Promoted = 0>
float sum(float first, std::vector<std::pair<float, float>> products, int steps = 1) {
  Factors factors;
  for (size_t i = 0; i < products.size(); ++i) {
    encode<Type>(products[i].first, factors.a, i);
    encode<Type>(products[i].second, factors.b, i);
  }
  std::vector<float> out(128 * n / 2);
  const sim::Global memory(out.data(), out.size() * sizeof(float));
  sim::settings().seed = 1;
  cuda::launch("planted", long_sum<Type, Promoted>, warpgroup, {}, factors, first, steps, out.data());
  for (const float each : out) CHECK(each == out[0] || each != each, each, " beside ", out[0]);
  return out[0];
}

constexpr auto e4m3 = WgmmaType::e4m3, e5m2 = WgmmaType::e5m2, bf16 = WgmmaType::bf16;
const std::vector<std::pair<float, float>> ones(32, {1, 1}), half_as_many(16, {1, 1});

void test_what_is_kept() {
  CHECK_EQUAL(sum<e4m3>(8192, {{1, 1}}), 8193.0f, "13 bits");
  CHECK_EQUAL(sum<e4m3>(16384, {{1, 1}}), 16384.0f, "a 14th");
  CHECK_EQUAL(sum<e4m3>(16384, {{-1, 1}}), 16384.0f, "towards zero");
  CHECK_EQUAL(sum<e4m3>(16384, ones), 16384.0f, "each product is cut off, not their sum");
  CHECK_EQUAL(sum<e4m3>(16384, {{2, 1}, {1, 3}}), 16388.0f);
  CHECK_EQUAL(sum<e4m3>(16385, {{1, 1}}), 16384.0f, "what the sum had before");
  CHECK_EQUAL(sum<e4m3>(1, {{256, 64}}), 16384.0f, "whichever is greater");
  CHECK_EQUAL(sum<e4m3>(16, {{448, 448}}), 200720.0f);
  CHECK_EQUAL(sum<e4m3>(8, {{448, 448}}), 200704.0f, "all of them together once more");
  CHECK_EQUAL(sum<e4m3>(-15, {{-448, 448}}), -200704.0f);
  CHECK_EQUAL(sum<e4m3>(0, {{0x1p-9f, 0x1p-9f}}), 0x1p-18f, "subnormal values");
  CHECK_EQUAL(sum<e4m3>(0, {{0, 448}}), 0.0f);
  CHECK_EQUAL(sum<e4m3>(0x1p-139f, {{0, 448}}), 0x1p-139f, "a subnormal sum");
  CHECK_EQUAL(sum<e4m3>(0x1p-140f, {{0, 448}}), 0.0f);
  CHECK_EQUAL(sum<e5m2>(16384, {{1, 1}}), 16384.0f);
  CHECK_EQUAL(sum<e5m2>(0, {{0x1p-16f, 1}, {0x1p-16f, 0x1p-12f}}), 0x1p-16f, "aligned as the least normal ones");
  CHECK_EQUAL(sum<bf16>(16384, half_as_many), 16400.0f, "float32 keeps all");
}

void test_not_finite() {
  CHECK(std::isnan(sum<e4m3>(1, {{NAN, 1}})));
  CHECK_EQUAL(sum<e4m3>(INFINITY, {{1, 1}}), INFINITY);
  CHECK(std::isnan(sum<e5m2>(-INFINITY, {{NAN, 1}})));
}

/// The bug that is planted here is a sum of many stages without a promotion.
void test_promotion() {
  constexpr int steps = 640;
  CHECK_EQUAL((sum<e4m3>(0, ones, steps)), 16384.0f);
  CHECK_EQUAL((sum<e4m3, 16>(0, ones, steps)), 32.0f * steps);
}

}  // namespace

int main() {
  test_what_is_kept();
  test_not_finite();
  test_promotion();
  return result();
}
