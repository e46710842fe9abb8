// Local response normalisation on the CPU. Kernels: cpu/kernels/lrn.h.
#include "vggfast/lrn.h"

#include <algorithm>

#include "core/checks.h"
#include "cpu/kernel_table.h"
#include "cpu/ops/dtypes.h"
#include "cpu/parallel.h"

namespace vggfast {
namespace {

constexpr int64_t grain_values = 1 << 12;

int64_t pixels_of(const Tensor& t) { return t.size(0) * t.size(2) * t.size(3); }

template <class T>
cpu::LrnArgs<T> lrn_args(const Tensor& x, const Tensor* gy, LrnParams p, const Tensor& out) {
  return {.x = x.as<T>(),
          .gy = gy ? gy->as<T>() : nullptr,
          .out = out.as<T>(),
          .channels = x.size(1),
          .size = p.size,
          .alpha_over_size = static_cast<T>(p.alpha / static_cast<double>(p.size)),
          .beta = static_cast<T>(p.beta),
          .k = static_cast<T>(p.k)};
}

}  // namespace

void lrn_fprop(const Tensor& x, LrnParams p, const Tensor& y, Context context) {
  check_lrn(x, p, y, "y");
  cpu::for_float(x, "x", [&]<class T>() {
    const auto args = lrn_args<T>(x, nullptr, p, y);
    cpu::parallel_ranges(pixels_of(x), 1 + grain_values / (1 + x.size(1)), context.threads,
                         [&](int64_t begin, int64_t end, int) { cpu::kernels().of<T>().lrn_fprop(args, begin, end); });
  });
}

size_t lrn_dgrad_workspace(const Tensor& x, Context context) {
  check_nhwc(x, "x");
  return static_cast<size_t>(2 * x.size(1) * context.threads) * size_of(x.dtype);
}

void lrn_dgrad(const Tensor& gy, const Tensor& x, LrnParams p, const Tensor& gx, Workspace workspace, Context context) {
  check_lrn(x, p, gx, "gx");
  check_nhwc(gy, "gy");
  check_like(gy, "gy", x.shape, x.dtype, x.device);
  VGGFAST_CHECK(workspace.bytes >= lrn_dgrad_workspace(x, context), "workspace must have at least ",
                lrn_dgrad_workspace(x, context), " bytes, got ", workspace.bytes);
  cpu::for_float(x, "x", [&]<class T>() {
    const auto args = lrn_args<T>(x, &gy, p, gx);
    cpu::parallel_ranges(pixels_of(x), 1 + grain_values / (1 + x.size(1)), context.threads,
                         [&](int64_t begin, int64_t end, int worker) {
                           T* scratch = static_cast<T*>(workspace.data) + 2 * x.size(1) * worker;
                           cpu::kernels().of<T>().lrn_dgrad(args, begin, end, scratch);
                         });
  });
}

}  // namespace vggfast
