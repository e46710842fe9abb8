// Weight gradients in bfloat16 on tile registers: how pixels are cut into strips, groups and parts, and how threads
// divide the work. Kernels: cpu/kernels/tile_wgrad.h.
#include <algorithm>

#include "cpu/algorithms/tiles.h"
#include "cpu/parallel.h"

namespace vggfast::cpu {
namespace {

constexpr int64_t block = 16, pair = 2 * block;  // channels
// Where each task has pixels and sums of its own, they take most of the L2 of processors with tiles, 2 MB.
constexpr int64_t own_sums_bytes = 640 << 10, own_operands_bytes = 1 << 20;
constexpr int64_t most_parts = 16;
constexpr int64_t least_rows = 8;  // of a strip there: 3x3 reads two more
// Where threads share a group of strips, 64 channels of it are to fit L2: 192 bytes a pixel.
constexpr int64_t shared_operands_bytes = 16 << 20, shared_products = 224;
constexpr int64_t tasks_per_thread = 4;
constexpr int64_t grain_values = 1 << 14;  // of operands that make a piece of work worth a thread
constexpr int64_t line = 64;               // bytes

int64_t pitch_of(const ConvProblem& p) { return (p.kernel == 1 ? p.in.w + 1 : p.in.w + 2) / 2 * 2; }

/// Of operands, about.
int64_t values_of_row(const ConvProblem& p) {
  const int64_t blocks = ceil_div(p.cout, pair) * 2 + ceil_div(p.in.c, block) * (p.kernel == 1 ? 1 : 2);
  return pitch_of(p) * blocks * block;
}

WgradStrips layout_of(const ConvProblem& p, int64_t rows) {
  const int64_t pitch = pitch_of(p), products = ceil_div(rows * pitch, product_pixels);
  // The last tap begins two rows and two pixels after the first.
  const int64_t pairs = products * product_pixels / 2 + (p.kernel == 1 ? 0 : pitch + 1);
  const int64_t gy_block = products * operand_tile, x_copy = pairs * 2 * block;
  const int64_t x_block = (p.kernel == 1 ? 1 : 2) * x_copy;
  const int64_t cins = ceil_div(p.in.c, block), x = ceil_div(p.cout, pair) * 2 * gy_block;
  return {.kernel = p.kernel,
          .pitch = pitch,
          .products = products,
          .cin_blocks = cins,
          .gy_block = gy_block,
          .x_copy = x_copy,
          .x_block = x_block,
          .x = x,
          .strip = x + cins * x_block};
}

/// Pixels are cut into strips of rows; strips that follow each other make a group, whose operands are in memory at a
/// time; groups make a part, which has sums of its own. All that is by shape alone, so that the order of the sums is.
/// Where a layer has few sums, each part is a task. Else there is one part, and threads divide each group's channels.
class TilesWgrad {
 public:
  explicit TilesWgrad(const ConvProblem& p);
  /// Whole lines, as all of its arrays but the last.
  size_t workspace_bytes() const {
    return special_at() + static_cast<size_t>(ceil_div(strips_ * units(), line) * line);
  }
  void run(const WgradCall& call) const;

 private:
  /// A call's tensors, and its workspace: operands of a group, or of one for each thread; sums [part][cout pair]
  /// [cin pair][tap][2][2][16][16]; those of gy [strip][channel]; and whether a value is not finite [strip][unit].
  struct Memory {
    ConvInput<Bf16> x, gy;
    Bf16* operands;
    float *sums, *bias;
    uint8_t* special;
  };

  int64_t units() const { return couts_ + cins_; }  // of a strip: pairs of blocks of gy, then of x
  int64_t pair_sums() const { return problem_.kernel * problem_.kernel * sums_tap; }
  int64_t part_sums() const { return couts_ * cins_ * pair_sums(); }
  int64_t copies() const { return parts_ > 1 ? std::max(problem_.threads, 1) : 1; }
  size_t sums_at() const { return sizeof(Bf16) * static_cast<size_t>(copies() * group_ * layout_.strip); }
  size_t bias_at() const { return sums_at() + sizeof(float) * static_cast<size_t>(parts_ * part_sums()); }
  size_t special_at() const { return bias_at() + sizeof(float) * static_cast<size_t>(strips_ * couts_ * pair); }
  int64_t first_row(int64_t strip) const { return strip / map_strips_ * height_ + strip % map_strips_ * rows_; }
  int64_t rows_of(int64_t strip) const { return std::min(rows_, height_ - strip % map_strips_ * rows_); }
  int64_t strips_of(int64_t group) const { return std::min(group_, strips_ - group * group_); }

