#include "cpu/algorithms/direct.h"

#include <algorithm>

#include "cpu/parallel.h"

namespace vggfast::cpu {
namespace {

constexpr int64_t cache_bytes = 256 << 10;  // of packed weights that one task may walk through
constexpr int64_t tiles_per_task = 16;

}  // namespace

template <class T>
Direct<T>::Direct(int64_t cin, int64_t cout, int64_t kernel)
    : kernels_(kernels().of<T>()),
      cin_(cin),
      cout_(cout),
      kernel_(kernel),
      blocks_(ceil_div(cout, kernels_.block_channels)),
      block_values_(kernel * kernel * cin * kernels_.block_channels) {}

template <class T>
void Direct<T>::pack(const WeightView<T>& weight, const T* bias, T* packed, int threads) const {
  parallel_for(blocks_, threads,
               [&](int64_t block, int) { kernels_.conv_pack(weight, block, packed + block * block_values_); });
  T* rest = packed + blocks_ * block_values_;
  std::fill_n(rest, blocks_ * kernels_.block_channels + cin_, T(0));
  if (bias) std::copy_n(bias, cout_, rest);
}

template <class T>
void Direct<T>::fprop(const ConvInput<T>& in, const T* packed, const ConvOutput<T>& out, int threads) const {
  const T* bias = packed + blocks_ * block_values_;
  const ConvArgs<T> args{.x = in.data,
                         .in = in.extent,
                         .kernel = kernel_,
                         .packed = packed,
                         .bias = bias,
                         .zeros = bias + blocks_ * kernels_.block_channels,
                         .out = out};
  const int64_t tiles = ceil_div(in.extent.n * out.h * out.w, kernels_.tile_pixels / (out.pool ? 4 : 1));
  const int64_t blocks_per_task =
      std::clamp<int64_t>(cache_bytes / (block_values_ * static_cast<int64_t>(sizeof(T))), 1, blocks_);
  const int64_t tile_tasks = ceil_div(tiles, tiles_per_task), block_tasks = ceil_div(blocks_, blocks_per_task);
  parallel_for(tile_tasks * block_tasks, threads, [&](int64_t task, int) {
    const int64_t tile = task % tile_tasks * tiles_per_task, block = task / tile_tasks * blocks_per_task;
    kernels_.conv_fprop(args, tile, std::min(tile + tiles_per_task, tiles), block,
                        std::min(block + blocks_per_task, blocks_));
  });
}

template class Direct<float>;
template class Direct<double>;

}  // namespace vggfast::cpu
