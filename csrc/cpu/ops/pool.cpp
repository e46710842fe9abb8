// Max-pool, masks and sum-pool on the CPU. Kernels: cpu/kernels/pool.h.
#include "vggfast/pool.h"

#include <algorithm>

#include "core/checks.h"
#include "cpu/kernel_table.h"
#include "cpu/ops/dtypes.h"
#include "cpu/parallel.h"

namespace vggfast {
namespace {

using cpu::extent_of;
using cpu::MaskArgs;

constexpr int64_t grain_values = 1 << 14;  // values that make a piece of work worth a thread

int64_t rows_worth_a_task(const Tensor& y) { return 1 + grain_values / (1 + y.size(1) * y.size(3)); }

/// The arguments that max_pool2x2 and the two ops on masks have in common, checked.
template <class T>
MaskArgs<T> mask_args(const Tensor& z, const Tensor& y, const Tensor* mask, Epilogue e) {
  check_pool_outputs(z, y, mask, e);
  return {.z = z.as<T>(),
          .y = y.as<T>(),
          .mask = mask ? mask->as<uint8_t>() : nullptr,
          .big = extent_of(z),
          .oh = y.size(2),
          .ow = y.size(3),
          .relu = e.relu,
          .pool = e.pool};
}

}  // namespace

void max_pool2x2(const Tensor& x, const Tensor& y, const Tensor* mask, Context context) {
  const Epilogue pool{.relu = false, .pool = true};
  cpu::for_float(x, "x", [&]<class T>() {
    const MaskArgs<T> args = mask_args<T>(x, y, mask, pool);
    cpu::parallel_ranges(y.size(0) * y.size(2), rows_worth_a_task(y), context.threads,
                         [&](int64_t begin, int64_t end, int) { cpu::kernels().of<T>().max_pool(args, begin, end); });
  });
}

void mask_gather(const Tensor& z, const Tensor& mask, Epilogue e, const Tensor& y, Context context) {
  cpu::for_float(z, "z", [&]<class T>() {
    const MaskArgs<T> args = mask_args<T>(z, y, &mask, e);
    cpu::parallel_ranges(
        y.size(0) * y.size(2), rows_worth_a_task(y), context.threads,
        [&](int64_t begin, int64_t end, int) { cpu::kernels().of<T>().mask_gather(args, begin, end); });
  });
}

void mask_scatter(const Tensor& y, const Tensor& mask, Epilogue e, const Tensor& z, Context context) {
  cpu::for_float(z, "z", [&]<class T>() {
    const MaskArgs<T> args = mask_args<T>(z, y, &mask, e);
    if (y.numel() == 0) {  // a single row or column may have no window
      std::fill_n(args.z, z.numel(), T(0));
      return;
    }
    cpu::parallel_ranges(
        y.size(0) * y.size(2), rows_worth_a_task(y), context.threads,
        [&](int64_t begin, int64_t end, int) { cpu::kernels().of<T>().mask_scatter(args, begin, end); });
  });
}

void sum_pool(const Tensor& x, bool mean, const Tensor& y, Context context) {
  check_sum_pool(x, y);
  cpu::for_float(x, "x", [&]<class T>() {
    const int64_t channels = x.size(1), pixels = x.size(2) * x.size(3);
    const T scale = mean ? T(1) / static_cast<T>(pixels) : T(1);
    cpu::parallel_for(x.size(0), context.threads, [&](int64_t n, int) {
      cpu::kernels().of<T>().sum_pool(x.as<T>() + n * pixels * channels, pixels, channels, scale,
                                      y.as<T>() + n * channels);
    });
  });
}

}  // namespace vggfast
