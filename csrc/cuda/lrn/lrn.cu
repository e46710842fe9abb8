// Local response normalisation across channels (vggfast/lrn.h): y or gx (pixels, c) from x, and gy; s^-beta in float32
// (float64 for float64). A block owns a tile: the channels of some pixels, 256 groups of 8 in all; of pixels with more,
// a chunk of the channels. Shared memory stages, 4 bytes to a value, 8 for float64: x with the halo that the windows
// reach (8 KiB and the halo), and for dgrad s^-beta and gy x s^(-beta - 1) as well (24 KiB); all wait at a barrier
// after each of these. A row of 8 channels lies in 8 planes, so that neighbouring threads meet in no bank. Bound by
// memory: fprop moves x's bytes twice, dgrad three times (x and gy again from the cache).
#include <cmath>

#include "core/checks.h"
#include "cuda/dtypes.h"
#include "cuda/pieces.h"
#include "cuda/ptx/approx.h"
#include "cuda/ptx/griddepcontrol.h"
#include "cuda/ptx/sync.h"
#include "vggfast/cuda.h"

namespace vggfast::cuda {
namespace {

struct LrnTraits {
  static constexpr int64_t threads = 256;
  static constexpr int64_t groups = 256;  // of a tile
  static constexpr int usual_size = 5;    // the papers', for which there is code of its own
  static constexpr double usual_beta = 0.75;
  static constexpr int64_t shared_bytes = 96 << 10;  // less than any sm_80 or later has
  static constexpr int64_t most_blocks = 2048;       // several for each place that a GPU has for one
  static constexpr int64_t most_chunks = 65535;      // of the grid's y
};

template <class T>
struct LrnTileArgs {
  const T* x;
  const T* gy;  // dgrad's
  T* out;
  int64_t pixels, c;
  int64_t groups;  // of a pixel
  int64_t owned;   // groups of a tile's pixel
  int64_t halo;    // groups to either side that a window reaches, in dgrad a window's windows
  int64_t tile_pixels;
  int slots;          // groups that a plane of shared memory holds
  int before, after;  // channels of a window, no more than there are
  Wide<T> alpha_over_size, beta, k;
};

/// The groups [begin, end) of each pixel of a tile, staged in 8 planes: channel 8 (begin + g) + i of a pixel at
/// [i][pixel * groups() + g].
template <class W>
struct Staged {
  W* planes;
  int slots;
  int64_t begin, end;
  int channels;  // of those groups, that there are

