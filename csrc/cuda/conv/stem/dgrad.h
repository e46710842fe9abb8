// The first layer's dgrad: gx (n, h, w, c <= 4) = 3 x 3 taps of gz (n, h, w, cout) * mirrored weights. It is bound by
// reading gy, from which the mask makes gz.
//
// A warp walks down a strip of 32 columns, of which the inner 30 are its outputs. It multiplies a row of gz by the
// weights of all taps. The products of a column's three rows add up in the accumulators, of which there is one set for
// each of the three open rows of outputs. The products of a row's three columns are different columns of the
// accumulator, 4 * c of them, and are added up by shuffles when the row is done. Lane t of a group has 16 of every 64
// bytes of its pixels, two products' worth, and copies them itself: warps never wait for each other. Shared memory: the
// weights, 96 bytes a channel (192 for float32), written once, before a barrier of all threads; and 4 KB for each warp,
// of which each lane reads what it copied.
#pragma once

#include "cuda/conv/common/epilogue.h"
#include "cuda/conv/common/pack.h"
#include "cuda/conv/stem/gradients.h"
#include "cuda/conv/stem/words.h"
#include "cuda/divider.h"
#include "cuda/ptx/griddepcontrol.h"
#include "cuda/ptx/sync.h"
#include "cuda/ptx/warp.h"

namespace vggfast::cuda {

struct StemDgrad {
  static constexpr int warps = 4, threads = 32 * warps;
  static constexpr int blocks = 4, columns = 8 * blocks, outputs = columns - 2;  // of a strip
  static constexpr int pieces = 2;  // of 64 bytes a pixel, that are on their way at a time
  static constexpr int landing_bytes = columns * pieces * row_bytes;
  static constexpr int piece_bytes = 3 * 2 * 32 * chunk_bytes;  // of a piece's weights: by row, product and lane
  static constexpr int most_weight_bytes = 48 << 10;
  static constexpr int least_rows = 8, most_rows = 64;  // of a warp's outputs
  template <class T>
  static constexpr int least_blocks = sizeof(T) == 4 ? 3 : 4;
  template <class T>
  static int rounds(int channels) {  // that bring all channels of a pixel
    return (channels + pieces * depth_of<T> - 1) / (pieces * depth_of<T>);
  }
  template <class T>
  static int weight_bytes(int channels) {
    return rounds<T>(channels) * pieces * piece_bytes;
  }
};

template <class T>
struct StemDgradArgs {
  Source<T> gz;
  WeightView<T> weights;  // mirrored: out is gx's channels
  T* gx;
  Divider strips, bands;
  int rows;   // of a band
  int units;  // strips of all bands of all images: a warp's work each
  int rounds, weight_bytes;
};

/// Columns 2 t and 2 t + 1 of the first product are gx's channel t by the tap to the left and its own; column 2 t of
/// the second one by the tap to the right.
template <class T>
__device__ __forceinline__ uint32_t dgrad_weight(const WeightView<T>& w, int row, int product, int column, int first) {
  const int channel = column / 2, tap = 2 * product + column % 2;
  T values[values_of_word<T>];
#pragma unroll
  for (int i = 0; i < values_of_word<T>; ++i) {
    const bool real = channel < w.out && tap < 3 && first + i < w.in;
    values[i] = T{};
    if (real) {
      values[i] =
          w.data[channel * w.out_stride + (first + i) * w.in_stride + row * w.row_stride + tap * w.column_stride];
    }
  }
  return word_of<T>(values);
}

/// All weights as the lanes read them: word 2 * product + i of a chunk.
template <class T>
__device__ __forceinline__ void store_weights(const StemDgradArgs<T>& a, char* shared) {
  const int chunks = a.weight_bytes / chunk_bytes;
  for (int chunk = static_cast<int>(threadIdx.x); chunk < chunks; chunk += StemDgrad::threads) {
    const int lane = chunk % 32, step = chunk / 32 % 2, row = chunk / 64 % 3, piece = chunk / 192;
    const int first = piece * depth_of<T> + lane % 4 * chunk_of<T> + 2 * step * values_of_word<T>;
    Words words;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words.word[i] = dgrad_weight(a.weights, row, i / 2, lane / 4, first + i % 2 * values_of_word<T>);
    }
    reinterpret_cast<Words*>(shared)[chunk] = words;
  }
}

