// The first layer's convolution, 3x3 over RGB, on the CPU: sizes, packing, and how threads divide the rows.
// Kernels: cpu/kernels/stem.h.
#include "cpu/algorithms/stem.h"

#include <algorithm>

#include "cpu/algorithms/quantise.h"
#include "cpu/parallel.h"

namespace vggfast::cpu {
namespace {

// Groups of rows that have sums of their own. Their number depends on the shape alone, so the result does not depend on
// the number of threads.
constexpr int64_t wgrad_groups = 64;
constexpr int64_t strip_bytes = 256 << 10;  // of the output in float that is rounded to 8 bits at a time: a part of L2

int64_t rows_per_group(Extent in) { return std::max<int64_t>(ceil_div(in.n * in.h, wgrad_groups), 1); }

class Stem {
 public:
  static bool suits(int64_t cin, int64_t kernel) { return cin == channels && kernel == 3; }

  explicit Stem(int64_t cout);

  /// Floats of the packed weights with the padded bias, and of the scratch of `threads` threads.
  int64_t packed_values() const { return (values + 1) * padded_; }
  int64_t scratch_values(Extent in, int threads) const { return std::max(threads, 1) * scratch_of(in); }

  void pack(const WeightView<float>& weight, const float* bias, float* packed) const;
  template <class S>
  void fprop(const ConvInput<S>& in, const float* packed, const ConvOutput<S>& out, float* scratch, int threads) const;
  void fprop_u8(const ConvInput<float>& in, const float* packed, const ConvOutput<uint8_t>& out, bool blocked,
                float inverse, float* workspace, int threads) const;
  /// Floats of the workspace of fprop_u8, whose output has rows of so many pixels.
  int64_t u8_values(Extent in, int64_t out_w, int threads) const {
    return scratch_values(in, threads) + std::max(threads, 1) * strip_rows(out_w) * out_w * cout_;
  }

  int64_t wgrad_values(Extent in, int threads) const;
  /// `gb` may be null; its stride is in elements. `workspace`: wgrad_values().
  void wgrad(const ConvInput<float>& x, const ConvInput<float>& gy, const WeightView<float>& shape, float* gw,
             float* gb, int64_t gb_stride, float* workspace, int threads) const;

 private:
  static constexpr int64_t channels = 3, values = 27;
  int64_t scratch_of(Extent in) const;
  int64_t strip_rows(int64_t out_w) const {
    const int64_t row_bytes = out_w * cout_ * static_cast<int64_t>(sizeof(float));
    return std::max<int64_t>(strip_bytes / std::max<int64_t>(row_bytes, 1), 1);
  }