  __device__ __forceinline__ int groups() const { return int(end - begin); }
  __device__ __forceinline__ W& at(int pixel, int group, int i) const {
    return planes[i * slots + pixel * groups() + group];
  }
  /// Channel i, counted from the group's first: 0 beyond the channels that there are.
  __device__ __forceinline__ W channel(int pixel, int group, int i) const {
    const bool there = unsigned(group * vector_channels + i) < unsigned(channels);
    return there ? at(pixel, group + (i >> 3), i & 7) : W(0);
  }
};

/// The sums, for a group's channels, of f over the window of each.
template <bool Usual, class W, class F>
__device__ __forceinline__ void window_sums(const Staged<W>& staged, int pixel, int group, int before, int after,
                                            W (&sums)[vector_channels], F f) {
  constexpr int last = vector_channels - 1;
  constexpr int size = Usual ? LrnTraits::usual_size : 1;
  if constexpr (Usual) before = after = size / 2;
  W window[vector_channels];  // the next channel of each window
#pragma unroll
  for (int i = 0; i < vector_channels; ++i) {
    sums[i] = 0;
    if (i < last) window[i] = f(staged.channel(pixel, group, i - before));
  }
#pragma unroll size
  for (int shift = -before; shift <= after; ++shift) {
    window[last] = f(staged.channel(pixel, group, last + shift));
#pragma unroll
    for (int i = 0; i < vector_channels; ++i) sums[i] += window[i];
#pragma unroll
    for (int i = 0; i < last; ++i) window[i] = window[i + 1];
  }
}

template <class W>
struct Powers {
  W beta, beta_and_1;  // s^-beta, s^(-beta - 1)
};
template <bool Usual>
__device__ __forceinline__ Powers<float> inverse_powers(float s, float beta) {
  if constexpr (Usual) {
    const float root = ptx::rsqrt_approx(s), power = root * ptx::sqrt_approx(root);
    return {power, power * root * root};
  } else {
    const float power = powf(s, -beta);
    return {power, power / s};
  }
}
template <bool Usual>
__device__ __forceinline__ Powers<double> inverse_powers(double s, double beta) {
  const double power = Usual ? 1 / (std::sqrt(s) * std::sqrt(std::sqrt(s))) : pow(s, -beta);
  return {power, power / s};
}

/// The groups that a tile owns and `halo` more to either side, as far as there are any.
template <class T>
__device__ __forceinline__ Staged<Wide<T>> stage(const LrnTileArgs<T>& a, int64_t chunk, int64_t halo, int plane) {
  const int64_t begin = chunk * a.owned - halo, end = (chunk + 1) * a.owned + halo;
  Staged<Wide<T>> staged{.planes = reinterpret_cast<Wide<T>*>(ptx::shared_memory()) + plane * a.slots,
                         .slots = a.slots,
                         .begin = begin > 0 ? begin : 0,
                         .end = end < a.groups ? end : a.groups,
                         .channels = 0};
  const int64_t last = staged.end * vector_channels;
  staged.channels = int((last < a.c ? last : a.c) - staged.begin * vector_channels);
  return staged;
}

/// Calls visit(pixel of the tile, group) for this thread's share of some groups of every pixel.
template <class W, class Visit>
__device__ __forceinline__ void for_each_group(const Staged<W>& groups, int pixels, Visit visit) {
  for (int unit = int(threadIdx.x); unit < pixels * groups.groups(); unit += int(blockDim.x)) {
    const int pixel = unit / groups.groups();
    visit(pixel, groups.begin + (unit - pixel * groups.groups()));
  }
}

template <class T, bool Usual, bool Aligned>
__global__ void __launch_bounds__(LrnTraits::threads) lrn_fprop_kernel(LrnTileArgs<T> a) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const int64_t chunk = blockIdx.y;
  const Staged<Wide<T>> x = stage(a, chunk, a.halo, 0), owned = stage(a, chunk, 0, 0);
  for (int64_t first = blockIdx.x * a.tile_pixels; first < a.pixels; first += gridDim.x * a.tile_pixels) {
    const int pixels = int(a.pixels - first < a.tile_pixels ? a.pixels - first : a.tile_pixels);
    for_each_group(x, pixels, [&](int pixel, int64_t group) {
      const int64_t c = group * vector_channels;
      const Channels<T> v = load_channels<Aligned>(a.x + (first + pixel) * a.c + c, a.c - c);
#pragma unroll
      for (int i = 0; i < vector_channels; ++i) x.at(pixel, int(group - x.begin), i) = widen(v.at[i]);
    });
    ptx::sync_threads();
    for_each_group(owned, pixels, [&](int pixel, int64_t group) {
      const int at = int(group - x.begin);
      Wide<T> squares[vector_channels];
      window_sums<Usual>(x, pixel, at, a.before, a.after, squares, [](Wide<T> v) { return v * v; });
      Channels<T> y;
#pragma unroll
      for (int i = 0; i < vector_channels; ++i) {
        const Powers powers = inverse_powers<Usual>(a.k + a.alpha_over_size * squares[i], a.beta);
        y.at[i] = narrow<T>(x.at(pixel, at, i) * powers.beta);
      }
      const int64_t c = group * vector_channels;
      store_channels<Aligned>(a.out + (first + pixel) * a.c + c, a.c - c, y);
    });
    ptx::sync_threads();
  }
}

template <class T, bool Usual, bool Aligned>
__global__ void __launch_bounds__(LrnTraits::threads, sizeof(T) == 8 ? 2 : 4) lrn_dgrad_kernel(LrnTileArgs<T> a) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const int64_t chunk = blockIdx.y;
  const Staged<Wide<T>> x = stage(a, chunk, a.halo, 0), owned = stage(a, chunk, 0, 0);
  const Staged<Wide<T>> products = stage(a, chunk, a.halo / 2, vector_channels);    // gy x s^(-beta - 1)
  const Staged<Wide<T>> powers = stage(a, chunk, a.halo / 2, 2 * vector_channels);  // s^-beta
  for (int64_t first = blockIdx.x * a.tile_pixels; first < a.pixels; first += gridDim.x * a.tile_pixels) {
    const int pixels = int(a.pixels - first < a.tile_pixels ? a.pixels - first : a.tile_pixels);
    for_each_group(x, pixels, [&](int pixel, int64_t group) {
      const int64_t c = group * vector_channels;
      const Channels<T> v = load_channels<Aligned>(a.x + (first + pixel) * a.c + c, a.c - c);
#pragma unroll
      for (int i = 0; i < vector_channels; ++i) x.at(pixel, int(group - x.begin), i) = widen(v.at[i]);
    });
    ptx::sync_threads();
    for_each_group(products, pixels, [&](int pixel, int64_t group) {
      const int at = int(group - x.begin), to = int(group - products.begin);
      const int64_t c = group * vector_channels;
      const Channels<T> gy = load_channels<Aligned>(a.gy + (first + pixel) * a.c + c, a.c - c);
      Wide<T> squares[vector_channels];
      window_sums<Usual>(x, pixel, at, a.before, a.after, squares, [](Wide<T> v) { return v * v; });
#pragma unroll
      for (int i = 0; i < vector_channels; ++i) {
        const Powers inverse = inverse_powers<Usual>(a.k + a.alpha_over_size * squares[i], a.beta);
        powers.at(pixel, to, i) = inverse.beta;
        products.at(pixel, to, i) = widen(gy.at[i]) * x.at(pixel, at, i) * inverse.beta_and_1;
      }
    });
    ptx::sync_threads();
    for_each_group(owned, pixels, [&](int pixel, int64_t group) {
      const int at = int(group - x.begin), from = int(group - products.begin);
      const int64_t c = group * vector_channels;
      const Channels<T> gy = load_channels<Aligned>(a.gy + (first + pixel) * a.c + c, a.c - c);
      Wide<T> sums[vector_channels];
      window_sums<Usual>(products, pixel, from, a.after, a.before, sums, [](Wide<T> v) { return v; });
      const Wide<T> scale = 2 * a.alpha_over_size * a.beta;
      Channels<T> gx;
#pragma unroll
      for (int i = 0; i < vector_channels; ++i) {
        gx.at[i] = narrow<T>(widen(gy.at[i]) * powers.at(pixel, from, i) - scale * x.at(pixel, at, i) * sums[i]);
      }
      store_channels<Aligned>(a.out + (first + pixel) * a.c + c, a.c - c, gx);
    });
    ptx::sync_threads();
  }
}

