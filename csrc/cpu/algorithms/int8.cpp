#include "cpu/algorithms/int8.h"

#include "cpu/algorithms/winograd.h"
#include "cpu/parallel.h"
#include "vggfast/error.h"

namespace vggfast::cpu {
namespace {

constexpr int64_t scratch_words = 32 << 10;  // of the rows that a task keeps as words: a part of L2
constexpr int64_t tasks_per_thread = 4;
constexpr int64_t grain_values = 1 << 14;  // of a linear layer's rows that make a piece of work worth a thread
constexpr int64_t cache_line = 64, word_bytes = sizeof(int32_t);

int64_t aligned(int64_t bytes) { return ceil_div(bytes, cache_line) * cache_line; }

/// On vectors.
class VectorLayer final : public Int8Layer {
 public:
  explicit VectorLayer(const Int8Shape& shape)
      : kernels_(*kernels().int8),
        cin_(shape.in.c),
        cout_(shape.cout),
        kernel_(shape.kernel),
        blocks_(ceil_div(shape.cout, kernels_.block_channels)) {}

  const char* name() const override { return "int8"; }
  bool takes_blocks() const override { return false; }
  size_t packed_bytes() const override;
  void pack(const WeightView<int8_t>& weight, const float* unit, const float* bias, void* packed,
            int threads) const override;
  size_t conv_workspace(const Extent& in, bool pool, int threads) const override;
  void conv(const uint8_t* x, const Extent& in, const void* packed, const Int8Output& out, void* workspace,
            int threads) const override;
  size_t linear_workspace(int64_t rows, int threads) const override;
  void linear(const uint8_t* x, int64_t rows, const void* packed, const Int8Output& out, void* workspace,
              int threads) const override;

 private:
  /// How a map is cut into tasks: no result depends on it.
  struct Tasks {
    int64_t rows;    // of the output, in a task
    int64_t blocks;  // of output channels
  };
  Tasks tasks_of(const Extent& in, bool pool, int threads) const;
  /// A thread's, in words, for whole cache lines.
  int64_t scratch_of(const Extent& in, bool pool, const Tasks& tasks) const;
  int64_t row_words() const { return ceil_div(cin_, kernels_.terms); }
  int64_t block_bytes() const { return kernel_ * kernel_ * row_words() * kernels_.terms * kernels_.block_channels; }
  Int8Args args(const void* packed, const Int8Output& out) const;

  const Int8Kernels& kernels_;
  int64_t cin_, cout_, kernel_, blocks_;
};

size_t VectorLayer::packed_bytes() const {
  const int64_t values = 2 * blocks_ * kernels_.block_channels;
  return static_cast<size_t>(aligned(blocks_ * block_bytes()) + values * word_bytes);
}

void VectorLayer::pack(const WeightView<int8_t>& weight, const float* unit, const float* bias, void* packed,
                       int threads) const {
  int8_t* blocks = static_cast<int8_t*>(packed);
  parallel_for(blocks_, threads,
               [&](int64_t block, int) { kernels_.pack(weight, block, blocks + block * block_bytes()); });
  const int64_t padded = blocks_ * kernels_.block_channels;
  float* units = reinterpret_cast<float*>(blocks + aligned(blocks_ * block_bytes()));
  pack_epilogue(unit, bias, cout_, padded, units);
}

Int8Args VectorLayer::args(const void* packed, const Int8Output& out) const {
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

VectorLayer::Tasks VectorLayer::tasks_of(const Extent& in, bool pool, int threads) const {
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

int64_t VectorLayer::scratch_of(const Extent& in, bool pool, const Tasks& tasks) const {
  const int64_t words = int8_scratch_words(kernels_, in, kernel_, pool, tasks.rows);
  return aligned(words * word_bytes) / word_bytes;
}

size_t VectorLayer::conv_workspace(const Extent& in, bool pool, int threads) const {
  return sizeof(int32_t) * static_cast<size_t>(threads * scratch_of(in, pool, tasks_of(in, pool, threads)));
}

void VectorLayer::conv(const uint8_t* x, const Extent& in, const void* packed, const Int8Output& out, void* workspace,
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

size_t VectorLayer::linear_workspace(int64_t rows, int threads) const {
  const int64_t sums = int8_linear_rows * kernels_.block_channels * threads;
  return sizeof(int32_t) * static_cast<size_t>(sums + rows * row_words());
}

void VectorLayer::linear(const uint8_t* x, int64_t rows, const void* packed, const Int8Output& out, void* workspace,
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

/// What transforming costs, in products of a word by a vector of weights: a vector of a tile's inputs, one of its sums,
/// one of the weights of a word.
constexpr int64_t input_cost = 600, sum_cost = 300, weight_cost = 250;

/// Whether F(4 x 4, 3 x 3) has less to do than direct sums.
bool winograd_pays(const Int8Shape& shape) {
  if (shape.rows || shape.kernel != 3) return false;
  const Int8Kernels& all = *kernels().int8;
  const int64_t tiles = Winograd::tiles_of(Winograd::grid(int8_winograd_m, shape.in, true), shape.in.n);
  const int64_t vectors = ceil_div(shape.cout, all.block_channels) * 2, inputs = ceil_div(shape.in.c, 2 * all.lanes);
  const int64_t products =
      int8_winograd_points * tiles * inputs * all.lanes * vectors * 9 / 8;  // V and M lie in L2 or L3
  const int64_t transforms = tiles * (input_cost * inputs + sum_cost * vectors);
  const int64_t weights = weight_cost * inputs * all.lanes * vectors;
  const int64_t direct = 9 * shape.in.n * shape.in.h * shape.in.w * ceil_div(shape.in.c, all.terms) * vectors;
  return products + transforms + weights < direct;
}

}  // namespace

size_t Int8Layer::linear_workspace(int64_t, int) const { fail(name(), " has no linear layers"); }
void Int8Layer::linear(const uint8_t*, int64_t, const void*, const Int8Output&, void*, int) const {
  fail(name(), " has no linear layers");
}

std::unique_ptr<const Int8Layer> make_int8_layer(const Int8Shape& shape, const WeightView<int8_t>& weight) {
  if (kernels().int8_tiles) return make_tile_int8_layer(shape);
  if (winograd_pays(shape) && int8_winograd_is_exact(weight)) return make_winograd_int8_layer(shape);
  return make_direct_int8_layer(shape);
}

std::unique_ptr<const Int8Layer> make_direct_int8_layer(const Int8Shape& shape) {
  return std::make_unique<VectorLayer>(shape);
}

}  // namespace vggfast::cpu
