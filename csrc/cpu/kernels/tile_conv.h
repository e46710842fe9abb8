// Direct convolution on tiles, 3x3 (pad 1) or 1x1, of bfloat16, or of floats in pieces of it, with sums in float; and
// the layout that it reads.
//
// conv        Register blocks as in tile_sums.h.
// dgrad       The same with weights that were transposed and flipped when they were packed.
// block_maps  NHWC, or what mask_scatter would make of the smaller tensor that is stored, to blocks.
// split       Weights to pieces, as block_maps does it to floats.
#pragma once

#include "cpu/kernels/masked.h"
#include "cpu/kernels/tile_sums.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

/// Stores a pixel of a blocked map from its two vectors of channels. Denormal values become zeros, as by
/// vcvtne2ps2bf16.
inline __attribute__((always_inline)) void store_pixel(Bf16* to, Vf::Value first, Vf::Value second) {
#if defined(__AVX512BF16__)
  const __m512bh both = _mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  __builtin_memcpy(to, &both, sizeof both);
#else
  const Vf::Value both[] = {first, second};
  for (int half = 0; half < 2; ++half) {
    const Vf::Value v = both[half], sign = (Vf::Value)((Vf::Mask)v & ~0x7fffffff);
    const Vf::Value size = (Vf::Value)((Vf::Mask)v & 0x7fffffff);
    Vf::store(to + half * half_channels, Vf::select(size < __FLT_MIN__, sign, v));
  }
#endif
}

/// Stores a pixel's values, or 32 weights, in pieces (BlockedMap), `stride` apart.
inline void store_pieces(Bf16* to, int64_t stride, int64_t pieces, Vf::Value first, Vf::Value second) {
  const Vf::Value most = Vf::set1(0x1.fep127f), one = Vf::set1(1), whole[] = {first, second};  // most: of bfloat16
  Vf::Value rest[2], piece[2];
  for (int half = 0; half < 2; ++half) {
    const Vf::Value v = whole[half];
    rest[half] = Vf::select(v - v == 0, v, Vf::select(v > 0, one, -one));
    piece[half] = Vf::select(rest[half] > most, most, Vf::select(rest[half] < -most, -most, rest[half]));
  }
  store_pixel(to, piece[0], piece[1]);
  for (int64_t i = 1; i < pieces; ++i) {
    for (int half = 0; half < 2; ++half) {
      const Vf::Value v = whole[half];
      rest[half] -= Vf::load(to + half * half_channels);
      piece[half] = i + 1 < pieces ? rest[half] : Vf::select(v - v == 0, rest[half], v);
    }
    to += stride;
    store_pixel(to, piece[0], piece[1]);
  }
}

inline void split(const float* from, int64_t count, int64_t pieces, Bf16* to, int64_t stride) {
  for (int64_t i = 0; i < count; i += block_channels) {
    store_pieces(to + i, stride, pieces, Vf::load(from + i), Vf::load(from + i + half_channels));
  }
}

/// Channels [c, c + 16) of pixel (y, x) of the map that `in` stands for.
template <class S>
Vf::Value read_pixel(const ConvInput<S>& in, int64_t n, int64_t y, int64_t x, int64_t c) {
  const Extent& e = in.extent;
  const int64_t pixel = (n * e.h + y) * e.w + x, count = e.c - c;
  if (in.mask) return in.pool ? read_unpooled(in, n, y, x, c, count) : read_rectified(in, pixel, c, count);
  const S* p = in.data + pixel * e.c + c;
  return count >= Vf::lanes ? Vf::load(p) : Vf::load(p, count);
}

template <class S>
void block_maps(const ConvInput<S>& in, const BlockedMap<Bf16>& to, int64_t row_begin, int64_t row_end) {
  const Extent& e = in.extent;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t n = row / (e.h + 2), y = row % (e.h + 2) - 1;
    Bf16* line = to.data + n * to.image + (y + 1) * to.row;
    const bool ring = y < 0 || y == e.h;
    for (int64_t plane = 0; plane < to.pieces * to.blocks; ++plane) {
      zero_pixels(line + plane * to.plane, ring ? e.w + 2 : 1);
      zero_pixels(line + plane * to.plane + (e.w + 1) * block_channels, 1);
    }
    for (int64_t block = 0; !ring && block < to.blocks; ++block) {
      Bf16* out = line + block * to.plane;
      for (int64_t x = 0; x < e.w; ++x) {
        const int64_t c = block * block_channels;
        const Vf::Value first = read_pixel(in, n, y, x, c);
        const Vf::Value second = c + half_channels < e.c ? read_pixel(in, n, y, x, c + half_channels) : Vf::zero();
        out += block_channels;
        if constexpr (sizeof(S) == sizeof(Bf16)) {
          store_pixel(out, first, second);
        } else {
          store_pieces(out, to.blocks * to.plane, to.pieces, first, second);
        }
      }
    }
  }
}

