#include "core/conv_checks.h"

#include "vggfast/error.h"

namespace vggfast {

void check_kernel(const Tensor& weight, int64_t channels, int channel_axis, const char* input) {
  VGGFAST_CHECK(weight.dim() == 4 && weight.size(2) == weight.size(3) && (weight.size(2) == 1 || weight.size(2) == 3),
                "weight must have shape (Cout, Cin, 3, 3) or (Cout, Cin, 1, 1), got ", describe(weight.shape));
  VGGFAST_CHECK(weight.size(0) >= 1 && weight.size(1) >= 1,
                "weight must have at least one input and one output channel, got shape ", describe(weight.shape));
  VGGFAST_CHECK(weight.size(channel_axis) == channels, "weight must have ", channels, " channels on axis ",
                channel_axis, ", as many as ", input, ", got shape ", describe(weight.shape));
}

void check_gradient(const Tensor& gy, const Masked& masked, int64_t h, int64_t w) {
  check_nhwc(gy, "gy");
  const int64_t scale = masked.pooled() ? 2 : 1;
  VGGFAST_CHECK(gy.size(2) == h / scale && gy.size(3) == w / scale, "gy must have H ", h / scale, " and W ", w / scale,
                ", got shape ", describe(gy.shape));
  if (masked.mask) check_mask(*masked.mask, masked.epilogue, gy);
}

void check_workspace(Workspace workspace, size_t expected) {
  VGGFAST_CHECK(workspace.bytes >= expected, "workspace must have at least ", expected, " bytes, got ",
                workspace.bytes);
}

void check_fprop(const Tensor& x, const Tensor& weight, const Tensor* bias, Epilogue e, const Tensor& y,
                 const Tensor* mask) {
  check_nhwc(x, "x");
  check_nhwc(y, "y");
  check_kernel(weight, x.size(1), 1, "x");
  const int64_t cout = weight.size(0), scale = e.pool ? 2 : 1;
  check_like(weight, "weight", weight.shape, x.dtype, x.device);
  check_like(y, "y", {x.size(0), cout, x.size(2) / scale, x.size(3) / scale}, x.dtype, x.device);
  if (bias) check_like(*bias, "bias", {cout}, x.dtype, x.device);
  VGGFAST_CHECK(!bias || bias->stride(0) == 1 || cout == 1, "bias is not contiguous");
  if (mask) check_mask(*mask, e, y);
}

void check_dgrad(const Tensor& gy, const Masked& masked, const Tensor& weight, const Tensor& gx, const Tensor* x_mask) {
  check_nhwc(gx, "gx");
  check_gradient(gy, masked, gx.size(2), gx.size(3));
  check_kernel(weight, gy.size(1), 0, "gy");
  check_like(weight, "weight", weight.shape, gy.dtype, gy.device);
  check_like(gx, "gx", {gy.size(0), weight.size(1), gx.size(2), gx.size(3)}, gy.dtype, gy.device);
  if (x_mask) check_mask(*x_mask, {.relu = true}, gx, "x_mask");
}

void check_wgrad(const Tensor& x, const Tensor& gy, const Masked& masked, const Tensor& gw, const Tensor* gb,
                 DType sums) {
  check_nhwc(x, "x");
  check_gradient(gy, masked, x.size(2), x.size(3));
  check_kernel(gw, x.size(1), 1, "x");
  check_like(gy, "gy", {x.size(0), gw.size(0), gy.size(2), gy.size(3)}, x.dtype, x.device);
  check_like(gw, "gw", gw.shape, sums, x.device);
  if (gb) check_like(*gb, "gb", {gw.size(0)}, sums, x.device);
}

}  // namespace vggfast
