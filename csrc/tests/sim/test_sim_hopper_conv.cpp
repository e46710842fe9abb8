// A 3x3 convolution, padding 1, 64 channels to 64, in the simulator as Hopper kernels are to do it: weights on M,
// pixels on N, the pixels by im2col or as one halo from which nine shifted descriptors start; stmatrix and a TMA store
// to NHWC. Against the definition, on sizes that tiles cross and overhang.
#include "cuda/ptx/cvt.h"
#include "cuda/ptx/fence.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/sync.h"
#include "cuda/ptx/wgmma.h"
#include "cuda/tensor_map.h"
#include "planted.h"
#include "sim/numbers.h"

using namespace vggfast;
using namespace vggfast::test;

namespace {

constexpr int channels = 64, pixel_bytes = channels * 2, taps = 9;
constexpr int tile_pixels = 64, tile_side = 8, halo_side = tile_side + 2;
constexpr uint32_t weight_bytes = channels * pixel_bytes;
constexpr uint32_t halo_bytes = halo_side * halo_side * pixel_bytes, column_bytes = tile_pixels * pixel_bytes;
constexpr uint32_t weights_at = 0, pixels_at = taps * weight_bytes, out_at = pixels_at + taps * column_bytes,
                   barrier_at = out_at + column_bytes;

struct Size {
  int w, h, n;
};

/// Couts and pixels of this thread, as bf16, to the stage [pixel][cout].
__device__ void stage_output(const float (&d)[tile_pixels / 2], char* stage) {
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, matrix = lane / 8;
  for (unsigned group = 0; group < tile_pixels / 8; group += 2) {
    uint32_t registers[4];
    for (unsigned q = 0; q < 4; ++q) {
      const unsigned first = (group + q / 2) * 4 + q % 2 * 2;
      registers[q] = ptx::cvt_rn_bf16(d[first]).bits | uint32_t(ptx::cvt_rn_bf16(d[first + 1]).bits) << 16;
    }
    const unsigned pixel = (group + matrix / 2) * 8 + lane % 8, cout = warp * 16 + matrix % 2 * 8;
    ptx::stmatrix_x4_trans(stage + pixel * pixel_bytes + cout * 2, registers);
  }
}

template <bool Halo>
__global__ void __launch_bounds__(128)
    conv(const __grid_constant__ TensorMap in, const __grid_constant__ TensorMap weights,
         const __grid_constant__ TensorMap out, Size size) {
  char* const shared = ptx::shared_memory();
  uint64_t* const full = reinterpret_cast<uint64_t*>(shared + barrier_at);
  const int flat = static_cast<int>(blockIdx.x) * tile_pixels;
  const int x0 = static_cast<int>(blockIdx.x) * tile_side, y0 = static_cast<int>(blockIdx.y) * tile_side;
  const int image = static_cast<int>(blockIdx.z);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect_tx(full, taps * weight_bytes + (Halo ? halo_bytes : taps * column_bytes));
    for (int tap = 0; tap < taps; ++tap) {
      ptx::cp_async_bulk_tensor_load(shared + weights_at + tap * weight_bytes, weights, full, {0, tap * channels});
      if (Halo) continue;
      ptx::cp_async_bulk_tensor_im2col(shared + pixels_at + tap * column_bytes, in, full,
                                       {0, flat % size.w - 1, flat / size.w % size.h - 1, flat / (size.w * size.h)},
                                       {static_cast<uint16_t>(tap % 3), static_cast<uint16_t>(tap / 3)});
    }
    if (Halo) ptx::cp_async_bulk_tensor_load(shared + pixels_at, in, full, {0, x0 - 1, y0 - 1, image});
  }
  ptx::sync_threads();
  ptx::mbarrier_try_wait_parity(full, 0);
  float d[tile_pixels / 2];
  ptx::wgmma_fence();
  for (int tap = 0; tap < taps; ++tap) {
    const int window = Halo ? (tap / 3 * halo_side + tap % 3) * pixel_bytes : tap * int(column_bytes);
    for (int k = 0; k < pixel_bytes; k += 32) {
      const uint64_t a =
          ptx::wgmma_descriptor(shared + weights_at + tap * weight_bytes + k, ptx::Swizzle::b128, 16, 1024);
      const uint64_t b = ptx::wgmma_descriptor(shared + pixels_at + window + k, ptx::Swizzle::b128, 16,
                                               Halo ? halo_side * pixel_bytes : 1024);
      ptx::wgmma<ptx::WgmmaType::bf16, tile_pixels>(d, a, b, tap || k);
    }
  }
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  ptx::wgmma_hold(d);
  stage_output(d, shared + out_at);
  ptx::fence_proxy_async();
  ptx::sync_threads();
  if (threadIdx.x != 0) return;
  if (Halo) {
    ptx::cp_async_bulk_tensor_store(out, shared + out_at, {0, x0, y0, image});
  } else {
    ptx::cp_async_bulk_tensor_store(out, shared + out_at, {0, flat});
  }
  ptx::cp_async_bulk_commit_group();
  ptx::cp_async_bulk_wait_group_read<0>();
}