/// `reach`: how many windows far the halo goes. `staged`: values in shared memory for each of x's.
template <class T>
LrnTileArgs<T> lrn_tile_args(const Tensor& x, const Tensor* gy, LrnParams p, const Tensor& out, int64_t reach,
                             int64_t staged) {
  const auto least = [](int64_t a, int64_t b) { return a < b ? a : b; };
  const int64_t c = x.size(1), groups = groups_of(c);
  const int64_t before = least(p.size / 2, c), after = least((p.size - 1) / 2, c);
  LrnTileArgs<T> args{.x = x.as<T>(),
                      .gy = gy ? gy->as<T>() : nullptr,
                      .out = out.as<T>(),
                      .pixels = x.size(0) * x.size(2) * x.size(3),
                      .c = c,
                      .groups = groups,
                      .owned = least(groups, LrnTraits::groups),
                      .halo = reach * groups_of(before),
                      .tile_pixels = groups < LrnTraits::groups ? LrnTraits::groups / groups : 1,
                      .slots = 0,
                      .before = int(before),
                      .after = int(after),
                      .alpha_over_size = static_cast<Wide<T>>(p.alpha / static_cast<double>(p.size)),
                      .beta = static_cast<Wide<T>>(p.beta),
                      .k = static_cast<Wide<T>>(p.k)};
  const int64_t slots = args.tile_pixels * least(groups, args.owned + 2 * args.halo);
  const int64_t most_slots = LrnTraits::shared_bytes / (staged * vector_channels * int64_t(sizeof(Wide<T>)));
  const int64_t most_before = (most_slots - LrnTraits::groups) / 2 / reach * vector_channels;
  VGGFAST_CHECK(slots <= most_slots, "size must be at most ", 2 * most_before + 1, " with ", c, " channels of ",
                name_of(x.dtype), " on cuda, got ", p.size);
  args.slots = int(slots);
  return args;
}