  void transform(const Memory& m, int64_t strip, int64_t unit, Bf16* to) const;
  void multiply(int64_t group, const Bf16* operands, int64_t cout_pair, int64_t cin_pair, bool add, float* sums) const;
  void run_parts(const Memory& m) const;
  void run_groups(const Memory& m) const;
  void add_special(const Memory& m) const;
  void add_up(const Memory& m, const WgradCall& call) const;

  ConvProblem problem_;
  int64_t couts_, cins_;                 // pairs of blocks of channels
  int64_t height_, rows_ = 0;            // of a map, an image or for 1x1 the batch; and of a strip
  int64_t map_strips_ = 0, strips_ = 0;  // of a map, and in all
  int64_t group_ = 0, groups_ = 0;       // strips of a group; groups
  int64_t parts_ = 0;
  WgradStrips layout_ = {};
};

TilesWgrad::TilesWgrad(const ConvProblem& p)
    : problem_(p),
      couts_(ceil_div(p.cout, pair)),
      cins_(ceil_div(p.in.c, pair)),
      height_(p.kernel == 1 ? p.in.n * p.in.h : p.in.h) {
  const int64_t maps = p.kernel == 1 ? 1 : p.in.n, all_rows = p.in.n * p.in.h;
  if (all_rows * p.in.w == 0) return;
  const int64_t row_bytes = values_of_row(p) * static_cast<int64_t>(sizeof(Bf16)), pitch = pitch_of(p);
  const bool own = part_sums() * static_cast<int64_t>(sizeof(float)) <= own_sums_bytes;
  const int64_t rows = own ? std::min(own_operands_bytes / row_bytes, std::max(all_rows / most_parts, least_rows))
                           : std::min(shared_operands_bytes / row_bytes, shared_products * product_pixels / pitch);
  map_strips_ = ceil_div(height_, std::clamp<int64_t>(rows, 1, height_));
  rows_ = ceil_div(height_, map_strips_);  // strips are nearly equal
  map_strips_ = ceil_div(height_, rows_);
  strips_ = maps * map_strips_;
  layout_ = layout_of(p, rows_);
  const int64_t strip_bytes = layout_.strip * static_cast<int64_t>(sizeof(Bf16));
  const int64_t strips = own ? std::min(own_operands_bytes / strip_bytes, strips_ / most_parts)
                             : std::min(shared_operands_bytes / strip_bytes, shared_products / layout_.products);
  groups_ = ceil_div(strips_, std::clamp<int64_t>(strips, 1, strips_));
  group_ = ceil_div(strips_, groups_);
  groups_ = ceil_div(strips_, group_);
  parts_ = own ? std::min(groups_, most_parts) : 1;
}

/// Writes a unit of a strip's operands.
void TilesWgrad::transform(const Memory& m, int64_t strip, int64_t unit, Bf16* to) const {
  const TileKernels& tiles = *kernels().tiles;
  const int64_t first = first_row(strip), rows = rows_of(strip), begin = 2 * (unit < couts_ ? unit : unit - couts_);
  const bool special =
      unit < couts_ ? tiles.wgrad_gy(m.gy, layout_, first, rows, begin, begin + 2, to, m.bias + strip * couts_ * pair)
                    : tiles.wgrad_x(m.x, layout_, first, rows, begin, std::min(begin + 2, layout_.cin_blocks), to);
  m.special[strip * units() + unit] = special;
}

void TilesWgrad::multiply(int64_t group, const Bf16* operands, int64_t cout_pair, int64_t cin_pair, bool add,
                          float* sums) const {
  kernels().tiles->wgrad(layout_, operands, strips_of(group), cout_pair, cin_pair, add,
                         sums + (cout_pair * cins_ + cin_pair) * pair_sums());
}

void TilesWgrad::run_parts(const Memory& m) const {
  parallel_for(parts_, problem_.threads, [&](int64_t part, int worker) {
    Bf16* own = m.operands + worker * group_ * layout_.strip;
    const int64_t begin = part * groups_ / parts_, end = (part + 1) * groups_ / parts_;
    for (int64_t group = begin; group < end; ++group) {
      for (int64_t i = 0; i < strips_of(group) * units(); ++i) {
        const int64_t strip = i / units();
        transform(m, group * group_ + strip, i % units(), own + strip * layout_.strip);
      }
      for (int64_t i = 0; i < couts_ * cins_; ++i) {
        multiply(group, own, i / cins_, i % cins_, group > begin, m.sums + part * part_sums());
      }
    }
  });
}

/// A task has the couts, or some of them, of a pair of blocks of cins, which it finds in its L2.
void TilesWgrad::run_groups(const Memory& m) const {
  const int64_t pieces = std::min(couts_, ceil_div(tasks_per_thread * std::max(problem_.threads, 1), cins_));
  for (int64_t group = 0; group < groups_; ++group) {
    parallel_ranges(strips_of(group) * units(), 1 + grain_values / (layout_.products * 2 * operand_tile),
                    problem_.threads, [&](int64_t begin, int64_t end, int) {
                      for (int64_t i = begin; i < end; ++i) {
                        const int64_t strip = i / units();
                        transform(m, group * group_ + strip, i % units(), m.operands + strip * layout_.strip);
                      }
                    });
    parallel_for(cins_ * pieces, problem_.threads, [&](int64_t task, int) {
      const int64_t piece = task % pieces;
      for (int64_t out = piece * couts_ / pieces; out < (piece + 1) * couts_ / pieces; ++out) {
        multiply(group, m.operands, out, task / pieces, group > 0, m.sums);
      }
    });
  }
}

/// To the first part's sums, where there is anything.
void TilesWgrad::add_special(const Memory& m) const {
  const auto in_strip = [&](int64_t strip) {
    const uint8_t* of_units = m.special + strip * units();
    return std::any_of(of_units, of_units + units(), [](uint8_t found) { return found; });
  };
  for (int64_t strip = 0; strip < strips_; ++strip) {
    if (!in_strip(strip)) continue;
    parallel_for(couts_ * cins_, problem_.threads, [&](int64_t task, int) {
      kernels().tiles->wgrad_special(m.x, m.gy, problem_.kernel, first_row(strip), rows_of(strip), task / cins_,
                                     task % cins_, m.sums + task * pair_sums());
    });
  }
}

void TilesWgrad::add_up(const Memory& m, const WgradCall& call) const {
  const WeightView<void>& shape = call.shape;
  float *gw = static_cast<float*>(call.gw), *gb = static_cast<float*>(call.gb);
  parallel_for(shape.out, problem_.threads, [&](int64_t out, int) {
    for (int64_t tap = 0; tap < shape.kernel * shape.kernel; ++tap) {
      float* to = gw + out * shape.stride_out + tap / shape.kernel * shape.stride_row +
                  tap % shape.kernel * shape.stride_column;
      for (int64_t in = 0; in < shape.in; ++in) {
        const float* sums = m.sums + (out / pair * cins_ + in / pair) * pair_sums() + tap * sums_tap +
                            (out % pair / block * 2 + in % pair / block) * sums_tile + out % block * block + in % block;
        float sum = 0;
        for (int64_t part = 0; part < parts_; ++part) sum += sums[part * part_sums()];
        to[in * shape.stride_in] = sum;
      }
    }
    if (!gb) return;
    float sum = 0;
    for (int64_t strip = 0; strip < strips_; ++strip) sum += m.bias[strip * couts_ * pair + out];
    gb[out * call.gb_stride] = sum;
  });
}

void TilesWgrad::run(const WgradCall& call) const {
  auto* const base = static_cast<std::byte*>(call.workspace);
  const Memory m{.x = cast<Bf16>(call.x),
                 .gy = cast<Bf16>(call.gy),
                 .operands = reinterpret_cast<Bf16*>(base),
                 .sums = reinterpret_cast<float*>(base + sums_at()),
                 .bias = reinterpret_cast<float*>(base + bias_at()),
                 .special = reinterpret_cast<uint8_t*>(base + special_at())};
  parts_ > 1 ? run_parts(m) : run_groups(m);
  add_special(m);
  add_up(m, call);
}

bool supports(const ConvProblem& p) {
  return kernels().tiles && p.pass == Pass::wgrad && p.dtype == DType::bf16 && !p.packed && !p.bf16_weights;
}

ConvEstimate cost(const ConvProblem& p) {
  const int64_t channels = ceil_div(p.in.c, block) * block * ceil_div(p.cout, pair) * pair;
  return {p.in.n * p.in.h * p.in.w * p.kernel * p.kernel * channels / tile_speed, 0};
}

size_t workspace_bytes(const ConvProblem& p) { return TilesWgrad(p).workspace_bytes(); }

void run_wgrad(const ConvProblem& p, const WgradCall& call) { TilesWgrad(p).run(call); }

}  // namespace

const ConvAlgorithm tiles_wgrad_conv{.name = "tiles",
                                     .settable = false,
                                     .on_tiles = true,
                                     .roundings = 8,
                                     .supports = supports,
                                     .cost = cost,
                                     .packed_bytes = nullptr,
                                     .workspace_bytes = workspace_bytes,
                                     .pack = nullptr,
                                     .run = nullptr,
                                     .run_wgrad = run_wgrad};

}  // namespace vggfast::cpu
