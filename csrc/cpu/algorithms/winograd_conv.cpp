// F(2 x 2, 3 x 3), F(4 x 4, 3 x 3), F(6 x 6, 3 x 3), and 1x1 convolution as their case of m = 1, for the table of
// algorithms.
#include <algorithm>

#include "cpu/algorithms/conv_algorithm.h"
#include "cpu/algorithms/winograd.h"
#include "cpu/algorithms/winograd_wgrad.h"
#include "vggfast/memory.h"

namespace vggfast::cpu {
namespace {

/// Estimates, in multiply-adds of the direct convolution: per point of a tile, what moving one channel through a
/// transform costs; and per point of one pair of channels, what its transformed weights cost to pack, or to stream.
constexpr double transform_cost = 14, pack_cost = 35, stream_cost = 9;

constexpr int points_of(int m) { return m == 1 ? 1 : (m + 2) * (m + 2); }

size_t float_bytes(int64_t values) { return sizeof(float) * static_cast<size_t>(values); }

/// Tiles may cover several images, but not where a mask of a pool says which input each value belongs to.
bool mosaics(const ConvProblem& p) { return !(p.masked && p.epilogue.pool); }

template <int m>
bool supports(const ConvProblem& p) {
  if (p.kernel != (m == 1 ? 1 : 3)) return false;
  if (m == 1 && p.epilogue.pool) return false;  // its tile is one pixel
  if (!p.packed) return p.dtype == DType::f32 && !p.bf16_weights;
  if (p.bf16_weights && (m > 1 || p.dtype == DType::bf16)) return false;
  return p.pass == Pass::fprop && p.dtype != DType::f64;
}

template <int m>
ConvEstimate cost(const ConvProblem& p) {
  constexpr int points = points_of(m);
  const int64_t tiles = Winograd(m, p.in.c, p.cout).tiles(p.in), weights = p.in.c * p.cout;
  const double saved = p.packed ? 0 : points * static_cast<double>(weights) * (pack_cost - stream_cost);
  const ConvEstimate products{points * tiles * weights, 0, saved};
  if (m == 1) return products;
  const double transforms = static_cast<double>(tiles) * transform_cost * static_cast<double>(p.in.c + p.cout);
  const double packing = static_cast<double>(weights) * (p.packed ? stream_cost : pack_cost);
  return {products.multiply_adds, points * (transforms + packing), saved};
}

template <int m>
size_t packed_bytes(const ConvProblem& p) {
  const Winograd layer(m, p.in.c, p.cout);
  if (!p.bf16_weights) return float_bytes(layer.packed_values());
  const int64_t weights = layer.weight_values();
  return sizeof(Bf16) * static_cast<size_t>(weights) + float_bytes(layer.packed_values() - weights);
}

template <int m>
size_t workspace_bytes(const ConvProblem& p) {
  if (p.pass == Pass::wgrad) {
    return float_bytes(WinogradWgrad(m, p.in, p.cout, mosaics(p)).workspace_values(p.threads));
  }
  const Winograd layer(m, p.in.c, p.cout);
  return float_bytes(p.packed ? layer.scratch_values(p.in, p.threads)
                              : layer.workspace_values(p.in, mosaics(p), p.threads));
}

template <int m>
void pack(const ConvProblem& p, const WeightView<float>& weight, const float* bias, void* packed) {
  const Winograd layer(m, p.in.c, p.cout);
  if (!p.bf16_weights) return layer.pack(weight, bias, static_cast<float*>(packed), p.threads);
  const int64_t weights = layer.weight_values(), biases = layer.packed_values() - weights;
  const Buffer whole(float_bytes(layer.packed_values()));
  layer.pack(weight, bias, whole.as<float>(), p.threads);
  Bf16* half = static_cast<Bf16*>(packed);
  kernels().to_bf16(whole.as<float>(), weights, half);
  std::copy_n(whole.as<float>() + weights, biases, reinterpret_cast<float*>(half + weights));
}

template <int m>
void run(const ConvProblem& p, const ConvCall& call) {
  const Winograd layer(m, p.in.c, p.cout);
  float* workspace = static_cast<float*>(call.workspace);
  if (!p.packed) {
    layer.fprop(cast<float>(call.in), cast<float>(call.weight), static_cast<const float*>(call.bias),
                cast<float>(call.out), workspace, p.threads);
  } else if (p.bf16_weights) {
    const Bf16* weights = static_cast<const Bf16*>(call.packed);
    const float* bias = reinterpret_cast<const float*>(weights + layer.weight_values());
    layer.fprop(cast<float>(call.in), weights, bias, cast<float>(call.out), workspace, p.threads);
  } else if (p.dtype == DType::bf16) {
    layer.fprop(cast<Bf16>(call.in), static_cast<const float*>(call.packed), static_cast<const float*>(call.bias),
                cast<Bf16>(call.out), workspace, p.threads);
  } else {
    layer.fprop(cast<float>(call.in), static_cast<const float*>(call.packed), static_cast<const float*>(call.bias),
                cast<float>(call.out), workspace, p.threads);
  }
}

template <int m>
void run_wgrad(const ConvProblem& p, const WgradCall& call) {
  WinogradWgrad(m, p.in, p.cout, mosaics(p))
      .run(cast<float>(call.x), cast<float>(call.gy), cast<float>(call.shape), static_cast<float*>(call.gw),
           static_cast<float*>(call.gb), call.gb_stride, static_cast<float*>(call.workspace), p.threads);
}

template <int m>
constexpr ConvAlgorithm winograd(const char* name, int roundings) {
  return {.name = name,
          .settable = m > 1,
          .roundings = roundings,
          .supports = supports<m>,
          .cost = cost<m>,
          .packed_bytes = packed_bytes<m>,
          .workspace_bytes = workspace_bytes<m>,
          .pack = pack<m>,
          .run = run<m>,
          .run_wgrad = run_wgrad<m>};
}

}  // namespace

const ConvAlgorithm pointwise_conv = winograd<1>("1x1", 8);
const ConvAlgorithm winograd2_conv = winograd<2>("winograd2", 128);
const ConvAlgorithm winograd4_conv = winograd<4>("winograd4", 256);
const ConvAlgorithm winograd6_conv = winograd<6>("winograd6", 1024);

}  // namespace vggfast::cpu
