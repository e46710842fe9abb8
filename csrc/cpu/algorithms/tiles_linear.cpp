#include "cpu/algorithms/tiles_linear.h"

#include <algorithm>
#include <bit>

#include "cpu/parallel.h"

namespace vggfast::cpu {
namespace {

constexpr int64_t block_values = 2 * tile_values;          // of 32 rows by 32 terms
constexpr int64_t sum_values = 4 * tile_rows * tile_rows;  // of a register block
constexpr int64_t most_rows = 256;       // whose sums of a task stay in L2: of more, some are multiplied at a time
constexpr int64_t most_blocks = 8;       // of 32 outputs (fprop, wgrad) or inputs (dgrad) that a task has
constexpr int64_t span_blocks = 32;      // of 32 inputs of wgrad's task, whose packed part of x stays in L2
constexpr int64_t tasks_each = 4;        // that a thread has at least, where there are blocks enough
constexpr int64_t pack_grain = 1 << 14;  // values that make a piece of work worth a thread

/// The bytes of a part of a workspace, in whole cache lines.
size_t part_bytes(int64_t values, size_t size) { return (static_cast<size_t>(values) * size + 63) / 64 * 64; }

int64_t blocks_of_task(int64_t blocks, int threads) {
  return std::clamp<int64_t>(blocks / (tasks_each * std::max(threads, 1)), 1, most_blocks);
}

/// Rows that fprop and dgrad multiply at a time, of all: about as many each time. The last ones may be one row alone.
int64_t group_of(int64_t rows) { return ceil_div(rows, std::max<int64_t>(ceil_div(rows, most_rows), 1)); }

/// Values of the packed tiles of `rows` rows of `terms` values.
int64_t packed_values(int64_t rows, int64_t terms) {
  return ceil_div(rows, tile_rows) * ceil_div(terms, tile_terms) * tile_values;
}

/// Floats of a task's scratch for each of its blocks: sums, and for dgrad a panel of weights.
int64_t scratch_values(int64_t rows, bool panel) {
  const int64_t panel_values = panel ? linear_panel_steps * block_values / 2 : 0;
  return ceil_div(rows, 2 * tile_rows) * sum_values + panel_values;
}

/// Tiles [16 rows][32 terms][16][32] of at(row, term), rounded to the nearest.
template <class At>
void pack_tiles(int64_t rows, int64_t terms, int threads, Bf16* to, At at) {
  const int64_t steps = ceil_div(terms, tile_terms);
  parallel_ranges(ceil_div(rows, tile_rows) * steps, pack_grain / tile_values, threads,
                  [&](int64_t begin, int64_t end, int) {
                    for (int64_t tile = begin; tile < end; ++tile) {
                      const int64_t first = tile / steps * tile_rows, term = tile % steps * tile_terms;
                      float whole[tile_values] = {};
                      for (int64_t r = 0; r < std::min(tile_rows, rows - first); ++r) {
                        for (int64_t t = 0; t < std::min(tile_terms, terms - term); ++t) {
                          whole[r * tile_terms + t] = at(first + r, term + t);
                        }
                      }
                      kernels().to_bf16(whole, tile_values, to + tile * tile_values);
                    }
                  });
}

float value_of(Bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

auto packer(const float*) { return kernels().tiles->linear_pack_f32; }
auto packer(const Bf16*) { return kernels().tiles->linear_pack_bf16; }

/// One row as fprop reads it, of which `room` may hold a copy.
const Bf16* row_of(const float* x, int64_t columns, Bf16* room) {
  kernels().to_bf16(x, columns, room);
  return room;
}
const Bf16* row_of(const Bf16* x, int64_t, Bf16*) { return x; }

}  // namespace

size_t TileLinear::fprop_bytes() const {
  const int64_t group = group_of(rows), task = blocks_of_task(ceil_div(outputs, 2 * tile_rows), threads);
  return part_bytes(packed_values(group, inputs), sizeof(Bf16)) +
         part_bytes(std::max(threads, 1) * task * scratch_values(group, false), sizeof(float));
}

template <class S>
void TileLinear::fprop(const S* x, const TileMatrix& weight, const float* bias, bool relu, float* y,
                       void* workspace) const {
  const int64_t group = group_of(rows), blocks = ceil_div(outputs, 2 * tile_rows);
  const int64_t task = blocks_of_task(blocks, threads), scratch = task * scratch_values(group, false);
  auto* const packed = static_cast<Bf16*>(workspace);
  auto* const sums = reinterpret_cast<float*>(packed + packed_values(group, inputs));
  for (int64_t first = 0; first < rows; first += group) {
    const int64_t count = std::min(group, rows - first);
    if (count > 1) {
      parallel_ranges(
          packed_values(count, inputs) / tile_values, pack_grain / tile_values, threads,
          [&](int64_t begin, int64_t end, int) { packer(x)(x + first * inputs, count, inputs, begin, end, packed); });
    }
    const TileLinearArgs args{.rows = count,
                              .inputs = inputs,
                              .outputs = outputs,
                              .weight = weight,
                              .x = count == 1 ? row_of(x + first * inputs, inputs, packed) : packed,
                              .bias = bias,
                              .relu = relu,
                              .y = y + first * outputs};
    parallel_for(ceil_div(blocks, task), threads, [&](int64_t number, int worker) {
      kernels().tiles->linear_fprop(args, number * task, std::min((number + 1) * task, blocks),
                                    sums + worker * scratch);
    });
  }
}

template void TileLinear::fprop(const float*, const TileMatrix&, const float*, bool, float*, void*) const;
template void TileLinear::fprop(const Bf16*, const TileMatrix&, const float*, bool, float*, void*) const;

size_t TileLinear::dgrad_bytes() const {
  const int64_t group = group_of(rows), task = blocks_of_task(ceil_div(inputs, tile_terms), threads);
  return part_bytes(packed_values(group, outputs), sizeof(Bf16)) +
         part_bytes(std::max(threads, 1) * task * scratch_values(group, true), sizeof(float));
}

void TileLinear::dgrad(const Bf16* gy, const Bf16* weight, Bf16* gx, void* workspace) const {
  const int64_t group = group_of(rows), blocks = ceil_div(inputs, tile_terms);
  const int64_t task = blocks_of_task(blocks, threads), scratch = task * scratch_values(group, true);
  auto* const packed = static_cast<Bf16*>(workspace);
  auto* const own = reinterpret_cast<float*>(packed + packed_values(group, outputs));
  for (int64_t first = 0; first < rows; first += group) {
    const int64_t count = std::min(group, rows - first);
    pack_tiles(count, outputs, threads, packed,
               [&](int64_t row, int64_t out) { return value_of(gy[(first + row) * outputs + out]); });
    const TileLinearArgs args{.rows = count,
                              .inputs = inputs,
                              .outputs = outputs,
                              .weight = matrix(weight),
                              .gy = packed,
                              .gx = gx + first * inputs};
    parallel_for(ceil_div(blocks, task), threads, [&](int64_t number, int worker) {
      kernels().tiles->linear_dgrad(args, number * task, std::min((number + 1) * task, blocks), own + worker * scratch);
    });
  }
}

size_t TileLinear::wgrad_bytes() const {
  const int64_t blocks = ceil_div(inputs, tile_terms), steps = ceil_div(rows, tile_terms);
  return part_bytes(packed_values(outputs, rows), sizeof(Bf16)) +
         part_bytes(blocks * steps * block_values, sizeof(Bf16));
}

void TileLinear::wgrad(const Bf16* x, const Bf16* gy, Bf16* gw, void* workspace) const {
  const int64_t blocks = ceil_div(inputs, tile_terms), steps = ceil_div(rows, tile_terms);
  auto* const packed_gy = static_cast<Bf16*>(workspace);
  auto* const packed_x = packed_gy + packed_values(outputs, rows);
  pack_tiles(outputs, rows, threads, packed_gy,
             [&](int64_t out, int64_t row) { return value_of(gy[row * outputs + out]); });
  parallel_ranges(rows > 0 ? blocks : 0, 1 + pack_grain / (1 + steps * block_values), threads,
                  [&](int64_t begin, int64_t end, int) {
                    kernels().tiles->linear_interleave(x + begin * tile_terms, inputs, rows,
                                                       std::min(end * tile_terms, inputs) - begin * tile_terms,
                                                       packed_x + begin * steps * block_values);
                  });
  const TileLinearArgs args{
      .rows = rows,
      .inputs = inputs,
      .outputs = outputs,
      .x = packed_x,
      .gy = packed_gy,
      .gw = gw,
      .stream = inputs % 2 == 0 && streams(reinterpret_cast<float*>(gw), outputs * inputs / 2, inputs / 2)};
  const int64_t out_blocks = ceil_div(outputs, 2 * tile_rows), task = blocks_of_task(out_blocks, threads);
  const int64_t groups = ceil_div(out_blocks, task), spans = ceil_div(blocks, span_blocks);
  parallel_for(spans * groups, threads, [&](int64_t number, int) {
    const int64_t span = number / groups * span_blocks, out = number % groups * task;
    kernels().tiles->linear_wgrad(args, out, std::min(out + task, out_blocks), span,
                                  std::min(span + span_blocks, blocks));
  });
}

// ---- FC layers of an engine -----------------------------------------------------------------------------------------

namespace {

/// Weights as they are kept: tiles one after another, of 16 outputs each, and the bias.
struct KeptWeights {
  int64_t inputs, outputs, steps = ceil_div(inputs, tile_terms);

