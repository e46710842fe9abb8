// Which convolutions the stem's kernels take, and their runs.
#include "cuda/conv/common/reduce.h"
#include "cuda/conv/conv_algorithm.h"
#include "cuda/conv/heuristics.h"
#include "cuda/conv/stem/dgrad.h"
#include "cuda/conv/stem/stem.h"
#include "cuda/dtypes.h"

namespace vggfast::cuda {
namespace {

/// The kernels' arithmetic, and the sizes that they are made for. They have no choice of tiles: if one was asked for,
/// it is another family's.
bool supports(DType dtype, int64_t channels, int64_t cout, int64_t kernel, int64_t w, const Context& context) {
  constexpr int64_t most_channels = 4, most_columns = 1 << 29;  // four values of each pixel of a row count in 31 bits
  const bool arithmetic = dtype == DType::bf16 || dtype == DType::f16 || (dtype == DType::f32 && context.tf32);
  return arithmetic && tile_is_auto() && kernel == 3 && channels <= most_channels && cout % 8 == 0 && w < most_columns;
}

/// Whether gz can be read by chunks that are counted in 32 bits (Source::Stored).
template <class T>
bool readable(const Source<T>& gz) {
  const int64_t chunks = int64_t(gz.n) * gz.stored_h * gz.stored_w * (gz.c / chunk_of<T>);
  return reads_of(gz) != Reads::gathered && chunks < Source<T>::Stored::nowhere;
}

bool supports_fprop(const ConvFprop& p) {
  const Tensor& weight = p.weight;
  return supports(p.x.dtype, weight.size(1), weight.size(0), weight.size(2), p.x.size(3), p.context);
}

void run_fprop_pass(const ConvFprop& p, Workspace) {
  for_tensor_cores(p.x.dtype, [&]<class T>() {
    const int64_t h = p.x.size(2), w = p.x.size(3);
    stem_fprop(source_of<T>(p.x, {}, h, w), fprop_view<T>(p.weight),
               output_of<T>(*p.y, h, w, p.epilogue, p.bias, p.mask), p.context);
  });
}

bool supports_dgrad(const ConvDgrad& p) {
  const int64_t cout = p.weight.size(0), cin = p.weight.size(1);
  return supports(p.gy.dtype, cin, cout, p.weight.size(2), p.w, p.context) &&
         for_tensor_cores(p.gy.dtype, [&]<class T>() {
           return readable(source_of<T>(p.gy, p.masked, p.h, p.w)) &&
                  StemDgrad::weight_bytes<T>(static_cast<int>(cout)) <= StemDgrad::most_weight_bytes;
         });
}

void run_dgrad_pass(const ConvDgrad& p, Workspace) {
  for_tensor_cores(p.gy.dtype, [&]<class T>() {
    stem_dgrad(source_of<T>(p.gy, p.masked, p.h, p.w), dgrad_view<T>(p.weight), p.gx->as<T>(), p.context);
  });
  // Few values, and no layer of a VGG's has its input from a ReLU: in place.
  if (p.x_mask) cuda::mask_scatter(*p.gx, *p.x_mask, {.relu = true}, *p.gx, p.context);
}

template <class T>
Source<T> gradient_of(const ConvWgrad& p) {
  return source_of<T>(p.gy, p.masked, p.x.size(2), p.x.size(3));
}

bool supports_wgrad(const ConvWgrad& p) {
  return supports(p.x.dtype, p.x.size(1), p.gy.size(1), p.kernel, p.x.size(3), p.context) &&
         for_tensor_cores(p.x.dtype, [&]<class T>() { return readable(gradient_of<T>(p)); });
}

size_t wgrad_bytes(const ConvWgrad& p) {
  return for_tensor_cores(p.x.dtype, [&]<class T>() {
    const Source<T> gz = gradient_of<T>(p);
    return partial_bytes<T>(stem_wgrad_splits(gz), gz.c, 9 * p.x.size(1));
  });
}

void run_wgrad_pass(const ConvWgrad& p, Workspace workspace) {
  for_tensor_cores(p.x.dtype, [&]<class T>() {
    const Source<T> x = source_of<T>(p.x, {}, p.x.size(2), p.x.size(3)), gz = gradient_of<T>(p);
    sum_and_reduce(p, x, gz, stem_wgrad_splits(gz), workspace,
                   [&](const WgradArgs<T>& args) { stem_wgrad(args, p.context); });
  });
}

template <class Problem>
size_t no_bytes(const Problem&) {
  return 0;
}

}  // namespace

const ConvAlgorithm stem_conv = {
    .name = "stem",
    .fprop = {.supports = supports_fprop, .workspace_bytes = no_bytes, .run = run_fprop_pass},
    .dgrad = {.supports = supports_dgrad, .workspace_bytes = no_bytes, .run = run_dgrad_pass},
    .wgrad = {.supports = supports_wgrad, .workspace_bytes = wgrad_bytes, .run = run_wgrad_pass},
};

}  // namespace vggfast::cuda