template <class T>
Grid lrn_grid(const LrnTileArgs<T>& a, int64_t staged) {
  const int64_t tiles = (a.pixels + a.tile_pixels - 1) / a.tile_pixels, chunks = (a.groups + a.owned - 1) / a.owned;
  VGGFAST_CHECK(chunks <= LrnTraits::most_chunks, "x must have at most ",
                LrnTraits::most_chunks * LrnTraits::groups * vector_channels, " channels on cuda, got ", a.c);
  return {.blocks = dim3(unsigned(tiles < LrnTraits::most_blocks ? tiles : LrnTraits::most_blocks), unsigned(chunks)),
          .threads = dim3(LrnTraits::threads),
          .shared_bytes = size_t(a.slots * staged * vector_channels) * sizeof(Wide<T>)};
}

template <class T, class Body>
void for_kind(const LrnTileArgs<T>& a, LrnParams p, Body body) {
  const bool usual = p.size == LrnTraits::usual_size && p.beta == LrnTraits::usual_beta;
  for_alignment(a.c, {a.x, a.gy, a.out}, [&]<bool Aligned>() {
    if constexpr (Aligned) {  // at least 8 channels: the usual window is not cut to their number
      if (usual) return body.template operator()<true, true>();
    }
    body.template operator()<false, Aligned>();
  });
}

}  // namespace

void lrn_fprop(const Tensor& x, LrnParams p, const Tensor& y, Context context) {
  check_lrn(x, p, y, "y");
  for_float(x, "x", [&]<class T>() {
    if (x.numel() == 0) return;
    constexpr int64_t staged = 1, reach = 1;
    const auto args = lrn_tile_args<T>(x, nullptr, p, y, reach, staged);
    for_kind(args, p, [&]<bool Usual, bool Aligned>() {
      launch("lrn_fprop_kernel", lrn_fprop_kernel<T, Usual, Aligned>, lrn_grid(args, staged), context, args);
    });
  });
}

size_t lrn_dgrad_workspace(const Tensor& x, Context) {
  check_nhwc(x, "x");
  return 0;
}

void lrn_dgrad(const Tensor& gy, const Tensor& x, LrnParams p, const Tensor& gx, Workspace, Context context) {
  check_lrn(x, p, gx, "gx");
  check_nhwc(gy, "gy");
  check_like(gy, "gy", x.shape, x.dtype, x.device);
  for_float(x, "x", [&]<class T>() {
    if (x.numel() == 0) return;
    constexpr int64_t staged = 3, reach = 2;
    const auto args = lrn_tile_args<T>(x, &gy, p, gx, reach, staged);
    for_kind(args, p, [&]<bool Usual, bool Aligned>() {
      launch("lrn_dgrad_kernel", lrn_dgrad_kernel<T, Usual, Aligned>, lrn_grid(args, staged), context, args);
    });
  });
}

}  // namespace vggfast::cuda
