// Direct convolution on tile registers, of bfloat16 ("tiles") or of floats in 2 or 3 pieces of it ("bf16x3", "bf16x6",
// called by their products): sizes, packing, and how threads divide the work.
// Kernels: cpu/kernels/tile_conv.h, cpu/kernels/tile_stem.h.
#include "cpu/algorithms/tiles.h"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>

#include "cpu/parallel.h"

namespace vggfast::cpu {
namespace {

constexpr int64_t block_channels = BlockedMap<Bf16>::channels;   // of inputs; as many as of outputs
constexpr int64_t step_values = block_channels * block_outputs;  // of packed weights: of one product of 32 inputs
constexpr int64_t tile_outputs = 16;
static_assert(step_values * sizeof(Bf16) == tap_bytes);
constexpr int64_t cache_bytes = 1200 << 10;  // of packed weights that a task reads for each pair of rows: more than
                                             // half of the L2 of processors with tiles, 2 MB
constexpr int64_t strip_bytes = 512 << 10;   // of what passes from layer to layer of block 1
constexpr int64_t strip_rows = 16;           // at most
constexpr int64_t task_products = 1 << 14;   // of tiles, 5 ns each, that make a task
constexpr int64_t grain_values = 1 << 14;    // of maps put into blocks that make a piece of work worth a thread
/// What an algorithm costs beside its products that "auto" is not to take.
constexpr double never = std::numeric_limits<double>::infinity();
constexpr int64_t stem_channels = 3, stem_column = 11;  // of a line of the first layer's kernel

int64_t padded(int64_t channels) { return ceil_div(channels, block_channels) * block_channels; }

/// A layer's weights: for each block of 32 outputs and each piece, the `steps` products that its sums take; and the
/// padded bias.
struct TileWeights {
  int64_t cout, steps, pieces = 1;

  int64_t blocks() const { return ceil_div(cout, block_channels); }
  size_t weight_bytes() const { return sizeof(Bf16) * static_cast<size_t>(blocks() * pieces * steps * step_values); }
  size_t bytes() const { return weight_bytes() + sizeof(float) * static_cast<size_t>(blocks() * block_channels); }
  const float* bias(const void* packed) const {
    return reinterpret_cast<const float*>(static_cast<const std::byte*>(packed) + weight_bytes());
  }

