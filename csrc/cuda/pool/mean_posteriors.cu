// Class scores: scores (n, c), the mean over views of the softmax over c of the mean over pixels of maps (views n,
// pixels, c), and its gradient gmaps, for which the softmax is computed again; in float32 (float64 for float64).
// A block owns an image, or in dgrad a map: 512 threads, up to 64 side by side along the channels, the others along the
// pixels (pool/pixel_sums.h). Shared memory: 4 values to a thread of scratch, a row of c values that are in turn means,
// exponentials and probabilities or gradients, and where there are several views a row of their sums; all of them wait
// at barriers between these. Bound by memory: maps' bytes once, in dgrad gmaps' too.
#include <cmath>

#include "core/checks.h"
#include "cuda/dtypes.h"
#include "cuda/pieces.h"
#include "cuda/pool/pixel_sums.h"
#include "cuda/ptx/griddepcontrol.h"
#include "vggfast/cuda.h"

namespace vggfast::cuda {
namespace {

struct MeanPosteriorsTraits {
  static constexpr unsigned threads = 512;
  static constexpr unsigned groups = 64;  // side by side
  static constexpr int64_t most_blocks = 1 << 16;
  static constexpr int64_t shared_bytes = 96 << 10;  // every GPU from sm_80 on has 99
};

template <class T>
struct MeanPosteriorsArgs {
  const T* maps;
  T* scores;         // fprop writes them,
  const T* gscores;  // dgrad reads these
  T* gmaps;
  int64_t n, views, pixels, c;
  PixelLanes lanes;
};

/// row (c): the exponentials, in the softmax of the means of `map`. Returns their sum.
template <bool Aligned, class T>
__device__ __forceinline__ Wide<T> softmax_of_mean(const MeanPosteriorsArgs<T>& a, const T* map, Wide<T>* scratch,
                                                   Wide<T>* row) {
  for (int64_t first = 0; first < a.c; first += a.lanes.groups * vector_channels) {
    const int64_t c = first + a.lanes.group() * vector_channels;
    Wide<T> sums[vector_channels];
    sum_pixels<Aligned>(a.lanes, map + c, a.pixels, a.c, a.c - c, scratch, sums);
    if (a.lanes.lane() > 0) continue;
#pragma unroll
    for (int i = 0; i < vector_channels; ++i) {
      if (c + i < a.c) row[c + i] = sums[i] / Wide<T>(a.pixels);
    }
  }
  ptx::sync_threads();
  const auto larger = [](Wide<T> p, Wide<T> q) { return p > q ? p : q; };  // NaN comes through the exponentials
  Wide<T> most = Wide<T>(-INFINITY), sum = 0;
  for (int64_t c = threadIdx.x; c < a.c; c += blockDim.x) most = larger(row[c], most);
  most = reduce_block(most, scratch, larger);
  for (int64_t c = threadIdx.x; c < a.c; c += blockDim.x) {
    row[c] = std::exp(row[c] - most);
    sum += row[c];
  }
  return reduce_block(sum, scratch, [](Wide<T> p, Wide<T> q) { return p + q; });
}

template <class T, bool Aligned>
__global__ void __launch_bounds__(MeanPosteriorsTraits::threads, 2) mean_posteriors_kernel(MeanPosteriorsArgs<T> a) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  Wide<T>* scratch = reinterpret_cast<Wide<T>*>(ptx::shared_memory());
  Wide<T>* row = scratch + a.lanes.scratch();
  Wide<T>* sums = row + a.c;
  for (int64_t n = blockIdx.x; n < a.n; n += gridDim.x) {
    for (int64_t view = 0; view < a.views; ++view) {
      const T* map = a.maps + (view * a.n + n) * a.pixels * a.c;
      const Wide<T> sum = softmax_of_mean<Aligned>(a, map, scratch, row);
      for (int64_t c = threadIdx.x; c < a.c; c += blockDim.x) {
        Wide<T> p = row[c] / sum;
        if (view > 0) p += sums[c];
        if (view + 1 < a.views) {
          sums[c] = p;
        } else {
          a.scores[n * a.c + c] = narrow<T>(p / Wide<T>(a.views));
        }
      }
      ptx::sync_threads();
    }
  }
}

template <class T, bool Aligned>
__global__ void __launch_bounds__(MeanPosteriorsTraits::threads, 2)
    mean_posteriors_dgrad_kernel(MeanPosteriorsArgs<T> a) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  Wide<T>* scratch = reinterpret_cast<Wide<T>*>(ptx::shared_memory());
  Wide<T>* row = scratch + a.lanes.scratch();
  const Wide<T> scale = 1 / (Wide<T>(a.views) * Wide<T>(a.pixels));
  for (int64_t map = blockIdx.x; map < a.views * a.n; map += gridDim.x) {
    const Wide<T> sum = softmax_of_mean<Aligned>(a, a.maps + map * a.pixels * a.c, scratch, row);
    const T* g = a.gscores + map % a.n * a.c;
    Wide<T> dot = 0;
    for (int64_t c = threadIdx.x; c < a.c; c += blockDim.x) {
      row[c] /= sum;
      dot += row[c] * widen(g[c]);
    }
    dot = reduce_block(dot, scratch, [](Wide<T> p, Wide<T> q) { return p + q; });
    for (int64_t c = threadIdx.x; c < a.c; c += blockDim.x) row[c] *= (widen(g[c]) - dot) * scale;
    ptx::sync_threads();
    for (int64_t c = a.lanes.group() * vector_channels; c < a.c; c += a.lanes.groups * vector_channels) {
      Channels<T> v;
#pragma unroll
      for (int i = 0; i < vector_channels; ++i) v.at[i] = c + i < a.c ? narrow<T>(row[c + i]) : T{};
      T* out = a.gmaps + map * a.pixels * a.c + c;
      for (int64_t p = a.lanes.lane(); p < a.pixels; p += a.lanes.lanes) {
        store_channels<Aligned>(out + p * a.c, a.c - c, v);
      }
    }
    ptx::sync_threads();
  }
}

