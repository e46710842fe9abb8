#include "cpu/wgrad.h"

#include <algorithm>

#include "cpu/parallel.h"

namespace vggfast::cpu {
namespace {

constexpr int64_t wgrad_tasks = 64;  // direct wgrad splits its pixels until there are about as many tasks
constexpr int64_t chunk_values = 2 << 20;  // of V and Z that should lie in L3
constexpr int64_t tiles_per_part = 16;     // tiles that one task transforms

}  // namespace

template <class T>
DirectWgrad<T>::DirectWgrad(Extent in, int64_t cout, int64_t kernel)
    : kernels_(kernels().of<T>()),
      in_(in),
      cout_(cout),
      kernel_(kernel),
      blocks_(ceil_div(cout, kernels_.block_channels)),
      input_units_(ceil_div(in.c, kernels_.wgrad_inputs)) {
  // By shape alone, so that the result does not depend on the threads.
  const int64_t rows = std::max<int64_t>(in.n * in.h, 1);
  rows_per_group_ = ceil_div(rows, std::clamp<int64_t>(ceil_div(wgrad_tasks, blocks_ * input_units_), 1, rows));
  groups_ = ceil_div(rows, rows_per_group_);
  bias_values_ = blocks_ * kernels_.block_channels;
  partial_values_ = bias_values_ * kernel * kernel * in.c;
}

template <class T>
void DirectWgrad<T>::run(const T* x, const T* gy, const WeightView<T>& shape, T* gw, T* gb, int64_t gb_stride,
                         T* workspace, int threads) const {
  T* partial_bias = workspace + groups_ * partial_values_;
  std::fill_n(workspace, workspace_values(), T(0));
  const int64_t rows = in_.n * in_.h, units = blocks_ * input_units_;
  const int64_t tasks = rows * in_.w > 0 ? groups_ * units : 0;  // without pixels, the zeros are the sums
  parallel_for(tasks, threads, [&](int64_t task, int) {
    const int64_t group = task / units, unit = task % units, row = group * rows_per_group_;
    const WgradArgs<T> args{.x = x,
                            .gy = gy,
                            .in = in_,
                            .kernel = kernel_,
                            .cout = cout_,
                            .row_begin = row,
                            .row_end = std::min(row + rows_per_group_, rows),
                            .partial = workspace + group * partial_values_,
                            .partial_bias = gb ? partial_bias + group * bias_values_ : nullptr};
    kernels_.conv_wgrad(args, unit % input_units_, unit / input_units_);
  });
  add_up(workspace, partial_bias, shape, gw, gb, gb_stride, threads);
}

template <class T>
void DirectWgrad<T>::add_up(const T* partial, const T* partial_bias, const WeightView<T>& shape, T* gw, T* gb,
                            int64_t gb_stride, int threads) const {
  const int64_t channels = kernels_.block_channels, taps = kernel_ * kernel_;
  parallel_for(cout_, threads, [&](int64_t out, int) {
    const T* column = partial + out / channels * taps * in_.c * channels + out % channels;
    for (int64_t tap = 0; tap < taps; ++tap) {
      T* w = gw + out * shape.stride_out + tap / kernel_ * shape.stride_row + tap % kernel_ * shape.stride_column;
      for (int64_t c = 0; c < in_.c; ++c) {
        T sum = 0;
        for (int64_t group = 0; group < groups_; ++group) {
          sum += column[group * partial_values_ + (tap * in_.c + c) * channels];
        }
        w[c * shape.stride_in] = sum;
      }
    }
    if (gb) {
      T sum = 0;
      for (int64_t group = 0; group < groups_; ++group) sum += partial_bias[group * bias_values_ + out];
      gb[out * gb_stride] = sum;
    }
  });
}

template class DirectWgrad<float>;
template class DirectWgrad<double>;

WinogradWgrad::WinogradWgrad(int m, Extent in, int64_t cout)
    : kernels_(kernels()),
      table_(kernels_.winograd[m / 2]),
      in_(in),
      cout_(cout),
      points_(m == 1 ? 1 : (m + 2) * (m + 2)),
      in_blocks_(ceil_div(in.c, kernels_.lanes)),
      out_blocks_(ceil_div(cout, kernels_.lanes)),
      grid_{ceil_div(in.h, m), ceil_div(in.w, m)},
      tiles_(in.n * grid_.rows * grid_.columns) {
  // Chunks that L3 holds, but no shorter than what makes reading and writing dU, chunk after chunk, a small part.
  const int64_t fitting = chunk_values / (points_ * (in_blocks_ + out_blocks_) * kernels_.lanes);
  const int64_t worthwhile = in_blocks_ * out_blocks_ * kernels_.lanes / (in_blocks_ + out_blocks_);
  const int64_t chunks = ceil_div(tiles_, std::max(fitting, worthwhile));
  chunk_ = chunks > 0 ? ceil_div(tiles_, chunks) : 0;
  parts_ = ceil_div(chunk_, tiles_per_part);
}

int64_t WinogradWgrad::workspace_values() const {
  const int64_t lanes = kernels_.lanes;
  const int64_t planes = (in_blocks_ * chunk_ | 1) + (out_blocks_ * chunk_ | 1) + out_blocks_ * in_blocks_ * lanes;
  return (points_ * planes + parts_ * out_blocks_) * lanes;
}

void WinogradWgrad::run(const ConvInput<float>& x, const ConvInput<float>& gy, const WeightView<float>& shape,
                        float* gw, float* gb, int64_t gb_stride, float* workspace, int threads) const {
  const int64_t lanes = kernels_.lanes, channels = out_blocks_ * lanes;
  const int64_t v_plane = (in_blocks_ * chunk_ | 1) * lanes, z_plane = (out_blocks_ * chunk_ | 1) * lanes;
  const int64_t du_plane = channels * in_blocks_ * lanes;
  float* v = workspace;
  float* z = v + points_ * v_plane;
  float* du = z + points_ * z_plane;
  float* bias = du + points_ * du_plane;
  std::fill_n(bias, parts_ * channels, 0.0f);
  if (tiles_ == 0) std::fill_n(du, points_ * du_plane, 0.0f);
  const int64_t groups = ceil_div(out_blocks_, kernels_.wgrad_vectors);
  for (int64_t begin = 0; begin < tiles_; begin += chunk_) {
    const int64_t tiles = std::min(chunk_, tiles_ - begin);
    parallel_for(ceil_div(tiles, tiles_per_part), threads, [&](int64_t part, int) {
      const int64_t first = part * tiles_per_part, end = std::min(first + tiles_per_part, tiles);
      table_.f32.inputs(x, grid_, begin + first, begin + end, chunk_, v + first * lanes);
      table_.f32.gradients(gy, grid_, begin + first, begin + end, chunk_, z + first * lanes, bias + part * channels);
    });
    parallel_for(points_ * groups, threads, [&](int64_t task, int) {
      const int64_t point = task / groups, group = task % groups;
      const WgradPoint p{v + point * v_plane, z + point * z_plane, du + point * du_plane, in_.c, tiles, chunk_};
      kernels_.multiply(p, group * out_blocks_ / groups, (group + 1) * out_blocks_ / groups, begin > 0);
    });
  }
  parallel_for(out_blocks_, threads, [&](int64_t block, int) { table_.unpack(du, block, shape, gw); });
  for (int64_t out = 0; gb && out < cout_; ++out) {
    float sum = 0;
    for (int64_t part = 0; part < parts_; ++part) sum += bias[part * channels + out];
    gb[out * gb_stride] = sum;
  }
}

}  // namespace vggfast::cpu
