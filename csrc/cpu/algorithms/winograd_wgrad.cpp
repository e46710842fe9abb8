#include "cpu/algorithms/winograd_wgrad.h"

#include <algorithm>

#include "cpu/algorithms/winograd.h"
#include "cpu/parallel.h"

namespace vggfast::cpu {
namespace {

constexpr int64_t largest_group_du = 3 << 20;      // values of dU up to which groups of tiles have one each
constexpr int64_t groups_values = 12 << 20;        // of all groups' dU
constexpr int64_t group_chunk_values = 160 << 10;  // of V and Z that a task should not exceed: most of L2
constexpr int64_t least_tiles = 32;                // but with fewer tiles, reading and writing dU costs more
constexpr int64_t shared_chunk_values = 2 << 20;   // of V and Z that should lie in L3
constexpr int64_t tiles_per_task = 16;             // to transform, where all threads work on one chunk
constexpr int64_t blocks_per_task = 8;             // of output channels at most, where a task has its own part of dU

}  // namespace

WinogradWgrad::WinogradWgrad(int m, Extent in, int64_t cout, bool mosaics)
    : kernels_(kernels()),
      table_(kernels_.winograd[m / 2]),
      in_(in),
      cout_(cout),
      points_(m == 1 ? 1 : (m + 2) * (m + 2)),
      in_blocks_(ceil_div(in.c, kernels_.lanes)),
      out_blocks_(ceil_div(cout, kernels_.lanes)),
      grid_(Winograd::grid(m, in, mosaics)),
      tiles_(Winograd::tiles_of(grid_, in.n)) {
  const int64_t tile_values = points_ * (in_blocks_ + out_blocks_) * kernels_.lanes, du = points_ * du_plane();
  chunk_ = std::max(group_chunk_values / tile_values, least_tiles);
  groups_ = std::min(tiles_ / chunk_, std::clamp<int64_t>(groups_values / du, 4, 16));
  if (du <= largest_group_du && groups_ > 1) {
    sums_ = groups_;
  } else {
    // Chunks that L3 holds, but no shorter than what makes reading and writing dU, chunk after chunk, a small part.
    const int64_t worthwhile = in_blocks_ * out_blocks_ * kernels_.lanes / (in_blocks_ + out_blocks_);
    const int64_t chunks = ceil_div(tiles_, std::max(shared_chunk_values / tile_values, worthwhile));
    groups_ = 1;
    chunk_ = chunks > 0 ? ceil_div(tiles_, chunks) : 1;
    sums_ = ceil_div(chunk_, tiles_per_task);
  }
}

/// As many for each thread.
int64_t WinogradWgrad::block_tasks(int threads) const {
  const int64_t each = std::max(threads, 1);
  return std::min(ceil_div(ceil_div(out_blocks_, blocks_per_task), each) * each, out_blocks_);
}

int64_t WinogradWgrad::workspace_values(int threads) const {
  const int64_t du = by_blocks(threads)
                         ? std::max(threads, 1) * ceil_div(out_blocks_, block_tasks(threads)) * du_block()
                         : groups_ * du_plane();
  return points_ * (plane_copies(threads) * (v_plane() + z_plane()) + du) + sums_ * out_blocks_ * kernels_.lanes;
}

/// Tiles [first, end) into planes that hold tiles from `chunk` on.
void WinogradWgrad::transform(const Sources& s, int64_t chunk, int64_t first, int64_t end, float* bias) const {
  const int64_t offset = (first - chunk) * kernels_.lanes;
  table_.f32.inputs(s.x, grid_, first, end, chunk_, s.v + offset);
  table_.f32.gradients(s.gy, grid_, first, end, chunk_, s.z + offset, bias);
}

void WinogradWgrad::transform_shared(const Sources& s, int64_t chunk, int64_t tiles, float* bias, int threads) const {
  parallel_for(ceil_div(tiles, tiles_per_task), threads, [&](int64_t task, int) {
    const int64_t first = chunk + task * tiles_per_task;
    transform(s, chunk, first, std::min(first + tiles_per_task, chunk + tiles),
              bias + task * out_blocks_ * kernels_.lanes);
  });
}

/// For cout blocks [begin, end), the first of which lies at `du`.
void WinogradWgrad::multiply(const Sources& s, int64_t tiles, int64_t point, int64_t begin, int64_t end, float* du,
                             bool add) const {
  const int64_t groups = ceil_div(end - begin, kernels_.wgrad_vectors);
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t block = group * (end - begin) / groups, next = (group + 1) * (end - begin) / groups;
    const float* z = s.z + point * z_plane() + (begin + block) * chunk_ * kernels_.lanes;
    kernels_.multiply({s.v + point * v_plane(), z, du + block * du_block(), in_.c, tiles, chunk_}, next - block, add);
  }
}

