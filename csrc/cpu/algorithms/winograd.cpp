#include "cpu/algorithms/winograd.h"

#include <algorithm>
#include <type_traits>

#include "cpu/parallel.h"

namespace vggfast::cpu {
namespace {

// A task's V and M should not take more floats than this: they are to lie in L2 (1 MB on the machine of development),
// less what streams through it.
constexpr int64_t cache_values = 160 << 10;
// With fewer tiles to a task, streaming the weights costs more than missing L2; the more so, the more products a clock
// makes. Of 8, 12, 16, 24 and 48 tiles, 16 were fastest on AVX2 (Zen 3, VGG-D's layers at batch 1 and 8). Tasks of 1, 2
// or 4 to a thread made no difference.
int64_t least_tiles_of(int64_t lanes) { return lanes > 8 ? 48 : 16; }
// Blocks of output channels whose products, or whose weights where they are packed for one call, are kept at a time;
// and those of an FC layer's task, so that its threads end together. Tasks so small made 3x3 layers of 28x28 slower,
// because each reads all of V, and those of 14x14 no faster (2 cores of Zen 3).
constexpr int64_t some_blocks = 8;
// Values of U that L3 does not keep: V is then read once, for all blocks of output channels.
constexpr int64_t large_values = 6 << 20;
// The fewest tiles that a thread transforms at a time where all threads work on one V. One V for all gained 1 to 2 % of
// a whole network at batch 1.
constexpr int64_t tiles_per_range = 4;

}  // namespace

Winograd::Winograd(int m, int64_t cin, int64_t cout)
    : kernels_(kernels()),
      table_(kernels_.winograd[m / 2]),
      m_(m),
      points_(m == 1 ? 1 : (m + 2) * (m + 2)),
      cin_(cin),
      cout_(cout),
      in_blocks_(ceil_div(cin, kernels_.lanes)),
      out_blocks_(ceil_div(cout, kernels_.lanes)) {}

int64_t Winograd::tiles_of(const TileGrid& grid, int64_t images) {
  return ceil_div(images, grid.down * grid.across) * grid.rows * grid.columns;
}

TileGrid Winograd::grid(int m, Extent in, bool mosaics) {
  const int64_t pitch_down = (in.h / 2 + 1) * 2, pitch_across = (in.w / 2 + 1) * 2;
  TileGrid best{ceil_div(in.h, m), ceil_div(in.w, m), 1, 1, pitch_down, pitch_across};
  if (!mosaics || m == 1) return best;
  for (int64_t down : {1, 2}) {
    for (int64_t across : {1, 2}) {
      const TileGrid grid{ceil_div((down - 1) * pitch_down + in.h, m),
                          ceil_div((across - 1) * pitch_across + in.w, m),
                          down,
                          across,
                          pitch_down,
                          pitch_across};
      if (tiles_of(grid, in.n) < tiles_of(best, in.n)) best = grid;
    }
  }
  return best;
}

int64_t Winograd::tiles(Extent in) const { return tiles_of(grid(m_, in, true), in.n); }

Winograd::Partition Winograd::partition(Extent in, bool mosaics, bool packed, int given_threads) const {
  const int64_t threads = std::max(given_threads, 1), rows = kernels_.gemm_rows, pairs = ceil_div(out_blocks_, 2);
  const int64_t least_tiles = least_tiles_of(kernels_.lanes);
  Partition part;
  part.grid = grid(m_, in, mosaics);
  part.tiles = tiles_of(part.grid, in.n);
  const int64_t fitting = cache_values / (points_ * (in_blocks_ + 2) * kernels_.lanes) / rows * rows;
  const int64_t parts = ceil_div(part.tiles, std::max(fitting, least_tiles));
  // An even number of tasks for each thread, where there are enough tiles for that.
  const int64_t even = ceil_div(parts, threads) * threads;
  const int64_t tasks = std::clamp<int64_t>(even, 1, std::max<int64_t>(part.tiles / least_tiles, 1));
  // By blocks where that gives more threads work, or as many and no weights packed as a whole: each task packs its own.
  const int64_t by_tiles = std::min(tasks, threads), by_pairs = std::min(pairs, threads);
  part.by_blocks = by_pairs > by_tiles || (!packed && by_pairs == by_tiles && part.tiles <= cout_);
  if (part.by_blocks) {
    part.tiles_per_task = std::max<int64_t>(part.tiles, 1);
    part.blocks_per_task = 2 * ceil_div(pairs, threads);
    if (!packed || m_ == 1) part.blocks_per_task = std::min(part.blocks_per_task, some_blocks);
    part.group = part.blocks_per_task;
  } else {
    part.tiles_per_task = std::max<int64_t>(ceil_div(part.tiles, tasks), 1);
    part.blocks_per_task = out_blocks_;
    part.group = weight_values() > large_values ? out_blocks_ : std::min(some_blocks, out_blocks_);
  }
  const auto planes = [&](int64_t blocks) { return points_ * (blocks * part.tiles_per_task | 1) * kernels_.lanes; };
  part.shared = part.by_blocks ? planes(in_blocks_) : 0;
  part.own = planes(part.group) + (part.by_blocks ? 0 : planes(in_blocks_));
  if (part.by_blocks && !packed) part.own += points_ * cin_ * part.blocks_per_task * kernels_.lanes;
  part.scratch = part.shared + threads * part.own;
  return part;
}

void Winograd::pad_bias(const float* bias, float* padded) const {
  std::fill_n(padded, out_blocks_ * kernels_.lanes, 0.0f);
  if (bias) std::copy_n(bias, cout_, padded);
}

void Winograd::pack(const WeightView<float>& weight, const float* bias, float* packed, int threads) const {
  parallel_for(ceil_div(out_blocks_, 2), threads, [&](int64_t pair, int) { table_.pack(weight, pair, packed); });
  pad_bias(bias, packed + weight_values());
}

template <class S, class U, class Kernel>
void Winograd::run_parallel(const Partition& part, const ConvInput<S>& in, const WeightView<float>* weight,
                            const U* packed, const float* bias, const ConvOutput<S>& out, float* scratch, int threads,
                            Kernel outputs) const {
  const auto inputs = table_.of<S>().inputs;
  const WinogradArgs<S, U> whole{part.grid, in.extent.n, cin_, packed, out_blocks_, bias, streamed(out, in.extent.n),
                                 part.group};
  float* const own = scratch + part.shared;
  if (!part.by_blocks) {
    parallel_for(ceil_div(part.tiles, part.tiles_per_task), threads, [&](int64_t task, int worker) {
      const int64_t begin = task * part.tiles_per_task, end = std::min(begin + part.tiles_per_task, part.tiles);
      float* v = own + worker * part.own;
      inputs(in, part.grid, begin, end, end - begin, v);
      outputs(whole, v, begin, end, 0, out_blocks_, v + points_ * (in_blocks_ * (end - begin) | 1) * kernels_.lanes);
    });
    return;
  }
  parallel_ranges(part.tiles, tiles_per_range, threads, [&](int64_t begin, int64_t end, int) {
    inputs(in, part.grid, begin, end, part.tiles, scratch + begin * kernels_.lanes);
  });
  parallel_for(ceil_div(out_blocks_, part.blocks_per_task), threads, [&](int64_t task, int worker) {
    const int64_t begin = task * part.blocks_per_task, end = std::min(begin + part.blocks_per_task, out_blocks_);
    float* products = own + worker * part.own;
    WinogradArgs<S, U> args = whole;
    args.packed = packed + begin * cin_ * kernels_.lanes;
    if constexpr (std::is_same_v<U, float>) {
      if (weight) {
        const WeightView<float> own_weight = weight->outputs(begin * kernels_.lanes, (end - begin) * kernels_.lanes);
        float* u = products + points_ * (part.group * part.tiles | 1) * kernels_.lanes;
        for (int64_t pair = 0; 2 * pair < end - begin; ++pair) table_.pack(own_weight, pair, u);
        args.packed = u;
        args.packed_blocks = end - begin;
      }
    }
    outputs(args, scratch, 0, part.tiles, begin, end, products);
  });
}

template <class S>
void Winograd::fprop(const ConvInput<S>& in, const float* packed, const float* bias, const ConvOutput<S>& out,
                     float* scratch, int threads) const {
  run_parallel(partition(in.extent, true, true, threads), in, nullptr, packed, bias ? bias : packed + weight_values(),
               out, scratch, threads, table_.of<S>().outputs);
}

template void Winograd::fprop(const ConvInput<float>&, const float*, const float*, const ConvOutput<float>&, float*,
                              int) const;
template void Winograd::fprop(const ConvInput<Bf16>&, const float*, const float*, const ConvOutput<Bf16>&, float*,
                              int) const;

void Winograd::fprop(const ConvInput<float>& in, const Bf16* packed, const float* bias, const ConvOutput<float>& out,
                     float* scratch, int threads) const {
  run_parallel(partition(in.extent, true, true, threads), in, nullptr, packed, bias, out, scratch, threads,
               kernels_.outputs_bf16_weights);
}

int64_t Winograd::workspace_values(Extent in, bool mosaics, int threads) const {
  const Partition part = partition(in, mosaics, false, threads);
  return packed_values() - (part.by_blocks ? weight_values() : 0) + part.scratch;
}

void Winograd::fprop(const ConvInput<float>& in, const WeightView<float>& weight, const float* bias,
                     const ConvOutput<float>& out, float* workspace, int threads) const {
  const Partition part = partition(in.extent, !in.pool, false, threads);
  const int64_t weights = part.by_blocks ? 0 : weight_values();
  if (part.by_blocks) {
    pad_bias(bias, workspace);
  } else {
    pack(weight, bias, workspace, threads);
  }
  run_parallel(part, in, part.by_blocks ? &weight : nullptr, workspace, workspace + weights, out,
               workspace + weights + out_blocks_ * kernels_.lanes, threads, table_.f32.outputs);
}

}  // namespace vggfast::cpu
