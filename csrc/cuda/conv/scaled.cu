// Convolution of quantised values as an op: checks, and where it is to be had.
#include "core/conv_checks.h"
#include "cuda/conv/conv_algorithm.h"
#include "cuda/launch.h"
#include "vggfast/cuda.h"

namespace vggfast::cuda {
namespace {

void check_scaled(const Tensor& x, const Tensor& weight, const Tensor* bias, Epilogue e, const Tensor& y) {
  check_nhwc(x, "x");
  check_nhwc(y, "y");
  check_kernel(weight, x.size(1), 1, "x");
  check_nhwc(weight, "weight");
  const int64_t cout = weight.size(0), by = e.pool ? 2 : 1, whole = y.dtype == DType::e4m3 ? 16 : 8;
  for (const auto& [t, name] : {std::pair{&x, "x"}, {&y, "y"}}) {
    VGGFAST_CHECK(t->dtype == DType::e4m3 || t->dtype == DType::bf16, name, " is ", name_of(t->dtype),
                  ": float8_e4m3fn or bfloat16 is wanted");
    VGGFAST_CHECK(reinterpret_cast<uintptr_t>(t->data) % 16 == 0, name, " does not begin at a multiple of 16 bytes");
  }
  VGGFAST_CHECK(x.dtype == DType::e4m3 || y.dtype == DType::e4m3, "x and y are bfloat16: one is to be float8_e4m3fn");
  check_like(weight, "weight", weight.shape, x.dtype, x.device);
  check_like(y, "y", {x.size(0), cout, x.size(2) / by, x.size(3) / by}, y.dtype, x.device);
  if (bias) check_like(*bias, "bias", {cout}, DType::f32, x.device);
  VGGFAST_CHECK(!bias || bias->stride(0) == 1 || cout == 1, "bias is not contiguous");
  VGGFAST_CHECK(x.size(1) * static_cast<int64_t>(size_of(x.dtype)) % 16 == 0, "x has ", x.size(1),
                " channels: whole 16 bytes are wanted");
  VGGFAST_CHECK(cout % whole == 0, "weight has ", cout, " output channels: a multiple of ", whole, " is wanted");
  VGGFAST_CHECK(!e.pool || weight.size(2) == 3, "pool follows a 3x3 convolution alone");
  VGGFAST_CHECK(x.size(0) * x.size(2) * x.size(3) < int64_t(1) << 31, "x has shape ", describe(x.shape),
                ": under 2^31 pixels are wanted");
}

}  // namespace

void conv_fprop_scaled(const Tensor& x, const Tensor& weight, const Tensor* bias, double scale, Epilogue e,
                       const Tensor& y, Context context) {
  check_scaled(x, weight, bias, e, y);
  const Sm90Library* const sm90 = sm90_library();
  VGGFAST_CHECK(sm90, "float8 convolutions are not in this build: VGGFAST_CUDA_ARCHS with 90a has them");
  VGGFAST_CHECK(is_hopper(), "float8 convolutions are for GPUs of compute capability 9.0");
  if (y.numel() > 0) sm90->fprop_scaled(x, weight, bias, scale, e, y, context);
}

}  // namespace vggfast::cuda
