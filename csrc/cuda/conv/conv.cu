// Convolution on CUDA: checks, and the choice of who computes it (conv_algorithm.h).
#include "core/conv_checks.h"
#include "cuda/conv/common/pack.h"
#include "cuda/conv/conv_algorithm.h"
#include "cuda/dtypes.h"

namespace vggfast::cuda {
namespace {

/// The kernels count pixels and windows in 31 bits.
void check_pixels(const Tensor& t, const char* name, int64_t h, int64_t w) {
  VGGFAST_CHECK(t.size(0) * (h + 1) * (w + 1) < int64_t(1) << 31, name, " must have under 2^31 pixels, got shape ",
                describe(t.shape));
}

/// How the preferred algorithm that supports the problem computes this pass.
template <class Problem>
const ConvPass<Problem>& choose(ConvPass<Problem> ConvAlgorithm::* pass, const Problem& problem) {
  for (const ConvAlgorithm* algorithm : conv_algorithms()) {
    if ((algorithm->*pass).supports(problem)) return algorithm->*pass;
  }
  fail("no algorithm supports this convolution");
}

size_t fprop_workspace(const Tensor& x, const Tensor& weight, Epilogue e, const Workspace* packed,
                       const Context& context) {
  check_nhwc(x, "x");
  check_kernel(weight, x.size(1), 1, "x");
  check_float(x, "x");
  const ConvFprop problem{.x = x, .weight = weight, .epilogue = e, .context = context, .packed = packed};
  return choose(&ConvAlgorithm::fprop, problem).workspace_bytes(problem);
}

size_t dgrad_workspace(const Tensor& gy, const Masked& masked, const Tensor& weight, int64_t h, int64_t w,
                       const Workspace* packed, const Context& context) {
  check_gradient(gy, masked, h, w);
  check_kernel(weight, gy.size(1), 0, "gy");
  check_float(gy, "gy");
  const ConvDgrad problem{
      .gy = gy, .masked = masked, .weight = weight, .h = h, .w = w, .context = context, .packed = packed};
  return choose(&ConvAlgorithm::dgrad, problem).workspace_bytes(problem);
}

void fprop(const Tensor& x, const Tensor& weight, const Tensor* bias, Epilogue e, const Tensor& y, const Tensor* mask,
           const Workspace* packed, Workspace workspace, const Context& context) {
  check_fprop(x, weight, bias, e, y, mask);
  check_pixels(x, "x", x.size(2), x.size(3));
  check_float(x, "x");
  const ConvFprop problem{.x = x,
                          .weight = weight,
                          .epilogue = e,
                          .context = context,
                          .y = &y,
                          .bias = bias,
                          .mask = mask,
                          .packed = packed};
  choose(&ConvAlgorithm::fprop, problem).run(problem, workspace);
}

void dgrad(const Tensor& gy, const Masked& masked, const Tensor& weight, const Tensor& gx, const Tensor* x_mask,
           const Workspace* packed, Workspace workspace, const Context& context) {
  check_dgrad(gy, masked, weight, gx, x_mask);
  check_pixels(gx, "gx", gx.size(2), gx.size(3));
  check_float(gy, "gy");
  const ConvDgrad problem{.gy = gy,
                          .masked = masked,
                          .weight = weight,
                          .h = gx.size(2),
                          .w = gx.size(3),
                          .context = context,
                          .gx = &gx,
                          .x_mask = x_mask,
                          .packed = packed};
  choose(&ConvAlgorithm::dgrad, problem).run(problem, workspace);
}

/// Calls body with the view of the weight that fprop packs, or dgrad.
template <class Body>
auto with_view(const Tensor& weight, bool mirrored, Body body) {
  check_kernel(weight, weight.dim() == 4 ? weight.size(1) : 0, 1, "itself");
  return for_float(weight, "weight",
                   [&]<class T>() { return body(mirrored ? dgrad_view<T>(weight) : fprop_view<T>(weight)); });
}

/// In place of what a call packs, where only bytes are asked for.
constexpr Workspace nothing{};

}  // namespace

size_t conv_fprop_workspace(const Tensor& x, const Tensor& weight, Epilogue e, Context context) {
  return fprop_workspace(x, weight, e, nullptr, context);
}

size_t conv_fprop_prepacked_workspace(const Tensor& x, const Tensor& weight, Epilogue e, Context context) {
  return fprop_workspace(x, weight, e, &nothing, context);
}

size_t conv_dgrad_workspace(const Tensor& gy, const Masked& masked, const Tensor& weight, int64_t h, int64_t w,
                            Context context) {
  return dgrad_workspace(gy, masked, weight, h, w, nullptr, context);
}

size_t conv_dgrad_prepacked_workspace(const Tensor& gy, const Masked& masked, const Tensor& weight, int64_t h,
                                      int64_t w, Context context) {
  return dgrad_workspace(gy, masked, weight, h, w, &nothing, context);
}

size_t conv_pack_workspace(const Tensor& weight, bool mirrored, Context) {
  return with_view(weight, mirrored, [](const auto& view) { return view.packed_bytes(); });
}

void conv_pack(const Tensor& weight, bool mirrored, Workspace packed, Context context) {
  with_view(weight, mirrored, [&]<class T>(const WeightView<T>& view) {
    check_workspace(packed, view.packed_bytes());
    pack_weights(view, context.tf32, static_cast<T*>(packed.data), context);
  });
}

size_t conv_wgrad_workspace(const Tensor& x, const Tensor& gy, const Masked& masked, int64_t kernel, Context context) {
  check_nhwc(x, "x");
  check_gradient(gy, masked, x.size(2), x.size(3));
  VGGFAST_CHECK(kernel == 1 || kernel == 3, "kernel must be 1 or 3, got ", kernel);
  check_float(x, "x");
  const ConvWgrad problem{.x = x, .gy = gy, .masked = masked, .kernel = kernel, .context = context};
  return choose(&ConvAlgorithm::wgrad, problem).workspace_bytes(problem);
}

void conv_fprop(const Tensor& x, const Tensor& weight, const Tensor* bias, Epilogue e, const Tensor& y,
                const Tensor* mask, Workspace workspace, Context context) {
  fprop(x, weight, bias, e, y, mask, nullptr, workspace, context);
}

void conv_fprop_prepacked(const Tensor& x, const Tensor& weight, const Tensor* bias, Epilogue e, const Tensor& y,
                          const Tensor* mask, Workspace packed, Workspace workspace, Context context) {
  fprop(x, weight, bias, e, y, mask, &packed, workspace, context);
}

void conv_dgrad(const Tensor& gy, const Masked& masked, const Tensor& weight, const Tensor& gx, Workspace workspace,
                Context context, const Tensor* x_mask) {
  dgrad(gy, masked, weight, gx, x_mask, nullptr, workspace, context);
}

void conv_dgrad_prepacked(const Tensor& gy, const Masked& masked, const Tensor& weight, const Tensor& gx,
                          Workspace packed, Workspace workspace, Context context, const Tensor* x_mask) {
  dgrad(gy, masked, weight, gx, x_mask, &packed, workspace, context);
}

void conv_wgrad(const Tensor& x, const Tensor& gy, const Masked& masked, const Tensor& gw, const Tensor* gb,
                Workspace workspace, Context context) {
  check_wgrad(x, gy, masked, gw, gb, x.dtype);
  check_pixels(x, "x", x.size(2), x.size(3));
  check_float(x, "x");
  const ConvWgrad problem{
      .x = x, .gy = gy, .masked = masked, .kernel = gw.size(2), .context = context, .gw = &gw, .gb = gb};
  choose(&ConvAlgorithm::wgrad, problem).run(problem, workspace);
}

}  // namespace vggfast::cuda
