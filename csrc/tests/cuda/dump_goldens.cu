// Prints, as JSON, what the machine does where the manual leaves room or the simulator could be wrong: swizzles,
// im2col's way through the pixels, the places that wgmma's descriptors name, fragments over lanes, how sums are
// rounded. Compiled by nvcc it asks a Hopper GPU, compiled for csrc/sim the simulator; the two outputs must be equal,
// line by line, but for those named "precision". Every number is the index of an element, so that an output shows where
// each element went.
#include <cstdio>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "cuda/ptx/fence.h"
#include "cuda/ptx/ldmatrix.h"
#include "cuda/ptx/mbarrier.h"
#include "cuda/ptx/mma.h"
#include "cuda/ptx/sync.h"
#include "cuda/ptx/wgmma.h"
#include "cuda/tensor_map.h"

using namespace vggfast;
using ptx::Major;
using ptx::Swizzle;
using ptx::WgmmaType;

namespace {

// ---- memory that kernels may touch ----------------------------------------------------------------------------------

template <class T>
class Buffer {
 public:
#ifdef VGGFAST_SIM
  explicit Buffer(const std::vector<T>& host) : host_(host), announced_(host_.data(), host_.size() * sizeof(T)) {}
  T* data() { return host_.data(); }
  std::vector<T> host() const { return host_; }