template <bool pool>
inline __attribute__((always_inline)) void load_window(const TileSums<float>& sums, int64_t row, int64_t i, int64_t c,
                                                       Vf::Value (&window)[4]) {
  if constexpr (pool) {
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) window[k] = Vf::load(sums[k / 2][2 * i + k % 2] + c);
  } else {
    window[0] = Vf::load(sums[row][i] + c);
  }
}

template <bool pool, class S>
void store_nhwc(const TileConvArgs<S>& a, const TilePlace& at, const TileSums<float>& sums) {
  constexpr int64_t step = pool ? 2 : 1;
  for_outputs<pool>(a, at, [&](int64_t row, int64_t i) {
    const int64_t pixel = (at.n * a.out.h + at.y / step + row) * a.out.w + at.x / step + i;
    for (int64_t c = 0; c < block_channels && at.block * block_channels + c < a.out.c; c += half_channels) {
      Vf::Value window[4];
      load_window<pool>(sums, row, i, c, window);
      const int64_t channel = at.block * block_channels + c;
      store_output<pool, float>(a.out, pixel, channel, Vf::load(a.bias + channel), window);
    }
  });
}

template <bool pool>
void store_blocked(const TileConvArgs<Bf16>& a, const TilePlace& at, const TileSums<float>& sums) {
  const int64_t channel = at.block * block_channels, channels = a.out.c - channel;  // those past them stay 0
  Bf16* first = first_output<pool>(a, at, channel);
  for_outputs<pool>(a, at, [&](int64_t row, int64_t i) {
    Vf::Value both[2];
    for (int half = 0; half < 2; ++half) {
      const int64_t c = half * half_channels;
      Vf::Value window[4];
      load_window<pool>(sums, row, i, c, window);
      Vf::Value best = window[0];
      for (int k = 1; pool && k < 4; ++k) best = Vf::select(replaces<float>(window[k], best), window[k], best);
      best += Vf::load(a.bias + channel + c);
      if (a.out.relu) best = Vf::select(passes<float>(best), best, Vf::zero());
      if (channels < block_channels) {
        const int64_t kept = max<int64_t>(min(channels - c, half_channels), 0);
        best = Vf::select(Vf::from_bits((1u << kept) - 1), best, Vf::zero());
      }
      both[half] = best;
    }
    store_pixel(first + row * a.y.row + i * block_channels, both[0], both[1]);
  });
}

template <bool pool, class S>
inline __attribute__((always_inline)) void store_outputs(const TileConvArgs<S>& a, const TilePlace& at,
                                                         const TileSums<float>& sums) {
  if constexpr (sizeof(S) == sizeof(Bf16)) {
    if (a.y.data) return store_blocked<pool>(a, at, sums);
  }
  store_nhwc<pool>(a, at, sums);
}

template <class Tiles, int kernel, bool pool, class S>
void conv_of(const TileConvArgs<S>& a, int64_t n, int64_t pair_begin, int64_t pair_end, int64_t block_begin,
             int64_t block_end) {
  for_register_blocks<Tiles, kernel, pool, float>(
      a, n, pair_begin, pair_end, block_begin, block_end,
      [&](const TilePlace& at, const TileSums<float>& sums) { store_outputs<pool>(a, at, sums); });
}

template <class Tiles, class S>
void conv_tiles(const TileConvArgs<S>& a, int64_t n, int64_t pair_begin, int64_t pair_end, int64_t block_begin,
                int64_t block_end) {
  const auto conv = a.kernel == 1 ? a.out.pool ? conv_of<Tiles, 1, true, S> : conv_of<Tiles, 1, false, S>
                    : a.out.pool  ? conv_of<Tiles, 3, true, S>
                                  : conv_of<Tiles, 3, false, S>;
  conv(a, n, pair_begin, pair_end, block_begin, block_end);
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
