// Convolutions of 8 bits by Winograd's F(4 x 4, 3 x 3) in 16 bits: sizes, packing, and how threads divide the work.
// Kernels: cpu/kernels/int8_winograd.h.
//
// The weights are kept as they are, 8 bits each, and transformed anew in each call: that takes as long as the
// products of some seven tiles, and the transformed ones would take 8 times the memory.
#include "cpu/algorithms/int8.h"
#include "cpu/algorithms/winograd.h"
#include "cpu/parallel.h"

namespace vggfast::cpu {
namespace {

constexpr int64_t points = int8_winograd_points, word_bytes = sizeof(int32_t);
// Of V and M, that lie in L2 (1 MB on the machine of development) less what streams through it; and of M alone.
constexpr int64_t cache_words = 96 << 10, product_words = 64 << 10;
constexpr int64_t least_tiles = 28;  // of a task, whatever the cache is
// Of transformed weights, beyond which they had better be read once for many tiles than once for a few.
constexpr int64_t large_weights = 3 << 19;
constexpr int64_t shared_words = 2 << 20;  // of V, for all threads, that L3 keeps
constexpr int64_t tiles_per_range = 4;     // the fewest that a thread transforms at a time
constexpr int64_t tasks_per_thread = 4;

class WinogradLayer final : public Int8Layer {
 public:
  explicit WinogradLayer(const Int8Shape& shape)
      : all_(*kernels().int8),
        kernels_(all_.winograd),
        cin_(shape.in.c),
        cout_(shape.cout),
        blocks_(ceil_div(shape.cout, all_.block_channels)),
        words_(ceil_div(shape.in.c, 2 * all_.lanes) * all_.lanes) {}

  const char* name() const override { return "int8 winograd4"; }
  bool takes_blocks() const override { return false; }
  size_t packed_bytes() const override;
  void pack(const WeightView<int8_t>& weight, const float* unit, const float* bias, void* packed,
            int threads) const override;
  size_t conv_workspace(const Extent& in, bool pool, int threads) const override;
  void conv(const uint8_t* x, const Extent& in, const void* packed, const Int8Output& out, void* workspace,
            int threads) const override;

 private:
  /// How a batch is divided: no result depends on it. By tiles, whose V is a task's own, with all weights transformed
  /// before; or by blocks of output channels, whose U is a task's own, with all tiles of a range transformed before.
  struct Partition {
    TileGrid grid;
    int64_t tiles;
    bool by_blocks;
    int64_t range;        // tiles of V
    int64_t task;         // tiles whose products are kept at a time
    int64_t splits;       // by blocks: tasks that share a block's tiles
    int64_t shared, own;  // words: of all threads, of each
  };
  Partition partition(const Extent& in, int threads) const;
  int64_t weight_bytes() const { return blocks_ * block_bytes(); }
  int64_t block_bytes() const { return words_ * 9 * 2 * all_.block_channels; }
  int64_t plane(int64_t words) const { return points * int8_winograd_plane(words, all_.lanes); }
  int64_t v_words(int64_t tiles) const { return plane(tiles * words_); }
  int64_t u_words() const { return plane(words_ * all_.block_channels); }
  int64_t m_words(int64_t tiles) const { return plane(tiles * all_.block_channels); }