/// A warp's work: outputs of rows `first` to `last` and, of the strip, columns x + 1 to x + 30.
struct DgradUnit {
  int image, first, last, x;

  template <class T>
  __device__ __forceinline__ DgradUnit(const StemDgradArgs<T>& a, int unit) {
    const int row = a.strips.quotient(unit);
    image = a.bands.quotient(row);
    first = (row - image * static_cast<int>(a.bands.divisor)) * a.rows;
    last = first + a.rows < a.gz.h ? first + a.rows : a.gz.h;
    x = (unit - row * static_cast<int>(a.strips.divisor)) * StemDgrad::outputs - 1;
  }
};

/// A lane's chunks of a row of gz, one round of channels: of each eight columns, pixel `group`.
template <class T>
class DgradRow {
 public:
  __device__ __forceinline__ explicit DgradRow(char* landing, Lane at) : landing_(landing + at.lane * chunk_bytes) {}

  __device__ __forceinline__ void fetch(const StemDgradArgs<T>& a, const DgradUnit& unit, int y, int round, Lane at) {
    const GradientRow row(a.gz, unit.image, y);
#pragma unroll
    for (int piece = 0; piece < StemDgrad::pieces; ++piece) {
      const int c = (round * StemDgrad::pieces + piece) * depth_of<T> + at.within * chunk_of<T>;
#pragma unroll
      for (int block = 0; block < StemDgrad::blocks; ++block) {
        const GradientColumn column(a.gz, unit.x + 8 * block + at.group);
        chunks_[piece].fetch(a.gz, block, row, column, c, landing_ + target(piece, block));
      }
      chunks_[piece].fetch_bits(a.gz);
    }
    ptx::cp_async_commit_group();
  }

  /// Waits for them.
  __device__ __forceinline__ void take(Lane at, Words (&chunks)[StemDgrad::pieces][StemDgrad::blocks]) const {
    ptx::cp_async_wait_group<0>();
#pragma unroll
    for (int piece = 0; piece < StemDgrad::pieces; ++piece) {
#pragma unroll
      for (int block = 0; block < StemDgrad::blocks; ++block) {
        Words& chunk = chunks[piece][block];
        chunk = chunks_[piece].read_masked(block, at.within * chunk_of<T>, landing_ + target(piece, block));
#pragma unroll
        for (uint32_t& word : chunk.word) word = rounded<StemMath<T>>(word);
      }
    }
  }

 private:
  __device__ __forceinline__ static int target(int piece, int block) {
    return (piece * StemDgrad::blocks + block) * 32 * chunk_bytes;
  }

  char* landing_;
  GradientChunks<T, StemDgrad::blocks> chunks_[StemDgrad::pieces];
};

/// The sums of three rows of outputs, of 16 columns a block and two products; row i of the weights goes to sums[2 - i].
using DgradSums = float[3][StemDgrad::blocks / 2][2][4];

template <class T>
__device__ __forceinline__ void multiply_row(DgradSums& sums,
                                             const Words (&chunks)[StemDgrad::pieces][StemDgrad::blocks],
                                             const char* weights) {
#pragma unroll
  for (int piece = 0; piece < StemDgrad::pieces; ++piece) {
#pragma unroll
    for (int row = 0; row < 3; ++row) {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const Words w = reinterpret_cast<const Words*>(weights)[((piece * 3 + row) * 2 + step) * 32];
        const uint32_t fb[2][2] = {{w.word[0], w.word[1]}, {w.word[2], w.word[3]}};
#pragma unroll
        for (int i = 0; i < StemDgrad::blocks / 2; ++i) {
          const Words &upper = chunks[piece][2 * i], &lower = chunks[piece][2 * i + 1];
          const uint32_t fa[4] = {upper.word[2 * step], lower.word[2 * step], upper.word[2 * step + 1],
                                  lower.word[2 * step + 1]};
#pragma unroll
          for (int product = 0; product < 2; ++product) {
            StemMath<T>::product(sums[2 - row][i][product], fa, fb[product]);
          }
        }
      }
    }
  }
}