float value(size_t i, size_t j) { return static_cast<float>((i * 7 + j * 5 + i * j / 3) % 7) - 3; }

struct Problem {
  Size size;
  std::vector<uint16_t> in, weights, out;
  size_t pixels() const { return size_t(size.w) * size.h * size.n; }

  explicit Problem(Size of) : size(of), in(pixels() * channels), weights(taps * channels * channels), out(in.size()) {
    for (size_t i = 0; i < in.size(); ++i) in[i] = sim::to_bf16(value(i / channels, i % channels));
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = sim::to_bf16(value(i / channels + 3, i % channels));
  }
  /// Weights lie as [tap][cout][cin].
  float expected(size_t pixel, size_t cout) const {
    const int x = int(pixel) % size.w, y = int(pixel) / size.w % size.h;
    float sum = 0;
    for (int tap = 0; tap < taps; ++tap) {
      const int u = x + tap % 3 - 1, v = y + tap / 3 - 1;
      if (u < 0 || u >= size.w || v < 0 || v >= size.h) continue;
      const size_t from = size_t(int(pixel) + (v - y) * size.w + u - x);
      for (size_t c = 0; c < channels; ++c) sum += value(from, c) * value(size_t(tap) * channels + cout + 3, c);
    }
    return sum;
  }
};

uint64_t strided(int count) { return uint64_t(count) * pixel_bytes; }

template <bool Halo>
void check_conv(Size size) {
  Problem p(size);
  const sim::Global gi(p.in.data(), p.in.size() * 2), gw(p.weights.data(), p.weights.size() * 2),
      go(p.out.data(), p.out.size() * 2);
  constexpr auto bf16 = cuda::MapElement::bf16;
  constexpr auto b128 = cuda::MapSwizzle::b128;
  const uint64_t w = uint64_t(size.w), h = uint64_t(size.h), n = uint64_t(size.n);
  const TensorMap weights = cuda::tensor_map(cuda::TiledMap{
      p.weights.data(), bf16, 2, {channels, taps * channels}, {pixel_bytes}, {channels, channels}, b128});
  const auto image_map = [&](uint16_t* data, uint32_t side, cuda::MapSwizzle swizzle) {
    return cuda::tensor_map(cuda::TiledMap{data,
                                           bf16,
                                           4,
                                           {channels, w, h, n},
                                           {strided(1), strided(size.w), strided(size.w * size.h)},
                                           {channels, side, side, 1},
                                           swizzle});
  };
  const auto launch_shape = [](dim3 blocks) {
    return cuda::Grid{.blocks = blocks, .threads = 128, .shared_bytes = barrier_at + 8};
  };
  if constexpr (Halo) {
    const dim3 blocks((unsigned(size.w) + 7) / 8, (unsigned(size.h) + 7) / 8, unsigned(size.n));
    CHECK_CLEAN((conv<true>, launch_shape(blocks), image_map(p.in.data(), halo_side, b128), weights,
                 image_map(p.out.data(), tile_side, cuda::MapSwizzle::none), size));
  } else {
    const TensorMap in = cuda::tensor_map(cuda::Im2colMap{p.in.data(),
                                                          bf16,
                                                          {channels, w, h, n},
                                                          {strided(1), strided(size.w), strided(size.w * size.h)},
                                                          {-1, -1},
                                                          {-1, -1},
                                                          channels,
                                                          tile_pixels,
                                                          b128});
    const TensorMap out = cuda::tensor_map(
        cuda::TiledMap{p.out.data(), bf16, 2, {channels, w * h * n}, {pixel_bytes}, {channels, tile_pixels}});
    CHECK_CLEAN((conv<false>, launch_shape(unsigned(p.pixels() + 63) / 64), in, weights, out, size));
  }
  for (size_t i = 0; i < p.out.size(); ++i) {
    CHECK_EQUAL(p.out[i], sim::to_bf16(p.expected(i / channels, i % channels)), Halo ? "halo" : "im2col", ", pixel ",
                i / channels, ", cout ", i % channels);
  }
}

}  // namespace

int main() {
  for (const Size& size : {Size{8, 8, 1}, Size{14, 10, 2}}) {
    check_conv<false>(size);
    check_conv<true>(size);
  }
  return result();
}
