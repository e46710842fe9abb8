// Block 1 of a VGG as one op: checks, and where it is to be had.
#include "core/conv_checks.h"
#include "cuda/conv/conv_algorithm.h"
#include "cuda/conv/heuristics.h"
#include "cuda/launch.h"
#include "vggfast/cuda.h"

namespace vggfast::cuda {
namespace {

constexpr int64_t block1_channels = 64;

void check_bias(const Tensor* bias, const char* name, const Tensor& x) {
  if (!bias) return;
  check_like(*bias, name, {block1_channels}, x.dtype, x.device);
  VGGFAST_CHECK(bias->stride(0) == 1, name, " is not contiguous");
}

void check_aligned(const Tensor& t, const char* name) {
  VGGFAST_CHECK(reinterpret_cast<uintptr_t>(t.data) % 16 == 0, name,
                " must begin at a multiple of 16 bytes, got address ", t.data);
}

void check_block1(const Tensor& x, const Tensor& w1, const Tensor* b1, const Tensor& w2, const Tensor* b2,
                  const Tensor& y) {
  constexpr int64_t c = block1_channels;
  check_nhwc(x, "x");
  VGGFAST_CHECK(x.dtype == DType::bf16 || x.dtype == DType::f16, "x must be bfloat16 or float16, got ",
                name_of(x.dtype));
  VGGFAST_CHECK(x.size(1) >= 1 && x.size(1) <= 4, "x must have 1 to 4 channels, got ", x.size(1));
  VGGFAST_CHECK(x.size(3) < int64_t(1) << 29 && x.size(0) * (x.size(2) + 1) * (x.size(3) + 1) < int64_t(1) << 31,
                "x must have under 2^31 pixels and under 2^29 a row, got shape ", describe(x.shape));
  check_like(w1, "w1", {c, x.size(1), 3, 3}, x.dtype, x.device);
  check_bias(b1, "b1", x);
  check_like(w2, "w2", {c, c, 3, 3}, x.dtype, x.device);
  check_nhwc(w2, "w2");
  check_aligned(w2, "w2");
  check_bias(b2, "b2", x);
  check_like(y, "y", {x.size(0), c, x.size(2) / 2, x.size(3) / 2}, x.dtype, x.device);
  check_nhwc(y, "y");
  check_aligned(y, "y");
}

}  // namespace

bool has_conv_block1() { return sm90_library() && is_hopper() && tile_is_auto(); }

void conv_block1(const Tensor& x, const Tensor& w1, const Tensor* b1, const Tensor& w2, const Tensor* b2,
                 const Tensor& y, Context context) {
  check_block1(x, w1, b1, w2, b2, y);
  const Sm90Library* const sm90 = sm90_library();
  VGGFAST_CHECK(sm90, "conv_block1 is not in this build: build with 90a in VGGFAST_CUDA_ARCHS");
  VGGFAST_CHECK(is_hopper(), "conv_block1 needs a GPU of compute capability 9.0");
  if (y.numel() > 0) sm90->block1(x, w1, b1, w2, b2, y, context);
}

}  // namespace vggfast::cuda