/// Adds up each output's three columns, of which two are its neighbours', and stores row y.
template <class T>
__device__ __forceinline__ void store_row(const StemDgradArgs<T>& a, const DgradUnit& unit, int y,
                                          const float (&sums)[StemDgrad::blocks / 2][2][4], Lane at) {
  const int c = a.weights.out;
  T* const row = a.gx + (int64_t(unit.image) * a.gz.h + y) * a.gz.w * c;
#pragma unroll
  for (int block = 0; block < StemDgrad::blocks; ++block) {
    const auto left = [&](int b) { return b < 0 ? 0.0f : sums[b / 2][0][b % 2 * 2]; };
    const auto right = [&](int b) { return b == StemDgrad::blocks ? 0.0f : sums[b / 2][1][b % 2 * 2]; };
    // The neighbour of a block's first or last pixel is the last or first one of the block beside it.
    const float to_right = at.group == 7 ? left(block - 1) : left(block);
    const float to_left = at.group == 0 ? right(block + 1) : right(block);
    const float total = ptx::as_float(ptx::shfl(ptx::as_bits(to_right), (at.lane + 28) % 32)) +
                        sums[block / 2][0][block % 2 * 2 + 1] +
                        ptx::as_float(ptx::shfl(ptx::as_bits(to_left), (at.lane + 4) % 32));
    const int column = 8 * block + at.group, x = unit.x + column;
    if (column < 1 || column > StemDgrad::outputs || x >= a.gz.w || at.within >= c) continue;
    row[int64_t(x) * c + at.within] = narrow<T>(total);
  }
}

template <class T>
__global__ void __launch_bounds__(StemDgrad::threads, StemDgrad::least_blocks<T>)
    stem_dgrad_kernel(const StemDgradArgs<T> a) {
  char* const shared = ptx::shared_memory();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const Lane at;
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  store_weights(a, shared);
  ptx::sync_threads();
  if (static_cast<int>(blockIdx.x) * StemDgrad::warps + warp >= a.units) return;
  const DgradUnit unit(a, static_cast<int>(blockIdx.x) * StemDgrad::warps + warp);
  const char* const weights = shared + at.lane * chunk_bytes;
  DgradRow<T> gradients(shared + a.weight_bytes + warp * StemDgrad::landing_bytes, at);
  gradients.fetch(a, unit, unit.first - 1, 0, at);
  DgradSums sums = {};
#pragma unroll 1
  for (int y = unit.first - 1; y <= unit.last; ++y) {
#pragma unroll 1
    for (int round = 0; round < a.rounds; ++round) {
      Words chunks[StemDgrad::pieces][StemDgrad::blocks];
      gradients.take(at, chunks);
      const bool row_ends = round + 1 == a.rounds;
      if (!row_ends || y < unit.last) gradients.fetch(a, unit, row_ends ? y + 1 : y, row_ends ? 0 : round + 1, at);
      multiply_row<T>(sums, chunks, weights + round * StemDgrad::pieces * StemDgrad::piece_bytes);
    }
    if (y > unit.first) store_row(a, unit, y - 1, sums[0], at);
#pragma unroll
    for (int i = 0; i < StemDgrad::blocks / 2 * 8; ++i) {
      const int block = i / 8, product = i / 4 % 2, e = i % 4;
      sums[0][block][product][e] = sums[1][block][product][e];
      sums[1][block][product][e] = sums[2][block][product][e];
      sums[2][block][product][e] = 0.0f;
    }
  }
}

}  // namespace vggfast::cuda
