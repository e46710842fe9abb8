// Layers of 8 bits on tile registers. Kernels: cpu/kernels/tile_int8.h.
#include <cstring>

#include "cpu/algorithms/int8.h"
#include "cpu/algorithms/tiles.h"
#include "cpu/parallel.h"
#include "cpu/tile_int8_kernels.h"

namespace vggfast::cpu {
namespace {

constexpr int64_t step_inputs = BlockedMap<uint8_t>::channels;  // of one product
constexpr int64_t tile_outputs = 16, word = 4;
constexpr int64_t grain_values = 1 << 14;  // of inputs copied that make a piece of work worth a thread

class TileLayer final : public Int8Layer {
 public:
  explicit TileLayer(const Int8Shape& shape)
      : kernels_(*kernels().int8_tiles),
        shape_(shape),
        outputs_(shape.rows ? tile_int8_outputs : block_outputs),
        blocks_(ceil_div(shape.cout, outputs_)),
        steps_(ceil_div(shape.in.c, step_inputs) * shape.kernel * shape.kernel) {}

  const char* name() const override { return "int8 tiles"; }
  bool takes_blocks() const override { return !shape_.rows; }

  size_t packed_bytes() const override {
    return static_cast<size_t>(weight_bytes() + 2 * padded() * static_cast<int64_t>(sizeof(float)));
  }

  void pack(const WeightView<int8_t>& w, const float* unit, const float* bias, void* packed,
            int threads) const override {
    const int64_t taps = w.kernel * w.kernel, task_bytes = step_inputs * outputs_;
    parallel_for(blocks_ * steps_, threads, [&](int64_t task, int) {
      const int64_t first = task / steps_ * outputs_, in = task % steps_ / taps * step_inputs, tap = task % taps;
      const int8_t* from = w.data + tap / w.kernel * w.stride_row + tap % w.kernel * w.stride_column;
      int8_t* to = static_cast<int8_t*>(packed) + task * task_bytes;
      for (int64_t tile = first; tile < first + outputs_; tile += tile_outputs) {
        for (int64_t i = in; i < in + step_inputs; i += word) {
          for (int64_t out = tile; out < tile + tile_outputs; ++out) {
            for (int64_t term = i; term < i + word; ++term) {
              *to++ = out < w.out && term < w.in ? from[out * w.stride_out + term * w.stride_in] : int8_t{0};
            }
          }
        }
      }
    });
    pack_epilogue(unit, bias, shape_.cout, padded(), const_cast<float*>(unit_of(packed)));
  }

  size_t conv_workspace(const Extent&, bool, int) const override { return 0; }

  void conv(const uint8_t* x, const Extent& in, const void* packed, const Int8Output& out, void*,
            int threads) const override {
    const Extent y{in.n, out.h, out.w, out.c};
    const TileInt8ConvArgs args{.x = blocked_map<uint8_t>(const_cast<uint8_t*>(x), in),
                                .h = in.h,
                                .w = in.w,
                                .kernel = shape_.kernel,
                                .packed = static_cast<const int8_t*>(packed),
                                .unit = unit_of(packed),
                                .bias = unit_of(packed) + padded(),
                                .out = out,
                                .y = out.blocked ? blocked_map<uint8_t>(out.y, y) : BlockedMap<uint8_t>{}};
    const int64_t pairs = out.pool ? out.h : ceil_div(in.h, 2);
    for_tile_tasks({in.n, pairs, in.w, blocks_, steps_}, threads,
                   [&](auto... range) { kernels_.conv(args, range...); });
  }

  size_t linear_workspace(int64_t rows, int threads) const override {
    return static_cast<size_t>(sums_bytes() * threads + groups_of(rows) * group_rows(rows) * steps_ * step_inputs);
  }

  void linear(const uint8_t* x, int64_t rows, const void* packed, const Int8Output& out, void* workspace,
              int threads) const override {
    uint8_t* const copied = static_cast<uint8_t*>(workspace) + sums_bytes() * threads;
    copy_rows(x, rows, copied, threads);
    const TileInt8LinearArgs args{.rows = rows,
                                  .steps = steps_,
                                  .x = copied,
                                  .packed = static_cast<const int8_t*>(packed),
                                  .unit = unit_of(packed),
                                  .bias = unit_of(packed) + padded(),
                                  .out = out};
    parallel_for(blocks_, threads, [&](int64_t block, int worker) {
      auto* const sums = static_cast<std::byte*>(workspace) + sums_bytes() * worker;
      kernels_.linear(args, block, block + 1, reinterpret_cast<int32_t*>(sums));
    });
  }

 private:
  int64_t weight_bytes() const { return blocks_ * steps_ * step_inputs * outputs_; }
  int64_t padded() const { return blocks_ * outputs_; }
  const float* unit_of(const void* packed) const {
    return reinterpret_cast<const float*>(static_cast<const std::byte*>(packed) + weight_bytes());
  }
  int64_t sums_bytes() const { return int8_linear_rows * outputs_ * static_cast<int64_t>(sizeof(int32_t)); }
  /// How rows lie together, as TileInt8LinearArgs has them.
  static int64_t group_rows(int64_t rows) { return rows == 1 ? 1 : tile_rows; }
  static int64_t groups_of(int64_t rows) { return ceil_div(rows, group_rows(rows)); }

  void copy_rows(const uint8_t* x, int64_t rows, uint8_t* to, int threads) const {
    const int64_t group = group_rows(rows);
    parallel_ranges(groups_of(rows) * steps_, 1 + grain_values / (group * step_inputs), threads,
                    [&](int64_t begin, int64_t end, int) {
                      for (int64_t part = begin; part < end; ++part) {
                        const int64_t first = part / steps_ * group, in = part % steps_ * step_inputs;
                        const int64_t count = std::min(shape_.in.c - in, step_inputs);
                        uint8_t* line = to + part * group * step_inputs;
                        for (int64_t row = first; row < first + group; ++row, line += step_inputs) {
                          const int64_t kept = row < rows ? count : 0;
                          if (kept > 0) std::memcpy(line, x + row * shape_.in.c + in, static_cast<size_t>(kept));
                          std::memset(line + kept, 0, static_cast<size_t>(step_inputs - kept));
                        }
                      }
                    });
  }

  const TileInt8Kernels& kernels_;
  const Int8Shape shape_;
  const int64_t outputs_, blocks_, steps_;  // outputs of a block; blocks; products of a block's sums
};

}  // namespace

std::unique_ptr<const Int8Layer> make_tile_int8_layer(const Int8Shape& shape) {
  return std::make_unique<TileLayer>(shape);
}

}  // namespace vggfast::cpu