void WinogradWgrad::run_groups(const Sources& s, float* du, float* bias, int threads) const {
  const int64_t channels = out_blocks_ * kernels_.lanes, du_values = points_ * du_plane();
  const int64_t planes = points_ * (v_plane() + z_plane());
  parallel_for(groups_, threads, [&](int64_t group, int worker) {
    const Sources own{s.x, s.gy, s.v + worker * planes, s.z + worker * planes};
    const int64_t begin = group * tiles_ / groups_, end = (group + 1) * tiles_ / groups_;
    for (int64_t chunk = begin; chunk < end; chunk += chunk_) {
      const int64_t chunk_end = std::min(chunk + chunk_, end);
      transform(own, chunk, chunk, chunk_end, bias + group * channels);
      for (int64_t point = 0; point < points_; ++point) {
        multiply(own, chunk_end - chunk, point, 0, out_blocks_, du + group * du_values + point * du_plane(),
                 chunk > begin);
      }
    }
  });
  parallel_ranges(du_values, 1 << 14, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t group = 1; group < groups_; ++group) {
      const float* other = du + group * du_values;
      for (int64_t i = begin; i < end; ++i) du[i] += other[i];
    }
  });
}

void WinogradWgrad::run_chunks(const Sources& s, float* du, float* bias, int threads) const {
  const int64_t tasks = ceil_div(out_blocks_, kernels_.wgrad_vectors);
  for (int64_t chunk = 0; chunk < tiles_; chunk += chunk_) {
    const int64_t tiles = std::min(chunk_, tiles_ - chunk);
    transform_shared(s, chunk, tiles, bias, threads);
    parallel_for(points_ * tasks, threads, [&](int64_t task, int) {
      const int64_t point = task / tasks, begin = task % tasks * out_blocks_ / tasks,
                    end = (task % tasks + 1) * out_blocks_ / tasks;
      multiply(s, tiles, point, begin, end, du + point * du_plane() + begin * du_block(), chunk > 0);
    });
  }
}

void WinogradWgrad::run_blocks(const Sources& s, float* du, float* bias, const WeightView<float>& shape, float* gw,
                               int threads) const {
  const int64_t tasks = block_tasks(threads), own_values = points_ * ceil_div(out_blocks_, tasks) * du_block();
  transform_shared(s, 0, tiles_, bias, threads);
  parallel_for(tasks, threads, [&](int64_t task, int worker) {
    const int64_t begin = task * out_blocks_ / tasks, blocks = (task + 1) * out_blocks_ / tasks - begin;
    float* own = du + worker * own_values;
    for (int64_t point = 0; point < points_; ++point) {
      multiply(s, tiles_, point, begin, begin + blocks, own + point * blocks * du_block(), false);
    }
    const WeightView<float> part = shape.outputs(begin * kernels_.lanes, blocks * kernels_.lanes);
    for (int64_t block = 0; block < blocks; ++block) {
      table_.unpack(own, block, part, gw + begin * kernels_.lanes * shape.stride_out);
    }
  });
}

void WinogradWgrad::run(const ConvInput<float>& x, const ConvInput<float>& gy, const WeightView<float>& shape,
                        float* gw, float* gb, int64_t gb_stride, float* workspace, int threads) const {
  const int64_t channels = out_blocks_ * kernels_.lanes;
  float* bias = workspace;
  float* v = bias + sums_ * channels;
  float* z = v + points_ * v_plane();
  float* du = v + plane_copies(threads) * points_ * (v_plane() + z_plane());
  std::fill_n(bias, sums_ * channels, 0.0f);
  if (by_blocks(threads)) {
    run_blocks({x, gy, v, z}, du, bias, shape, gw, threads);
  } else {
    groups_ > 1 ? run_groups({x, gy, v, z}, du, bias, threads) : run_chunks({x, gy, v, z}, du, bias, threads);
    parallel_for(out_blocks_, threads, [&](int64_t block, int) { table_.unpack(du, block, shape, gw); });
  }
  for (int64_t out = 0; gb && out < cout_; ++out) {
    float sum = 0;
    for (int64_t part = 0; part < sums_; ++part) sum += bias[part * channels + out];
    gb[out * gb_stride] = sum;
  }
}

}  // namespace vggfast::cpu