  explicit KeptWeights(const ConvProblem& p) : inputs(p.in.c), outputs(p.cout) {}
  int64_t values() const { return packed_values(outputs, inputs); }
  size_t bytes() const { return static_cast<size_t>(values()) * sizeof(Bf16) + bias_bytes(); }
  size_t bias_bytes() const { return static_cast<size_t>(outputs) * sizeof(float); }
  float* bias(void* packed) const { return reinterpret_cast<float*>(static_cast<Bf16*>(packed) + values()); }
};

TileLinear layer_of(const ConvProblem& p) { return {p.in.n, p.in.c, p.cout, p.threads}; }

bool supports(const ConvProblem& p) {
  return kernels().tiles && p.pass == Pass::fprop && p.dtype == DType::f32 && p.kernel == 1 && p.packed &&
         p.bf16_weights && p.in.h == 1 && p.in.w == 1 && !p.epilogue.pool;
}

size_t packed_bytes(const ConvProblem& p) { return KeptWeights(p).bytes(); }
size_t workspace_bytes(const ConvProblem& p) { return layer_of(p).fprop_bytes(); }

void pack(const ConvProblem& p, const WeightView<float>& w, const float* bias, void* packed) {
  const KeptWeights kept(p);
  pack_tiles(kept.outputs, kept.inputs, p.threads, static_cast<Bf16*>(packed),
             [&](int64_t out, int64_t in) { return w.data[out * w.stride_out + in * w.stride_in]; });
  float* to = kept.bias(packed);
  std::fill_n(to, kept.outputs, 0.0f);
  if (bias) std::copy_n(bias, kept.outputs, to);
}

void run(const ConvProblem& p, const ConvCall& call) {
  const KeptWeights kept(p);
  void* packed = const_cast<void*>(call.packed);
  layer_of(p).fprop(static_cast<const float*>(call.in.data),
                    {static_cast<Bf16*>(packed), tile_terms, tile_values, kept.steps * tile_values}, kept.bias(packed),
                    call.out.relu, static_cast<float*>(call.out.y), call.workspace);
}

}  // namespace

// `cost` and `roundings` are read of the table's algorithms alone.
const ConvAlgorithm tiles_linear_conv{.name = "tiles",
                                      .settable = false,
                                      .roundings = 0,
                                      .supports = supports,
                                      .cost = nullptr,
                                      .packed_bytes = packed_bytes,
                                      .workspace_bytes = workspace_bytes,
                                      .pack = pack,
                                      .run = run,
                                      .run_wgrad = nullptr};

}  // namespace vggfast::cpu
