// The kernels for any GPU from sm_80 on: convolutions of every shape and dtype.
#include "core/conv_checks.h"
#include "cuda/conv/common/pack.h"
#include "cuda/conv/common/reduce.h"
#include "cuda/conv/conv_algorithm.h"
#include "cuda/conv/sm80/run.h"
#include "cuda/dtypes.h"

namespace vggfast::cuda {
namespace {

/// Calls body.operator()<Math>() for the arithmetic of T.
template <class T, class Body>
void with_math(const Context& context, Body body) {
  if constexpr (std::is_same_v<T, bf16>) {
    body.template operator()<Bf16Math>();
  } else if constexpr (std::is_same_v<T, f16>) {
    body.template operator()<F16Math>();
  } else if constexpr (std::is_same_v<T, double>) {
    body.template operator()<F64Math>();
  } else {
    context.tf32 ? body.template operator()<Tf32Math>() : body.template operator()<F32Math>();
  }
}

/// fprop of any source, by weights of any view.
template <class T>
void convolve(const Source<T>& x, const WeightView<T>& weights, const Output<T>& y, const Workspace* packed,
              Workspace workspace, const Context& context) {
  check_workspace(workspace, packing_bytes(weights, packed));
  if (x.n * x.h * x.w == 0) return;
  FpropArgs<T> args{.x = x,
                    .windows = Windows(x.n, x.h, x.w),
                    .weights = packed_weights(weights, packed, workspace, context),
                    .depth = static_cast<int>(weights.depth()),
                    .kernel = weights.kernel,
                    .column_tiles = 0,
                    .y = y};
  const TileShape shape = choose_fprop_tile(4 * int64_t(args.windows.count), y.c);
  with_math<T>(context, [&]<class Math>() { run_fprop<Math>(args, shape, context); });
}

size_t fprop_bytes(const ConvFprop& p) {
  return for_float(p.x, "x", [&]<class T>() { return packing_bytes(fprop_view<T>(p.weight), p.packed); });
}

void run_fprop_pass(const ConvFprop& p, Workspace workspace) {
  for_float(p.x, "x", [&]<class T>() {
    const int64_t h = p.x.size(2), w = p.x.size(3);
    convolve(source_of<T>(p.x, {}, h, w), fprop_view<T>(p.weight), output_of<T>(*p.y, h, w, p.epilogue, p.bias, p.mask),
             p.packed, workspace, p.context);
  });
}

size_t dgrad_bytes(const ConvDgrad& p) {
  return for_float(p.gy, "gy", [&]<class T>() { return packing_bytes(dgrad_view<T>(p.weight), p.packed); });
}

void run_dgrad_pass(const ConvDgrad& p, Workspace workspace) {
  for_float(p.gy, "gy", [&]<class T>() {
    convolve(source_of<T>(p.gy, p.masked, p.h, p.w), dgrad_view<T>(p.weight),
             output_of<T>(*p.gx, p.h, p.w, {}, nullptr, nullptr, p.x_mask), p.packed, workspace, p.context);
  });
}

template <class T>
WgradPlan plan_of(const Tensor& x, const Tensor& gy, int64_t kernel) {
  const int64_t pixels = x.size(0) * x.size(2) * x.size(3);
  return choose_wgrad(gy.size(1), kernel * kernel * x.size(1), ceil_div(pixels, pixels_of_a_stage<T>));
}

size_t wgrad_bytes(const ConvWgrad& p) {
  return for_float(p.x, "x", [&]<class T>() {
    return partial_bytes<T>(plan_of<T>(p.x, p.gy, p.kernel).splits, p.gy.size(1), p.kernel * p.kernel * p.x.size(1));
  });
}

void run_wgrad_pass(const ConvWgrad& p, Workspace workspace) {
  for_float(p.x, "x", [&]<class T>() {
    const int64_t h = p.x.size(2), w = p.x.size(3);
    const WgradPlan plan = plan_of<T>(p.x, p.gy, p.kernel);
    sum_and_reduce(p, source_of<T>(p.x, {}, h, w), source_of<T>(p.gy, p.masked, h, w), plan.splits, workspace,
                   [&](WgradArgs<T>& args) {
                     with_math<T>(p.context, [&]<class Math>() { run_wgrad<Math>(args, plan.tile, p.context); });
                   });
  });
}

template <class Problem>
bool always(const Problem&) {
  return true;
}

}  // namespace

const ConvAlgorithm sm80_conv = {
    .name = "sm80",
    .fprop = {.supports = always, .workspace_bytes = fprop_bytes, .run = run_fprop_pass},
    .dgrad = {.supports = always, .workspace_bytes = dgrad_bytes, .run = run_dgrad_pass},
    .wgrad = {.supports = always, .workspace_bytes = wgrad_bytes, .run = run_wgrad_pass},
};

}  // namespace vggfast::cuda