  const KernelTable& kernels_;
  int64_t cout_, padded_;
};

Stem::Stem(int64_t cout) : kernels_(kernels()), cout_(cout), padded_(ceil_div(cout, kernels_.lanes) * kernels_.lanes) {}

int64_t Stem::scratch_of(Extent in) const {
  const int64_t lines = 4 * (in.w + 2) * channels, products = 4 * kernels_.stem_segment * kernels_.lanes;
  return lines + products + kernels_.lanes;
}

void Stem::pack(const WeightView<float>& weight, const float* bias, float* packed) const {
  std::fill_n(packed, packed_values(), 0.0f);
  const int64_t lanes = kernels_.lanes;
  for (int64_t out = 0; out < cout_; ++out) {
    for (int64_t value = 0; value < values; ++value) {
      const int64_t r = value / 9, s = value % 9 / channels, c = value % channels;
      packed[(out / lanes * values + value) * lanes + out % lanes] =
          weight
              .data[out * weight.stride_out + c * weight.stride_in + r * weight.stride_row + s * weight.stride_column];
    }
    if (bias) packed[values * padded_ + out] = bias[out];
  }
}

template <class S>
void Stem::fprop(const ConvInput<S>& in, const float* packed, const ConvOutput<S>& out, float* scratch,
                 int threads) const {
  const StemArgs<S> args{in, packed, packed + values * padded_, streamed(out, in.extent.n)};
  const int64_t each = scratch_of(in.extent);
  parallel_ranges(in.extent.n * out.h, 1, threads, [&](int64_t begin, int64_t end, int worker) {
    kernels_.stem_fprop<S>()(args, begin, end, scratch + worker * each);
  });
}

void Stem::fprop_u8(const ConvInput<float>& in, const float* packed, const ConvOutput<uint8_t>& out, bool blocked,
                    float inverse, float* workspace, int threads) const {
  const int64_t each = scratch_of(in.extent), most = strip_rows(out.w), rows = in.extent.n * out.h;
  float* const strips = workspace + scratch_values(in.extent, threads);
  const Extent extent{in.extent.n, out.h, out.w, out.c};
  parallel_for(ceil_div(rows, most), threads, [&](int64_t task, int worker) {
    const int64_t begin = task * most, end = std::min(begin + most, rows);
    float* const strip = strips + worker * most * out.w * out.c;
    const StemArgs<float> args{
        .in = in,
        .packed = packed,
        .bias = packed + values * padded_,
        .out = {.y = strip, .h = out.h, .w = out.w, .c = out.c, .relu = out.relu, .pool = out.pool},
        .y_row = begin};
    kernels_.stem_fprop_f32(args, begin, end, workspace + worker * each);
    quantise_lines(strip, begin, end, extent, inverse, out.y, blocked);
  });
}

int64_t Stem::wgrad_values(Extent in, int threads) const {
  return wgrad_groups * packed_values() + scratch_values(in, threads);
}

void Stem::wgrad(const ConvInput<float>& x, const ConvInput<float>& gy, const WeightView<float>& shape, float* gw,
                 float* gb, int64_t gb_stride, float* workspace, int threads) const {
  const int64_t rows = x.extent.n * x.extent.h, group_rows = rows_per_group(x.extent);
  const int64_t groups = ceil_div(rows, group_rows), sums = packed_values(), each = scratch_of(x.extent);
  float* scratch = workspace + wgrad_groups * sums;
  parallel_for(groups, threads, [&](int64_t group, int worker) {
    float* partial = workspace + group * sums;
    std::fill_n(partial, sums, 0.0f);
    kernels_.stem_wgrad(x, gy, group * group_rows, std::min((group + 1) * group_rows, rows), partial,
                        gb ? partial + values * padded_ : nullptr, scratch + worker * each);
  });
  const auto total = [&](int64_t value, int64_t out) {
    float sum = 0;
    for (int64_t group = 0; group < groups; ++group) sum += workspace[group * sums + value * padded_ + out];
    return sum;
  };
  for (int64_t out = 0; out < cout_; ++out) {
    for (int64_t value = 0; value < values; ++value) {
      gw[out * shape.stride_out + value % channels * shape.stride_in + value / 9 * shape.stride_row +
         value % 9 / channels * shape.stride_column] = total(value, out);
    }
    if (gb) gb[out * gb_stride] = total(values, out);
  }
}

bool supports(const ConvProblem& p) {
  if (p.pass == Pass::dgrad || !Stem::suits(p.in.c, p.kernel) || p.bf16_weights) return false;
  return p.packed ? p.pass == Pass::fprop && p.dtype != DType::f64 : p.dtype == DType::f32;
}

ConvEstimate cost(const ConvProblem& p) {
  return {p.in.n * p.in.h * p.in.w * p.kernel * p.kernel * p.in.c * p.cout, 0};
}

size_t packed_bytes(const ConvProblem& p) { return sizeof(float) * static_cast<size_t>(Stem(p.cout).packed_values()); }

size_t workspace_bytes(const ConvProblem& p) {
  const Stem layer(p.cout);
  if (p.pass == Pass::wgrad) return sizeof(float) * static_cast<size_t>(layer.wgrad_values(p.in, p.threads));
  const int64_t scratch = layer.scratch_values(p.in, p.threads);
  return sizeof(float) * static_cast<size_t>(scratch + (p.packed ? 0 : layer.packed_values()));
}

void pack(const ConvProblem& p, const WeightView<float>& weight, const float* bias, void* packed) {
  Stem(p.cout).pack(weight, bias, static_cast<float*>(packed));
}

void run(const ConvProblem& p, const ConvCall& call) {
  const Stem layer(p.cout);
  const float* packed = static_cast<const float*>(call.packed);
  float* free = static_cast<float*>(call.workspace);
  if (!p.packed) {
    layer.pack(cast<float>(call.weight), static_cast<const float*>(call.bias), free);
    packed = free;
    free += layer.packed_values();
  }
  if (p.dtype == DType::bf16) {
    layer.fprop(cast<Bf16>(call.in), packed, cast<Bf16>(call.out), free, p.threads);
  } else {
    layer.fprop(cast<float>(call.in), packed, cast<float>(call.out), free, p.threads);
  }
}

void run_wgrad(const ConvProblem& p, const WgradCall& call) {
  Stem(p.cout).wgrad(cast<float>(call.x), cast<float>(call.gy), cast<float>(call.shape), static_cast<float*>(call.gw),
                     static_cast<float*>(call.gb), call.gb_stride, static_cast<float*>(call.workspace), p.threads);
}

int64_t pooled_width(const ConvProblem& p) { return p.epilogue.pool ? p.in.w / 2 : p.in.w; }

}  // namespace

void run_stem_u8(const ConvProblem& p, const ConvCall& call, float inverse) {
  Stem(p.cout).fprop_u8(cast<float>(call.in), static_cast<const float*>(call.packed), cast<uint8_t>(call.out),
                        p.blocked_out, inverse, static_cast<float*>(call.workspace), p.threads);
}

size_t stem_u8_workspace(const ConvProblem& p) {
  return sizeof(float) * static_cast<size_t>(Stem(p.cout).u8_values(p.in, pooled_width(p), p.threads));
}

const ConvAlgorithm stem_conv{.name = "direct",
                              .roundings = 8,
                              .supports = supports,
                              .cost = cost,
                              .packed_bytes = packed_bytes,
                              .workspace_bytes = workspace_bytes,
                              .pack = pack,
                              .run = run,
                              .run_wgrad = run_wgrad};

}  // namespace vggfast::cpu
