#include "cpu/algorithms/int8.h"

#include <algorithm>

#include "cpu/parallel.h"

namespace vggfast::cpu {
namespace {

constexpr int64_t scratch_words = 32 << 10;  // of the rows that a task keeps as words: a part of L2
constexpr int64_t tasks_per_thread = 4;
constexpr int64_t grain_values = 1 << 14;  // of a linear layer's rows that make a piece of work worth a thread
constexpr int64_t cache_line = 64, word_bytes = sizeof(int32_t);

int64_t aligned(int64_t bytes) { return ceil_div(bytes, cache_line) * cache_line; }

}  // namespace

Int8Layer::Int8Layer(int64_t cin, int64_t cout, int64_t kernel)
    : kernels_(*kernels().int8),
      cin_(cin),
      cout_(cout),
      kernel_(kernel),
      blocks_(ceil_div(cout, kernels_.block_channels)) {}

size_t Int8Layer::packed_bytes() const {
  const int64_t values = 2 * blocks_ * kernels_.block_channels;
  return static_cast<size_t>(aligned(blocks_ * block_bytes()) + values * word_bytes);
}

void Int8Layer::pack(const WeightView<int8_t>& weight, const float* unit, const float* bias, void* packed,
                     int threads) const {
  int8_t* blocks = static_cast<int8_t*>(packed);
  parallel_for(blocks_, threads,
               [&](int64_t block, int) { kernels_.pack(weight, block, blocks + block * block_bytes()); });
  const int64_t padded = blocks_ * kernels_.block_channels;
  float* units = reinterpret_cast<float*>(blocks + aligned(blocks_ * block_bytes()));
  std::fill_n(units, 2 * padded, 0.0f);
  std::copy_n(unit, cout_, units);
  if (bias) std::copy_n(bias, cout_, units + padded);
}

Int8Args Int8Layer::args(const void* packed, const Int8Output& out) const {
  const int8_t* blocks = static_cast<const int8_t*>(packed);
  const float* units = reinterpret_cast<const float*>(blocks + aligned(blocks_ * block_bytes()));
  return {.x = nullptr,
          .in = {},
          .kernel = kernel_,
          .packed = blocks,
          .unit = units,
          .bias = units + blocks_ * kernels_.block_channels,
          .out = out};
}

Int8Layer::Tasks Int8Layer::tasks_of(const Extent& in, bool pool, int threads) const {
  const int64_t window = pool ? 2 : 1, out_rows = std::max<int64_t>(in.h / window, 1), ring = kernel_ / 2 * 2;
  const int64_t line = (in.w + ring) * row_words();
  Tasks tasks{std::clamp<int64_t>((scratch_words / std::max<int64_t>(line, 1) - ring) / window, 1, out_rows),
              std::clamp<int64_t>(kernels_.weight_bytes / block_bytes(), 1, blocks_)};
  const auto count = [&] { return in.n * ceil_div(out_rows, tasks.rows) * ceil_div(blocks_, tasks.blocks); };
  while (count() < tasks_per_thread * threads && (tasks.rows > 1 || tasks.blocks > 1)) {
    int64_t& larger = tasks.rows > tasks.blocks ? tasks.rows : tasks.blocks;
    larger = ceil_div(larger, 2);
  }
  return tasks;
}

int64_t Int8Layer::scratch_of(const Extent& in, bool pool, const Tasks& tasks) const {
  const int64_t words = int8_scratch_words(kernels_, in, kernel_, pool, tasks.rows);
  return aligned(words * word_bytes) / word_bytes;
}

size_t Int8Layer::conv_workspace(const Extent& in, bool pool, int threads) const {
  return sizeof(int32_t) * static_cast<size_t>(threads * scratch_of(in, pool, tasks_of(in, pool, threads)));
}

void Int8Layer::conv(const uint8_t* x, const Extent& in, const void* packed, const Int8Output& out, void* workspace,
                     int threads) const {
  Int8Args call = args(packed, out);
  call.x = x;
  call.in = in;
  const Tasks tasks = tasks_of(in, out.pool, threads);
  const int64_t groups = ceil_div(out.h, tasks.rows), count = in.n * groups * ceil_div(blocks_, tasks.blocks);
  const int64_t each = scratch_of(in, out.pool, tasks);
  // One block after the other: then its weights are read from memory once.
  parallel_for(count, threads, [&](int64_t task, int worker) {
    const int64_t block = task / (in.n * groups) * tasks.blocks;
    const int64_t image = task / groups % in.n, row = task % groups * tasks.rows;
    kernels_.conv(call, image, row, std::min(row + tasks.rows, out.h), block, std::min(block + tasks.blocks, blocks_),
                  static_cast<int32_t*>(workspace) + worker * each);
  });
}

size_t Int8Layer::linear_workspace(int64_t rows, int threads) const {
  const int64_t sums = int8_linear_rows * kernels_.block_channels * threads;
  return sizeof(int32_t) * static_cast<size_t>(sums + rows * row_words());
}

void Int8Layer::linear(const uint8_t* x, int64_t rows, const void* packed, const Int8Output& out, void* workspace,
                       int threads) const {
  Int8Args call = args(packed, out);
  call.in = {rows, 1, 1, cin_};
  const int64_t each = int8_linear_rows * kernels_.block_channels;
  int32_t *const sums = static_cast<int32_t*>(workspace), *const words = sums + each * threads;
  parallel_ranges(rows, 1 + grain_values / cin_, threads, [&](int64_t begin, int64_t end, int) {
    kernels_.words(x + begin * cin_, end - begin, cin_, words + begin * row_words());
  });
  parallel_for(blocks_, threads, [&](int64_t block, int worker) {
    kernels_.linear(call, words, block, block + 1, sums + worker * each);
  });
}

}  // namespace vggfast::cpu
