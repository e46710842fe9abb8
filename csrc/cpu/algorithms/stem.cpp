// The first layer's convolution, 3x3 over RGB, on the CPU: sizes, packing, and how threads divide the rows.
// Kernels: cpu/kernels/stem.h.
#include <algorithm>

#include "cpu/algorithms/conv_algorithm.h"
#include "cpu/parallel.h"

namespace vggfast::cpu {
namespace {

// Groups of rows that have sums of their own. Their number depends on the shape alone, so the result does not depend on
// the number of threads.
constexpr int64_t wgrad_groups = 64;

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

  int64_t wgrad_values(Extent in, int threads) const;
  /// `gb` may be null; its stride is in elements. `workspace`: wgrad_values().
  void wgrad(const ConvInput<float>& x, const ConvInput<float>& gy, const WeightView<float>& shape, float* gw,
             float* gb, int64_t gb_stride, float* workspace, int threads) const;

 private:
  static constexpr int64_t channels = 3, values = 27;
  int64_t scratch_of(Extent in) const;

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

}  // namespace

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
