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
    VGGFAST_CHECK(t->dtype == DType::e4m3 || t->dtype == DType::bf16, name, " must be float8_e4m3fn or bfloat16, got ",
                  name_of(t->dtype));
    VGGFAST_CHECK(reinterpret_cast<uintptr_t>(t->data) % 16 == 0, name,
                  " must begin at a multiple of 16 bytes, got address ", t->data);
  }
  VGGFAST_CHECK(x.dtype == DType::e4m3 || y.dtype == DType::e4m3,
                "x or y must be float8_e4m3fn, got bfloat16 for both");
  check_like(weight, "weight", weight.shape, x.dtype, x.device);
  check_like(y, "y", {x.size(0), cout, x.size(2) / by, x.size(3) / by}, y.dtype, x.device);
  if (bias) check_like(*bias, "bias", {cout}, DType::f32, x.device);
  VGGFAST_CHECK(!bias || bias->stride(0) == 1 || cout == 1, "bias is not contiguous");
  VGGFAST_CHECK(x.size(1) * static_cast<int64_t>(size_of(x.dtype)) % 16 == 0, "x must have a multiple of ",
                16 / size_of(x.dtype), " channels, got ", x.size(1));
  VGGFAST_CHECK(cout % whole == 0, "weight must have a multiple of ", whole, " output channels, got ", cout);
  VGGFAST_CHECK(!e.pool || weight.size(2) == 3, "pool needs a 3x3 convolution, got weight of shape ",
                describe(weight.shape));
  VGGFAST_CHECK(x.size(0) * x.size(2) * x.size(3) < int64_t(1) << 31, "x must have under 2^31 pixels, got shape ",
                describe(x.shape));
}

}  // namespace

void conv_fprop_scaled(const Tensor& x, const Tensor& weight, const Tensor* bias, double scale, Epilogue e,
                       const Tensor& y, Context context) {
  check_scaled(x, weight, bias, e, y);
  const Sm90Library* const sm90 = sm90_library();
  VGGFAST_CHECK(sm90, "float8 convolutions are not in this build: build with 90a in VGGFAST_CUDA_ARCHS");
  VGGFAST_CHECK(is_hopper(), "float8 convolutions need a GPU of compute capability 9.0");
  if (y.numel() > 0) sm90->fprop_scaled(x, weight, bias, scale, e, y, context);
}

}  // namespace vggfast::cuda