template <class T>
MeanPosteriorsArgs<T> mean_posteriors_args(const Tensor& maps, int64_t views) {
  return {.maps = maps.as<T>(),
          .scores = nullptr,
          .gscores = nullptr,
          .gmaps = nullptr,
          .n = maps.size(0) / views,
          .views = views,
          .pixels = maps.size(2) * maps.size(3),
          .c = maps.size(1),
          .lanes = pixel_lanes(groups_of(maps.size(1)), MeanPosteriorsTraits::groups, MeanPosteriorsTraits::threads)};
}

/// `rows` of c values in shared memory, besides the scratch.
template <class T>
Grid mean_posteriors_grid(const MeanPosteriorsArgs<T>& a, int64_t blocks, int64_t rows) {
  const int64_t most = (MeanPosteriorsTraits::shared_bytes / int64_t(sizeof(Wide<T>)) - a.lanes.scratch()) / rows;
  VGGFAST_CHECK(a.c <= most, "maps must have at most ", most, " channels (classes) on cuda, got ", a.c);
  return {
      .blocks = dim3(unsigned(blocks < MeanPosteriorsTraits::most_blocks ? blocks : MeanPosteriorsTraits::most_blocks)),
      .threads = dim3(MeanPosteriorsTraits::threads),
      .shared_bytes = size_t(a.lanes.scratch() + rows * a.c) * sizeof(Wide<T>)};
}

}  // namespace

void mean_posteriors(const Tensor& maps, int64_t views, const Tensor& scores, Context context) {
  check_mean_posteriors(maps, views, scores, "scores");
  for_float(maps, "maps", [&]<class T>() {
    MeanPosteriorsArgs<T> args = mean_posteriors_args<T>(maps, views);
    args.scores = scores.as<T>();
    if (scores.numel() == 0) return;
    const Grid grid = mean_posteriors_grid(args, args.n, views > 1 ? 2 : 1);
    for_alignment(args.c, {maps.data}, [&]<bool Aligned>() {
      launch("mean_posteriors_kernel", mean_posteriors_kernel<T, Aligned>, grid, context, args);
    });
  });
}

void mean_posteriors_dgrad(const Tensor& gscores, const Tensor& maps, int64_t views, const Tensor& gmaps,
                           Context context) {
  check_mean_posteriors(maps, views, gscores, "gscores");
  check_nhwc(gmaps, "gmaps");
  check_like(gmaps, "gmaps", maps.shape, maps.dtype, maps.device);
  for_float(maps, "maps", [&]<class T>() {
    MeanPosteriorsArgs<T> args = mean_posteriors_args<T>(maps, views);
    args.gscores = gscores.as<T>();
    args.gmaps = gmaps.as<T>();
    if (gmaps.numel() == 0) return;
    const Grid grid = mean_posteriors_grid(args, views * args.n, 1);
    for_alignment(args.c, {maps.data, gmaps.data}, [&]<bool Aligned>() {
      launch("mean_posteriors_dgrad_kernel", mean_posteriors_dgrad_kernel<T, Aligned>, grid, context, args);
    });
  });
}

}  // namespace vggfast::cuda