  /// A step is [half of the outputs][pair of inputs][output][input]. of_step(step) gives a function of an output and of
  /// the step's 32 inputs. Weights of one piece are rounded to nearest even.
  template <class OfStep>
  void pack(OfStep of_step, const float* from_bias, void* packed, int threads) const {
    parallel_for(blocks() * steps, threads, [&](int64_t task, int) {
      const int64_t first = task / steps * block_channels;
      const auto at = of_step(task % steps);
      float whole[step_values], *to = whole;
      for (int64_t half = first; half < first + block_channels; half += tile_outputs) {
        for (int64_t pair = 0; pair < block_channels; pair += 2) {
          for (int64_t out = half; out < half + tile_outputs; ++out, to += 2) {
            to[0] = out < cout ? at(out, pair) : 0;
            to[1] = out < cout ? at(out, pair + 1) : 0;
          }
        }
      }
      const int64_t step = task / steps * pieces * steps + task % steps;  // of the first piece
      Bf16* const first_piece = static_cast<Bf16*>(packed) + step * step_values;
      if (pieces == 1) {
        kernels().to_bf16(whole, step_values, first_piece);
      } else {
        kernels().tiles->split(whole, step_values, pieces, first_piece, steps * step_values);
      }
    });
    float* to = const_cast<float*>(bias(packed));
    std::fill_n(to, blocks() * block_channels, 0.0f);
    if (from_bias) std::copy_n(from_bias, cout, to);
  }
};

TileWeights conv_weights(const ConvProblem& p, int64_t pieces) {
  return {p.cout, ceil_div(p.in.c, block_channels) * p.kernel * p.kernel, pieces};
}
TileWeights stem_weights(const ConvProblem& p) { return {p.cout, 1}; }

template <int pieces>
void pack_conv(const ConvProblem& p, const WeightView<float>& w, const float* bias, void* packed) {
  const int64_t taps = p.kernel * p.kernel;
  const auto of_step = [&](int64_t step) {
    const int64_t first = step / taps * block_channels, tap = step % taps;
    const float* from = w.data + first * w.stride_in + tap / w.kernel * w.stride_row + tap % w.kernel * w.stride_column;
    return [&w, from, rest = w.in - first](int64_t out, int64_t i) {
      return i < rest ? from[out * w.stride_out + i * w.stride_in] : 0.0f;
    };
  };
  conv_weights(p, pieces).pack(of_step, bias, packed, p.threads);
}

void pack_stem(const ConvProblem& p, const WeightView<float>& w, const float* bias, void* packed) {
  const auto at = [&](int64_t out, int64_t i) {
    const int64_t column = i / stem_column, row = i % stem_column / stem_channels, in = i % stem_column % stem_channels;
    if (column >= 3 || row >= 3 || in >= w.in) return 0.0f;
    return w.data[out * w.stride_out + in * w.stride_in + row * w.stride_row + column * w.stride_column];
  };
  stem_weights(p).pack([&](int64_t) { return at; }, bias, packed, p.threads);
}

/// A call as kernels take it; x is to be set. y is written in blocks where the problem says so.
template <class S>
TileConvArgs<S> args_of(const ConvProblem& p, const TileWeights& weights, const void* packed,
                        const ConvOutput<void>& out) {
  return {.x = {},
          .h = p.in.h,
          .w = p.in.w,
          .kernel = p.kernel,
          .packed = static_cast<const Bf16*>(packed),
          .bias = weights.bias(packed),
          .out = cast<S>(out),
          .y = p.blocked_out ? blocked_map<Bf16>(out.y, {p.in.n, out.h, out.w, out.c}) : BlockedMap<Bf16>{}};
}

/// Where a call's packed weights lie: where the caller packed them, or at the start of the workspace, packed now.
/// Leaves the rest of the workspace.
template <class Pack>
const void* packed_of(const ConvProblem& p, const ConvCall& call, const TileWeights& weights, Pack pack,
                      std::byte*& workspace) {
  workspace = static_cast<std::byte*>(call.workspace);
  if (p.packed) return call.packed;
  pack(p, cast<float>(call.weight), static_cast<const float*>(call.bias), workspace);
  return std::exchange(workspace, workspace + weights.bytes());
}

template <class S>
void block_maps(const ConvInput<S>& in, const BlockedMap<Bf16>& to, int threads) {
  parallel_ranges(in.extent.n * (in.extent.h + 2), 1 + grain_values / (1 + to.pieces * to.blocks * to.row), threads,
                  [&](int64_t begin, int64_t end, int) { kernels().tiles->block_maps<S>()(in, to, begin, end); });
}

template <int pieces>
void run_conv(const ConvProblem& p, const ConvCall& call) {
  using S = std::conditional_t<pieces == 1, Bf16, float>;
  std::byte* free;
  const TileWeights weights = conv_weights(p, pieces);
  const void* packed = packed_of(p, call, weights, pack_conv<pieces>, free);
  TileConvArgs<S> args = args_of<S>(p, weights, packed, call.out);
  args.x = blocked_map<Bf16>(p.blocked_in ? const_cast<void*>(call.in.data) : free, p.in, pieces);
  if (!p.blocked_in) block_maps(cast<S>(call.in), args.x, p.threads);
  const int64_t pairs = args.out.pool ? args.out.h : ceil_div(p.in.h, 2);
  for_tile_tasks({p.in.n, pairs, p.in.w, weights.blocks(), weights.steps, pieces}, p.threads,
                 [&](auto... range) { kernels().tiles->conv<S>()(args, range...); });
}

int64_t line_values(int64_t w) { return padded(stem_column * (w + tile_pixels + 2)); }
/// Two lines for each thread.
size_t line_bytes(const ConvProblem& p) {
  return sizeof(Bf16) * static_cast<size_t>(2 * line_values(p.in.w) * std::max(p.threads, 1));
}

void run_stem(const ConvProblem& p, const ConvCall& call) {
  std::byte* free;
  const TileWeights weights = stem_weights(p);
  const void* packed = packed_of(p, call, weights, pack_stem, free);
  const TileConvArgs args = args_of<Bf16>(p, weights, packed, call.out);
  const int64_t rows = args.out.pool ? 2 * args.out.h : p.in.h, strips = ceil_div(rows, strip_rows);
  parallel_for(p.in.n * strips, p.threads, [&](int64_t task, int worker) {
    const int64_t row = task % strips * strip_rows, line = line_values(p.in.w);
    kernels().tiles->stem(cast<Bf16>(call.in), args, task / strips, row, std::min(row + strip_rows, rows),
                          reinterpret_cast<Bf16*>(free) + 2 * line * worker, line);
  });
}

template <int pieces>
bool supports(const ConvProblem& p) {
  if (!kernels().tiles || p.dtype != (pieces == 1 ? DType::bf16 : DType::f32) || p.bf16_weights) return false;
  if (pieces > 1 && (p.blocked_in || p.blocked_out)) return false;
  return p.pass == Pass::fprop || (p.pass == Pass::dgrad && !p.packed);
}
bool stem_supports(const ConvProblem& p) {
  return supports<1>(p) && p.pass == Pass::fprop && p.kernel == 3 && p.in.c <= stem_channels;
}

ConvEstimate cost_of(const ConvProblem& p, const TileWeights& weights) {
  const int64_t products = weights.steps * products_of(weights.pieces) * block_channels * padded(p.cout);
  return {p.in.n * p.in.h * p.in.w * products / tile_speed, weights.pieces > 1 ? never : 0};
}
template <int pieces>
ConvEstimate cost(const ConvProblem& p) {
  return cost_of(p, conv_weights(p, pieces));
}
ConvEstimate stem_cost(const ConvProblem& p) { return cost_of(p, stem_weights(p)); }

template <int pieces>
size_t packed_bytes(const ConvProblem& p) {
  return conv_weights(p, pieces).bytes();
}
size_t stem_packed_bytes(const ConvProblem& p) { return stem_weights(p).bytes(); }

template <int pieces>
size_t workspace_bytes(const ConvProblem& p) {
  return (p.blocked_in ? 0 : blocked_bytes<Bf16>(p.in, pieces)) + (p.packed ? 0 : packed_bytes<pieces>(p));
}
size_t stem_workspace_bytes(const ConvProblem& p) { return line_bytes(p) + (p.packed ? 0 : stem_packed_bytes(p)); }

/// Rows of a strip of block 1.
int64_t strip_rows_of(const ConvProblem& second) {
  const BlockedMap row = blocked_map<Bf16>(nullptr, {1, 0, second.in.w, second.in.c});
  const int64_t row_bytes = std::max<int64_t>(row.blocks * row.row * static_cast<int64_t>(sizeof(Bf16)), 1);
  return std::clamp<int64_t>((strip_bytes / row_bytes - 2) / 2 * 2, 2, strip_rows);
}

/// The map between its two layers: a strip as an image of its own. One row more where the image's last is no strip's.
Extent strip_of(const ConvProblem& second) {
  return {1, strip_rows_of(second) + second.in.h % 2, second.in.w, second.in.c};
}

}  // namespace

void for_tile_tasks(const TileWork& work, int threads,
                    const std::function<void(int64_t, int64_t, int64_t, int64_t, int64_t)>& body) {
  const int64_t blocks = std::clamp<int64_t>(cache_bytes / (1 + work.pieces * work.taps * tap_bytes), 1,
                                             std::max<int64_t>(work.blocks, 1));  // of a task
  const int64_t pair_products = ceil_div(work.width, tile_pixels) * 4 * blocks * work.taps * products_of(work.pieces);
  const int64_t task_pairs = std::max<int64_t>(task_products / std::max<int64_t>(pair_products, 1), 1);
  const int64_t strips = ceil_div(work.pairs, task_pairs), groups = ceil_div(work.blocks, blocks);
  parallel_for(groups * work.images * strips, threads, [&](int64_t task, int) {
    const int64_t pair = task % strips * task_pairs, image = task / strips % work.images;
    const int64_t block = task / (strips * work.images) * blocks;
    body(image, pair, std::min(pair + task_pairs, work.pairs), block, std::min(block + blocks, work.blocks));
  });
}

size_t tile_block1_bytes(const ConvProblem& first, const ConvProblem& second) {
  return line_bytes(first) + static_cast<size_t>(std::max(first.threads, 1)) * blocked_bytes<Bf16>(strip_of(second));
}

void run_tile_block1(const ConvProblem& first, const ConvCall& first_call, const ConvProblem& second,
                     const ConvCall& second_call) {
  const Extent& in = first.in;
  const Extent strip = strip_of(second);
  const TileWeights weights = conv_weights(second, 1);
  const ConvOutput<void> between{.y = nullptr, .h = in.h, .w = in.w, .c = first.cout, .relu = true};
  const TileConvArgs stem = args_of<Bf16>(first, stem_weights(first), first_call.packed, between);
  const TileConvArgs conv = args_of<Bf16>(second, weights, second_call.packed, second_call.out);
  const int64_t rows = 2 * second_call.out.h, each = strip_rows_of(second), strips = ceil_div(rows, each);
  const int64_t line = line_values(in.w);
  auto* const lines = static_cast<Bf16*>(second_call.workspace);
  auto* const maps = static_cast<std::byte*>(second_call.workspace) + line_bytes(first);
  parallel_for(in.n * strips, first.threads, [&](int64_t task, int worker) {
    const int64_t image = task / strips, row = task % strips * each, end = std::min(row + each, rows);
    BlockedMap map = blocked_map<Bf16>(maps + static_cast<size_t>(worker) * blocked_bytes<Bf16>(strip), strip);
    map.image = 0;  // it is the strip of whatever image
    TileConvArgs upper = stem, lower = conv;
    upper.y = lower.x = map;
    upper.y_top = lower.x_top = row;
    kernels().tiles->stem(cast<Bf16>(first_call.in), upper, image, std::max<int64_t>(row - 1, 0),
                          std::min(end + 1, in.h), lines + 2 * line * worker, line);
    kernels().tiles->conv_bf16(lower, image, row / 2, end / 2, 0, weights.blocks());
  });
}

namespace {

template <int pieces>
constexpr ConvAlgorithm tiles(const char* name, int roundings) {
  return {.name = name,
          .settable = pieces > 1,
          .on_tiles = true,
          .roundings = roundings,
          .supports = supports<pieces>,
          .cost = cost<pieces>,
          .packed_bytes = packed_bytes<pieces>,
          .workspace_bytes = workspace_bytes<pieces>,
          .pack = pack_conv<pieces>,
          .run = run_conv<pieces>,
          .run_wgrad = nullptr};
}

constexpr int of_bf16 = 1 << 14;  // `roundings` of weights rounded to bfloat16

}  // namespace

// No processor with tiles has run those of floats. There, `VGGFAST_CPU_ISA=amx python benchmarks/bench_conv.py --passes
// fprop dgrad` times them beside the others: if bf16x6 is faster than direct, set_exact (vggfast/_native.py) should ask
// for it; if bf16x3 is faster than Winograd's, splitting x and the weights has a cost to put in place of `never`.
const ConvAlgorithm tiles_conv = tiles<1>("tiles", of_bf16);
const ConvAlgorithm bf16x3_conv = tiles<2>("bf16x3", 256);
const ConvAlgorithm bf16x6_conv = tiles<3>("bf16x6", 8);

const ConvAlgorithm tiles_stem_conv{.name = "tiles",
                                    .settable = false,
                                    .on_tiles = true,
                                    .roundings = of_bf16,
                                    .supports = stem_supports,
                                    .cost = stem_cost,
                                    .packed_bytes = stem_packed_bytes,
                                    .workspace_bytes = stem_workspace_bytes,
                                    .pack = pack_stem,
                                    .run = run_stem,
                                    .run_wgrad = nullptr};

}  // namespace vggfast::cpu
