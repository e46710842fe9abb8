// Direct convolution on tile registers, in bfloat16: sizes, packing, and how threads divide the work.
// Kernels: cpu/kernels/tile_conv.h.
#include <algorithm>
#include <bit>

#include "cpu/algorithms/blocked.h"
#include "cpu/algorithms/conv_algorithm.h"
#include "cpu/parallel.h"

namespace vggfast::cpu {
namespace {

constexpr int64_t tap_values = block_channels * block_channels;  // of packed weights
constexpr int64_t cache_bytes = 1200 << 10;  // of packed weights that a task reads for each pair of rows: more than
                                             // half of the L2 of processors with tiles, 2 MB
constexpr int64_t task_products = 1 << 14;   // of tiles, 5 ns each, that make a task
constexpr int64_t grain_values = 1 << 14;    // of maps put into blocks that make a piece of work worth a thread
/// Products of bfloat16 on tiles to one of floats in vectors: 3,200 to 215 GFLOP/s of a core (Xeon of the 4th
/// generation).
constexpr int64_t speed = 15;

int64_t padded(int64_t channels) { return ceil_div(channels, block_channels) * block_channels; }

/// To the nearest, ties to even; NaN stays NaN.
Bf16 to_bf16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return {static_cast<uint16_t>(x != x ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

/// One layer's convolution, 3x3 or 1x1.
class TileConv {
 public:
  TileConv(int64_t cin, int64_t cout, int64_t kernel)
      : cout_(cout),
        kernel_(kernel),
        in_blocks_(ceil_div(cin, block_channels)),
        out_blocks_(ceil_div(cout, block_channels)),
        block_values_(in_blocks_ * kernel * kernel * tap_values) {}

  /// Packed weights, with the padded bias behind them.
  size_t packed_bytes() const {
    return weight_bytes() + sizeof(float) * static_cast<size_t>(out_blocks_ * block_channels);
  }
  void pack(const WeightView<float>& weight, const float* bias, void* packed, int threads) const;
  /// `y`: where it has memory, it is written in place of out.y.
  void fprop(const Extent& in, const BlockedMap& x, const void* packed, const ConvOutput<Bf16>& out,
             const BlockedMap& y, int threads) const;

 private:
  size_t weight_bytes() const { return sizeof(Bf16) * static_cast<size_t>(out_blocks_ * block_values_); }
  const float* bias_of(const void* packed) const {
    return reinterpret_cast<const float*>(static_cast<const std::byte*>(packed) + weight_bytes());
  }

  int64_t cout_, kernel_, in_blocks_, out_blocks_, block_values_;
};

/// One block of output channels by one of input channels at one tap: [half of the outputs][pair of
/// inputs][output][input].
void pack_tap(const WeightView<float>& w, int64_t out_block, int64_t in_block, int64_t tap, Bf16* to) {
  const float* from = w.data + tap / w.kernel * w.stride_row + tap % w.kernel * w.stride_column;
  for (int64_t i = 0; i < tap_values; ++i) {
    const int64_t out = out_block * block_channels + i / 512 * 16 + i / 2 % 16;
    const int64_t in = in_block * block_channels + i % 512 / 32 * 2 + i % 2;
    to[i] = to_bf16(out < w.out && in < w.in ? from[out * w.stride_out + in * w.stride_in] : 0);
  }
}

void TileConv::pack(const WeightView<float>& weight, const float* bias, void* packed, int threads) const {
  const int64_t taps = kernel_ * kernel_;
  parallel_for(out_blocks_ * in_blocks_, threads, [&](int64_t task, int) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      pack_tap(weight, task / in_blocks_, task % in_blocks_, tap,
               static_cast<Bf16*>(packed) + (task * taps + tap) * tap_values);
    }
  });
  float* padded_bias = const_cast<float*>(bias_of(packed));
  std::fill_n(padded_bias, out_blocks_ * block_channels, 0.0f);
  if (bias) std::copy_n(bias, cout_, padded_bias);
}

/// Tasks are handed out with the blocks of output channels outermost, so that a thread finds its weights in its L2.
void TileConv::fprop(const Extent& in, const BlockedMap& x, const void* packed, const ConvOutput<Bf16>& out,
                     const BlockedMap& y, int threads) const {
  const TileConvArgs args{.x = x,
                          .h = in.h,
                          .w = in.w,
                          .kernel = kernel_,
                          .packed = static_cast<const Bf16*>(packed),
                          .bias = bias_of(packed),
                          .out = out,
                          .y = y};
  const int64_t pairs = out.pool ? out.h : ceil_div(in.h, 2);
  const int64_t block_bytes = block_values_ * static_cast<int64_t>(sizeof(Bf16));
  const int64_t blocks = std::clamp<int64_t>(cache_bytes / block_bytes, 1, out_blocks_);  // of a task
  const int64_t pair_products = ceil_div(in.w, 16) * 4 * blocks * in_blocks_ * kernel_ * kernel_;
  const int64_t task_pairs =
      std::clamp<int64_t>(task_products / std::max<int64_t>(pair_products, 1), 1, std::max<int64_t>(pairs, 1));
  const int64_t strips = ceil_div(pairs, task_pairs), groups = ceil_div(out_blocks_, blocks);
  parallel_for(groups * in.n * strips, threads, [&](int64_t task, int) {
    const int64_t pair = task % strips * task_pairs, image = task / strips % in.n,
                  block = task / (strips * in.n) * blocks;
    kernels().tiles->conv(args, image, pair, std::min(pair + task_pairs, pairs), block,
                          std::min(block + blocks, out_blocks_));
  });
}

bool supports(const ConvProblem& p) {
  if (!kernels().tiles || p.dtype != DType::bf16 || p.bf16_weights || p.pass == Pass::wgrad) return false;
  return !p.packed || p.pass == Pass::fprop;
}

ConvEstimate cost(const ConvProblem& p) {
  return {p.in.n * p.in.h * p.in.w * p.kernel * p.kernel * padded(p.in.c) * padded(p.cout) / speed, 0};
}

TileConv layer_of(const ConvProblem& p) { return {p.in.c, p.cout, p.kernel}; }

size_t packed_bytes(const ConvProblem& p) { return layer_of(p).packed_bytes(); }

size_t workspace_bytes(const ConvProblem& p) {
  return (p.blocked_in ? 0 : blocked_bytes(p.in)) + (p.packed ? 0 : layer_of(p).packed_bytes());
}

void pack(const ConvProblem& p, const WeightView<float>& weight, const float* bias, void* packed) {
  layer_of(p).pack(weight, bias, packed, p.threads);
}

void run(const ConvProblem& p, const ConvCall& call) {
  const TileConv layer = layer_of(p);
  const void* packed = call.packed;
  auto* free = static_cast<std::byte*>(call.workspace);
  if (!p.packed) {
    layer.pack(cast<float>(call.weight), static_cast<const float*>(call.bias), free, p.threads);
    packed = free;
    free += layer.packed_bytes();
  }
  const BlockedMap x = blocked_map(p.blocked_in ? const_cast<void*>(call.in.data) : free, p.in);
  if (!p.blocked_in) block_maps(cast<Bf16>(call.in), x, p.threads);
  const ConvOutput<Bf16> out = cast<Bf16>(call.out);
  const BlockedMap y = p.blocked_out ? blocked_map(out.y, {p.in.n, out.h, out.w, out.c}) : BlockedMap{};
  layer.fprop(p.in, x, packed, out, y, p.threads);
}

}  // namespace

BlockedMap blocked_map(void* data, const Extent& e) {
  const int64_t blocks = ceil_div(e.c, block_channels), row = (e.w + 2) * block_channels, plane = (e.h + 2) * row;
  return {static_cast<Bf16*>(data), blocks, row, plane, blocks * plane};
}

size_t blocked_bytes(const Extent& e) {
  const BlockedMap map = blocked_map(nullptr, e);
  return sizeof(Bf16) * static_cast<size_t>(e.n * map.image + map.row + 16 * block_channels);
}

void block_maps(const ConvInput<Bf16>& in, const BlockedMap& to, int threads) {
  parallel_ranges(in.extent.n * (in.extent.h + 2), 1 + grain_values / (to.blocks * to.row), threads,
                  [&](int64_t begin, int64_t end, int) { kernels().tiles->block_maps(in, to, begin, end); });
}

// Its weights are rounded to bfloat16, which is what `roundings` are.
const ConvAlgorithm tiles_conv{.name = "tiles",
                               .settable = false,
                               .roundings = 1 << 14,
                               .supports = supports,
                               .cost = cost,
                               .packed_bytes = packed_bytes,
                               .workspace_bytes = workspace_bytes,
                               .pack = pack,
                               .run = run,
                               .run_wgrad = nullptr};

}  // namespace vggfast::cpu