 private:
  std::vector<T> host_;
  sim::Global announced_;
#else
  explicit Buffer(const std::vector<T>& host) : count_(host.size()) {
    cuda::check(cudaMalloc(&data_, bytes()), "cudaMalloc");
    cuda::check(cudaMemcpy(data_, host.data(), bytes(), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  T* data() { return data_; }
  std::vector<T> host() const {
    std::vector<T> all(count_);
    cuda::check(cudaMemcpy(all.data(), data_, bytes(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return all;
  }

 private:
  size_t bytes() const { return count_ * sizeof(T); }
  size_t count_;
  T* data_ = nullptr;
#endif
};

std::vector<uint16_t> numbered(size_t count) {
  std::vector<uint16_t> all(count);
  for (size_t i = 0; i < count; ++i) all[i] = static_cast<uint16_t>(i);
  return all;
}

int lists_printed = 0;

template <class T>
void print(const std::string& name, const std::vector<T>& values) {
  std::printf("%s\n\"%s\": [", lists_printed++ == 0 ? "{" : ",", name.c_str());
  for (size_t i = 0; i < values.size(); ++i) std::printf("%s%.9g", i ? "," : "", static_cast<double>(values[i]));
  std::printf("]");
}

/// The bits of small whole numbers in f16, up to 2048 exactly; and of powers of two.
__host__ __device__ uint16_t half_of(unsigned value) {
  unsigned exponent = 0;
  while (value >> (exponent + 1)) ++exponent;
  return value == 0 ? 0 : static_cast<uint16_t>((exponent + 15) << 10 | ((value << 10 >> exponent) & 0x3ff));
}

// ---- TMA ------------------------------------------------------------------------------------------------------------

constexpr uint32_t image_bytes = 4 << 10;
constexpr uint16_t untouched = 0xffff;
const cuda::Grid for_image{.blocks = 1, .threads = 128, .shared_bytes = image_bytes + 1024, .dependent = false};

struct Box {
  int32_t at[4];
  uint16_t offset[2];
  uint32_t bytes, shared_offset;
};

/// Shared memory after a box has landed in it.
template <bool Im2col>
__global__ void __launch_bounds__(128) land(const __grid_constant__ TensorMap map, Box box, uint16_t* out) {
  uint16_t* const image = reinterpret_cast<uint16_t*>(ptx::shared_memory());
  uint64_t* const full = reinterpret_cast<uint64_t*>(ptx::shared_memory() + image_bytes);
  for (unsigned i = threadIdx.x; i < image_bytes / 2; i += 128) image[i] = untouched;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::fence_mbarrier_init();
  }
  ptx::fence_proxy_async();
  ptx::sync_threads();
  if (threadIdx.x == 0) {
    char* const to = ptx::shared_memory() + box.shared_offset;
    ptx::mbarrier_arrive_expect_tx(full, box.bytes);
    if constexpr (Im2col) {
      ptx::cp_async_bulk_tensor_im2col(to, map, full, {box.at[0], box.at[1], box.at[2], box.at[3]},
                                       {box.offset[0], box.offset[1]});
    } else {
      ptx::cp_async_bulk_tensor_load(to, map, full, {box.at[0], box.at[1]});
    }
  }
  ptx::mbarrier_try_wait_parity(full, 0);
  for (unsigned i = threadIdx.x; i < image_bytes / 2; i += 128) out[i] = image[i];
}

/// A store's way back: shared memory holds element numbers, the tensor shows where they went.
__global__ void __launch_bounds__(128) store(const __grid_constant__ TensorMap map, Box box) {
  uint16_t* const image = reinterpret_cast<uint16_t*>(ptx::shared_memory());
  for (unsigned i = threadIdx.x; i < image_bytes / 2; i += 128) image[i] = static_cast<uint16_t>(i);
  ptx::fence_proxy_async();
  ptx::sync_threads();
  if (threadIdx.x == 0) {
    ptx::cp_async_bulk_tensor_store(map, ptx::shared_memory() + box.shared_offset, {box.at[0], box.at[1]});
    ptx::cp_async_bulk_commit_group();
    ptx::cp_async_bulk_wait_group<0>();
  }
}

void dump_swizzles() {
  constexpr uint64_t width = 72, height = 40;
  Buffer<uint16_t> in(numbered(width * height)), out(std::vector<uint16_t>(image_bytes / 2));
  for (const uint32_t span : {0u, 32u, 64u, 128u}) {
    // Rows of the whole span, of half of it, and boxes that start within the pattern.
    for (const uint32_t row_bytes : {span ? span : 64u, span > 32 ? span / 2 : 0u}) {
      for (const uint32_t offset : {0u, 128u, 640u}) {
        if (row_bytes == 0) continue;
        const uint32_t columns = row_bytes / 2, rows = 24;
        const auto swizzle = static_cast<cuda::MapSwizzle>(span);
        const auto map_of = [&](uint16_t* data) {
          return cuda::tensor_map(
              cuda::TiledMap{data, cuda::MapElement::bf16, 2, {width, height}, {width * 2}, {columns, rows}, swizzle});
        };
        const std::string name =
            std::to_string(span) + "_rows_" + std::to_string(row_bytes) + "_at_" + std::to_string(offset);
        const Box box{{8, 20}, {}, row_bytes * rows, offset};  // beyond the lower edge
        cuda::launch("land", land<false>, for_image, Context{}, map_of(in.data()), box, out.data());
        print("load_swizzle_" + name, out.host());
        Buffer<uint16_t> stored(std::vector<uint16_t>(width * height, untouched));
        cuda::launch("store", store, for_image, Context{}, map_of(stored.data()), box);
        print("store_swizzle_" + name, stored.host());
      }
    }
  }
}

void dump_im2col() {
  constexpr uint64_t c = 8, w = 5, h = 4, n = 2;
  constexpr uint32_t pixels = 32;
  Buffer<uint16_t> in(numbered(c * w * h * n)), out(std::vector<uint16_t>(image_bytes / 2));
  struct Corners {
    int32_t lower[2], upper[2];
  };
  for (const Corners& corners : {Corners{{-1, -1}, {-1, -1}}, Corners{{-2, 0}, {0, -1}}, Corners{{0, -1}, {-2, 1}}}) {
    const TensorMap map = cuda::tensor_map(cuda::Im2colMap{in.data(),
                                                           cuda::MapElement::bf16,
                                                           {c, w, h, n},
                                                           {c * 2, c * w * 2, c * w * h * 2},
                                                           {corners.lower[0], corners.lower[1]},
                                                           {corners.upper[0], corners.upper[1]},
                                                           c,
                                                           pixels,
                                                           cuda::MapSwizzle::none});
    for (const int32_t skip : {0, 1}) {
      for (const auto& [s, r] : {std::pair<int, int>{0, 0}, {1, 0}, {0, 1}, {2, 2}}) {
        const Box box{{0, corners.lower[0] + skip, corners.lower[1] + skip, skip},
                      {static_cast<uint16_t>(s), static_cast<uint16_t>(r)},
                      pixels * c * 2,
                      0};
        cuda::launch("land", land<true>, for_image, Context{}, map, box, out.data());
        std::vector<uint16_t> firsts;  // of each pixel's channels
        const std::vector<uint16_t> image = out.host();
        for (size_t i = 0; i < pixels; ++i) firsts.push_back(image[i * c]);
        std::string name = "im2col";
        for (const int part : {corners.lower[0], corners.lower[1], corners.upper[0], corners.upper[1], skip, s, r}) {
          name += "_" + std::to_string(part);
        }
        print(name, firsts);
      }
    }
  }
}

// ---- wgmma ---------------------------------------------------------------------------------------------------------

constexpr uint32_t operand_bytes = 32 << 10;
constexpr int n = 32;
/// Which element of shared memory is b's (k, column): a picks row k, and b holds its elements' numbers, of which `high`
/// is the part from 2048 on. d: by row, then column.
template <Major B>
__global__ void __launch_bounds__(128) find_operand(uint64_t layout, uint32_t start, int high, float* out) {
  uint16_t* const image = reinterpret_cast<uint16_t*>(ptx::shared_memory());
  const unsigned i = threadIdx.x;
  for (unsigned at = i; at < operand_bytes / 2; at += 128) image[at] = half_of(high ? at / 2048 : at % 2048);
  ptx::fence_proxy_async();
  ptx::sync_threads();
  uint32_t a[4];
  const unsigned row = i / 32 * 16 + i % 32 / 4;
  for (unsigned r = 0; r < 4; ++r) {
    const unsigned this_row = row + r % 2 * 8, k = i % 4 * 2 + r / 2 * 8;
    a[r] = (this_row == k ? half_of(1) : 0) | uint32_t(this_row == k + 1 ? half_of(1) : 0) << 16;
  }
  float d[n / 2];
  ptx::wgmma_fence();
  ptx::wgmma<WgmmaType::f16, n, B>(
      d, a, layout + ptx::wgmma_descriptor(ptx::shared_memory() + start, Swizzle::none, 0, 0), false);
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  ptx::wgmma_hold(d);
  for (unsigned r = 0; r < n / 2; ++r) {
    const unsigned k = row + r / 2 % 2 * 8;
    if (k < 16) out[k * n + i % 4 * 2 + r / 4 * 8 + r % 2] = d[r];
  }
}

void dump_operand(const std::string& name, Major major, uint64_t layout, uint32_t start) {
  const cuda::Grid grid{.blocks = 1, .threads = 128, .shared_bytes = operand_bytes, .dependent = false};
  std::vector<float> parts[2];
  for (int high = 0; high < 2; ++high) {
    Buffer<float> out(std::vector<float>(16 * n));
    cuda::launch("find_operand", major == Major::k ? find_operand<Major::k> : find_operand<Major::mn>, grid, Context{},
                 layout, start, high, out.data());
    parts[high] = out.host();
  }
  for (size_t i = 0; i < parts[0].size(); ++i) parts[0][i] += 2048 * parts[1][i];
  print(name, parts[0]);
}

void dump_operands() {
  const struct {
    const char* name;
    Swizzle swizzle;
    uint32_t span;
  } all[] = {
      {"none", Swizzle::none, 16}, {"128", Swizzle::b128, 128}, {"64", Swizzle::b64, 64}, {"32", Swizzle::b32, 32}};
  const auto layout = [](Swizzle swizzle, uint64_t leading, uint64_t stride, uint64_t base_offset) {
    return leading >> 4 << 16 | stride >> 4 << 32 | base_offset << 49 | static_cast<uint64_t>(swizzle) << 62;
  };
  for (const auto& [name, swizzle, span] : all) {
    dump_operand(std::string("wgmma_k_major_") + name, Major::k, layout(swizzle, 0x1400, 0x800, 0), 0);
    dump_operand(std::string("wgmma_mn_major_") + name, Major::mn, layout(swizzle, 0x1400, 0x800, 0), 0);
    if (span >= 64) {
      dump_operand(std::string("wgmma_k_major_next_k_") + name, Major::k, layout(swizzle, 16, span * 8, 0), 32);
    }
  }
  // A halo of rows of 128 bytes, from which windows start at any row: tier C.
  for (uint32_t row = 1; row < 8; ++row) {
    for (const uint64_t base_offset : {uint64_t(0), uint64_t(row)}) {
      const std::string name = std::to_string(row) + "_base_" + std::to_string(base_offset);
      dump_operand("wgmma_k_major_from_row_" + name, Major::k, layout(Swizzle::b128, 16, 1024, base_offset), row * 128);
    }
  }
  // Groups of 8 rows, 10 rows apart: the windows of a halo tile.
  for (const uint32_t row : {0u, 1u, 2u, 10u, 11u}) {
    dump_operand("wgmma_k_major_halo_of_10_from_row_" + std::to_string(row), Major::k,
                 layout(Swizzle::b128, 16, 1280, 0), row * 128);
  }
  // The same of planes of 16 bytes of each pixel, without a swizzle: block 1's boxes.
  for (const uint32_t pixel : {0u, 1u, 2u, 10u, 11u, 22u}) {
    dump_operand("wgmma_k_major_planes_of_10_from_pixel_" + std::to_string(pixel), Major::k,
                 layout(Swizzle::none, 302 * 16, 160, 0), pixel * 16);
  }
}

/// d of every thread, where a's (row, k) is its number within the thread and b picks k as the column.
__global__ void __launch_bounds__(128) fragments(float* out) {
  uint16_t* const b = reinterpret_cast<uint16_t*>(ptx::shared_memory());
  const unsigned i = threadIdx.x;
  for (unsigned at = i; at < 16 * 16; at += 128) {
    const unsigned column = at / 16, k = at % 16;  // cores of 8 columns of 16 bytes
    b[column / 8 * 128 + k / 8 * 64 + column % 8 * 8 + k % 8] = half_of(column == k);
  }
  ptx::fence_proxy_async();
  ptx::sync_threads();
  uint32_t a[4];
  for (unsigned r = 0; r < 4; ++r) a[r] = half_of(i * 8 + r * 2) | uint32_t(half_of(i * 8 + r * 2 + 1)) << 16;
  float d[8];
  ptx::wgmma_fence();
  ptx::wgmma<WgmmaType::f16, 16>(d, a, ptx::wgmma_descriptor(b, Swizzle::none, 128, 256), false);
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  ptx::wgmma_hold(d);
  for (unsigned r = 0; r < 8; ++r) out[i * 8 + r] = d[r];
}

/// 2^15 + 2^(7 - column), or in e4m3 2^16 + 2^(6 - column), the two from different k: how many bits a sum keeps.
template <WgmmaType Type>
__global__ void __launch_bounds__(128) precision(float* out) {
  constexpr bool is_narrow = Type == WgmmaType::e4m3;
  char* const b = ptx::shared_memory();
  const unsigned i = threadIdx.x;
  reinterpret_cast<uint32_t*>(b)[i] = 0;
  ptx::sync_threads();
  if (i < 16) {
    const unsigned at = i / 8 * 256 + i % 8 * 16;
    if constexpr (is_narrow) {
      const unsigned small = i < 13 ? (13 - i) << 3 : 8 >> (i - 12);
      *reinterpret_cast<uint16_t*>(b + at) = static_cast<uint16_t>(15 << 3 | small << 8);
    } else {
      reinterpret_cast<uint16_t*>(b + at)[0] = static_cast<uint16_t>((15 + 127) << 7);
      reinterpret_cast<uint16_t*>(b + at)[1] = static_cast<uint16_t>((127 + 7 - i) << 7);
    }
  }
  ptx::fence_proxy_async();
  ptx::sync_threads();
  const uint32_t one = is_narrow ? (15 << 3) | (7 << 3) << 8 : (127 << 7) | (127 << 7) << 16;
  const uint32_t a[4] = {i == 0 ? one : 0, 0, 0, 0};
  float d[8];
  ptx::wgmma_fence();
  ptx::wgmma<Type, 16>(d, a, ptx::wgmma_descriptor(b, Swizzle::none, 128, 256), false);
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
  ptx::wgmma_hold(d);
  for (unsigned r = 0; r < 8; ++r) out[i * 8 + r] = d[r];
}

// ---- a warp's instructions -----------------------------------------------------------------------------------------

/// Registers of ldmatrix and its transpose; then shared memory after stmatrix and its transpose.
__global__ void __launch_bounds__(32) matrices(uint16_t* out) {
  uint16_t* const shared = reinterpret_cast<uint16_t*>(ptx::shared_memory());
  const unsigned lane = threadIdx.x;
  for (unsigned i = lane; i < 256; i += 32) shared[i] = static_cast<uint16_t>(i);
  ptx::sync_warp();
  uint32_t plain[4], transposed[4], numbers[4];
  ptx::ldmatrix_x4(plain, shared + lane * 8);
  ptx::ldmatrix_x4_trans(transposed, shared + lane * 8);
  for (unsigned r = 0; r < 4; ++r) {
    numbers[r] = (lane * 8 + r * 2) | (lane * 8 + r * 2 + 1) << 16;
    for (unsigned half = 0; half < 2; ++half) {
      out[lane * 8 + r * 2 + half] = static_cast<uint16_t>(plain[r] >> 16 * half);
      out[256 + lane * 8 + r * 2 + half] = static_cast<uint16_t>(transposed[r] >> 16 * half);
    }
  }
  ptx::stmatrix_x4(shared + 256 + lane * 8, numbers);
  ptx::stmatrix_x4_trans(shared + 512 + lane * 8, numbers);
  ptx::sync_warp();
  for (unsigned i = lane; i < 512; i += 32) out[512 + i] = shared[256 + i];
}

/// d of every lane of mma.sync: where a holds numbers and b picks k 0 to 7 or 8 to 15, and where b does and a picks.
__global__ void __launch_bounds__(32) warp_fragments(float* out) {
  const unsigned lane = threadIdx.x, group = lane / 4, within = lane % 4;
  const auto pair = [](unsigned low, unsigned high) { return half_of(low) | uint32_t(half_of(high)) << 16; };
  for (unsigned pass = 0; pass < 3; ++pass) {
    uint32_t a[4], b[2];
    for (unsigned r = 0; r < 4; ++r) {
      const unsigned row = group + r % 2 * 8, k = within * 2 + r / 2 * 8;
      a[r] = pass < 2 ? pair(lane * 8 + r * 2, lane * 8 + r * 2 + 1) : pair(row == k, row == k + 1);
    }
    for (unsigned r = 0; r < 2; ++r) {
      const unsigned k = within * 2 + r * 8, picked = group + pass * 8;
      b[r] = pass < 2 ? pair(picked == k, picked == k + 1) : pair(lane * 4 + r * 2, lane * 4 + r * 2 + 1);
    }
    float d[4] = {};
    ptx::mma_f16(d, a, b);
    for (unsigned r = 0; r < 4; ++r) out[pass * 128 + lane * 4 + r] = d[r];
  }
}

void dump_fragments() {
  const cuda::Grid warpgroup{.blocks = 1, .threads = 128, .shared_bytes = 4096, .dependent = false},
      warp{.blocks = 1, .threads = 32, .shared_bytes = 4096, .dependent = false};
  Buffer<float> d(std::vector<float>(1024)), bf16(std::vector<float>(1024)), e4m3(std::vector<float>(1024));
  Buffer<float> mma(std::vector<float>(384));
  Buffer<uint16_t> lanes(std::vector<uint16_t>(1024));
  cuda::launch("fragments", fragments, warpgroup, Context{}, d.data());
  print("wgmma_fragments", d.host());
  cuda::launch("matrices", matrices, warp, Context{}, lanes.data());
  print("ldmatrix_stmatrix", lanes.host());
  cuda::launch("warp_fragments", warp_fragments, warp, Context{}, mma.data());
  print("mma_fragments", mma.host());
  cuda::launch("precision", precision<WgmmaType::bf16>, warpgroup, Context{}, bf16.data());
  print("precision_bf16", bf16.host());
  cuda::launch("precision", precision<WgmmaType::e4m3>, warpgroup, Context{}, e4m3.data());
  print("precision_e4m3", e4m3.host());
}

}  // namespace

int main() {
  dump_swizzles();
  dump_im2col();
  dump_operands();
  dump_fragments();
  std::printf("\n}\n");
}
