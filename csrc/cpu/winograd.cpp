#include "cpu/winograd.h"

#include <algorithm>

#include "cpu/parallel.h"
#include "cpu/streaming.h"

namespace vggfast::cpu {
namespace {

constexpr int64_t cache_values = 160 << 10;  // of V and M that a task should not exceed: L2, less what streams by
constexpr int64_t least_tiles = 48;          // but with fewer tiles, streaming the weights costs more than missing L2
constexpr int64_t some_blocks = 8;           // of output channels, whose products are kept at a time
constexpr int64_t large_values = 6 << 20;    // of U, more than L3 keeps: V is read once for all blocks instead

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

Winograd::Cut Winograd::cut(Extent in, bool mosaics, int given_threads) const {
  const int threads = std::max(given_threads, 1);
  Cut cut;
  cut.grid = grid(m_, in, mosaics);
  cut.tiles = tiles_of(cut.grid, in.n);
  const int64_t rows = kernels_.gemm_rows;
  const int64_t fitting = cache_values / (points_ * (in_blocks_ + 2) * kernels_.lanes) / rows * rows;
  const int64_t parts = ceil_div(cut.tiles, std::max(fitting, least_tiles));
  // An even number of tasks for each thread, where there are enough tiles for that.
  const int64_t even = ceil_div(parts, threads) * threads;
  cut.tile_tasks = std::clamp<int64_t>(even, 1, std::max<int64_t>(cut.tiles / least_tiles, 1));
  cut.tiles_per_task = std::max<int64_t>(ceil_div(cut.tiles, cut.tile_tasks), 1);
  cut.tile_tasks = ceil_div(cut.tiles, cut.tiles_per_task);
  // With too few tiles for the threads, tasks share out the output channels, each transforming the inputs again.
  const int64_t pairs = ceil_div(out_blocks_, 2);
  const int64_t splits = std::clamp<int64_t>(threads / std::max<int64_t>(cut.tile_tasks, 1), 1, pairs);
  cut.blocks_per_task = 2 * ceil_div(pairs, splits);
  cut.block_tasks = ceil_div(out_blocks_, cut.blocks_per_task);
  const bool all = splits == 1 && weight_values() > large_values;
  cut.group = all ? cut.blocks_per_task : std::min(some_blocks, cut.blocks_per_task);
  const int64_t planes = (in_blocks_ * cut.tiles_per_task | 1) + (cut.group * cut.tiles_per_task | 1);
  cut.scratch = points_ * planes * kernels_.lanes;
  return cut;
}

void Winograd::pack(const WeightView<float>& weight, const float* bias, float* packed, int threads) const {
  parallel_for(ceil_div(out_blocks_, 2), threads, [&](int64_t pair, int) { table_.pack(weight, pair, packed); });
  float* padded = packed + weight_values();
  std::fill_n(padded, out_blocks_ * kernels_.lanes, 0.0f);
  if (bias) std::copy_n(bias, cout_, padded);
}

template <class S, class U, class Kernel>
void Winograd::share(const ConvInput<S>& in, const U* packed, const float* bias, const ConvOutput<S>& out,
                     float* scratch, int threads, Kernel kernel) const {
  const Cut cut = this->cut(in.extent, !in.pool, threads);
  const WinogradArgs<S, U> args{in, cut.grid, packed, bias, streamed(out, in.extent.n), cut.group};
  parallel_for(cut.tile_tasks * cut.block_tasks, threads, [&](int64_t task, int worker) {
    const int64_t tile = task / cut.block_tasks * cut.tiles_per_task;
    const int64_t block = task % cut.block_tasks * cut.blocks_per_task;
    kernel(args, tile, std::min(tile + cut.tiles_per_task, cut.tiles), block,
           std::min(block + cut.blocks_per_task, out_blocks_), scratch + worker * cut.scratch);
  });
}

template <class S>
void Winograd::fprop(const ConvInput<S>& in, const float* packed, const ConvOutput<S>& out, float* scratch,
                     int threads) const {
  share(in, packed, packed + weight_values(), out, scratch, threads, table_.of<S>().fprop);
}

template void Winograd::fprop(const ConvInput<float>&, const float*, const ConvOutput<float>&, float*, int) const;
template void Winograd::fprop(const ConvInput<Bf16>&, const float*, const ConvOutput<Bf16>&, float*, int) const;

void Winograd::fprop(const ConvInput<float>& in, const Bf16* packed, const float* bias, const ConvOutput<float>& out,
                     float* scratch, int threads) const {
  share(in, packed, bias, out, scratch, threads, kernels_.fprop_bf16_weights);
}

}  // namespace vggfast::cpu