  const Int8Kernels& all_;
  const Int8WinogradKernels& kernels_;
  int64_t cin_, cout_, blocks_;
  int64_t words_;  // of a pixel's V
};

size_t WinogradLayer::packed_bytes() const {
  return static_cast<size_t>(weight_bytes() + 2 * blocks_ * all_.block_channels * word_bytes);
}

void WinogradLayer::pack(const WeightView<int8_t>& weight, const float* unit, const float* bias, void* packed,
                         int threads) const {
  int8_t* blocks = static_cast<int8_t*>(packed);
  parallel_for(blocks_, threads,
               [&](int64_t block, int) { kernels_.pack(weight, block, blocks + block * block_bytes()); });
  pack_epilogue(unit, bias, cout_, blocks_ * all_.block_channels, reinterpret_cast<float*>(blocks + weight_bytes()));
}

WinogradLayer::Partition WinogradLayer::partition(const Extent& in, int given_threads) const {
  const int64_t threads = std::max(given_threads, 1), pixels = all_.tile_pixels;
  Partition part;
  part.grid = Winograd::grid(int8_winograd_m, in, true);
  part.tiles = Winograd::tiles_of(part.grid, in.n);
  const int64_t fitting = cache_words / (points * (words_ + all_.block_channels)) / pixels * pixels;
  const int64_t parts = ceil_div(part.tiles, std::max(fitting, least_tiles));
  part.by_blocks = blocks_ * u_words() > large_weights || parts < tasks_per_thread * threads;
  if (part.by_blocks) {
    const int64_t ranges = ceil_div(part.tiles, std::max(shared_words / (points * words_), pixels));
    part.range = std::max(ceil_div(part.tiles, std::max<int64_t>(ranges, 1)), int64_t{1});
    part.splits = ceil_div(threads, blocks_);
    const int64_t most = std::max(product_words / (points * all_.block_channels) / pixels, int64_t{1}) * pixels;
    part.task = std::min(most, part.range);
    part.shared = v_words(part.range);
    part.own = u_words() + m_words(part.task);
  } else {
    part.task = part.range = std::max(ceil_div(part.tiles, ceil_div(parts, threads) * threads), int64_t{1});
    part.splits = 1;
    part.shared = blocks_ * u_words();
    part.own = v_words(part.task) + m_words(part.task);
  }
  return part;
}

size_t WinogradLayer::conv_workspace(const Extent& in, bool, int threads) const {
  const Partition part = partition(in, threads);
  return static_cast<size_t>((part.shared + std::max(threads, 1) * part.own) * word_bytes);
}

void WinogradLayer::conv(const uint8_t* x, const Extent& in, const void* packed, const Int8Output& out, void* workspace,
                         int threads) const {
  const Partition part = partition(in, threads);
  const int8_t* weights = static_cast<const int8_t*>(packed);
  const float* unit = reinterpret_cast<const float*>(weights + weight_bytes());
  const Int8WinogradArgs args{part.grid, in.n, cin_, unit, unit + blocks_ * all_.block_channels, out};
  int32_t *const shared = static_cast<int32_t*>(workspace), *const own = shared + part.shared;
  const auto transform = [&](int64_t block, int32_t* u) {
    kernels_.weights(weights + block * block_bytes(), cin_, reinterpret_cast<int16_t*>(u));
  };
  if (!part.by_blocks) {
    parallel_for(blocks_, threads, [&](int64_t block, int) { transform(block, shared + block * u_words()); });
    parallel_for(ceil_div(part.tiles, part.task), threads, [&](int64_t task, int worker) {
      const int64_t begin = task * part.task, end = std::min(begin + part.task, part.tiles);
      int32_t *const v = own + worker * part.own, *const products = v + v_words(part.task);
      kernels_.inputs(x, in, part.grid, begin, end, end - begin, v);
      for (int64_t block = 0; block < blocks_; ++block) {
        const int16_t* u = reinterpret_cast<const int16_t*>(shared + block * u_words());
        kernels_.outputs(args, v, begin, end - begin, begin, end, u, block, products);
      }
    });
    return;
  }
  for (int64_t first = 0; first < part.tiles; first += part.range) {
    const int64_t tiles = std::min(part.range, part.tiles - first), each = ceil_div(tiles, part.splits);
    parallel_ranges(tiles, tiles_per_range, threads, [&](int64_t begin, int64_t end, int) {
      kernels_.inputs(x, in, part.grid, first + begin, first + end, tiles, shared + begin * all_.lanes);
    });
    parallel_for(blocks_ * part.splits, threads, [&](int64_t task, int worker) {
      const int64_t block = task / part.splits, begin = first + task % part.splits * each;
      const int64_t end = std::min(begin + each, first + tiles);
      int32_t *const u = own + worker * part.own, *const products = u + u_words();
      if (begin < end) transform(block, u);
      for (int64_t tile = begin; tile < end; tile += part.task) {
        kernels_.outputs(args, shared, first, tiles, tile, std::min(tile + part.task, end),
                         reinterpret_cast<const int16_t*>(u), block, products);
      }
    });
  }
}

}  // namespace

bool int8_winograd_is_exact(const WeightView<int8_t>& w) {
  constexpr int64_t most = ((int64_t{1} << 25) - 1) / 255;  // of the weights' sum, of either sign
  for (int64_t out = 0; out < w.out; ++out) {
    int64_t positive = 0, negative = 0;
    for (int64_t in = 0; in < w.in; ++in) {
      const int8_t* from = w.data + out * w.stride_out + in * w.stride_in;
      for (int64_t tap = 0; tap < w.kernel * w.kernel; ++tap) {
        const int64_t value = from[tap / w.kernel * w.stride_row + tap % w.kernel * w.stride_column];
        (value > 0 ? positive : negative) += value;
      }
    }
    if (positive > most || -negative > most) return false;
  }
  return true;
}

std::unique_ptr<const Int8Layer> make_winograd_int8_layer(const Int8Shape& shape) {
  return std::make_unique<WinogradLayer>(shape);
}

}  // namespace vggfast::cpu
