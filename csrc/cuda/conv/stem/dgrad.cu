#include <algorithm>

#include "cuda/conv/stem/dgrad.h"
#include "cuda/conv/stem/stem.h"

namespace vggfast::cuda {

template <class T>
void stem_dgrad(const Source<T>& gz, const WeightView<T>& weights, T* gx, const Context& context) {
  if (int64_t(gz.n) * gz.h * gz.w == 0) return;
  const int64_t strips = ceil_div(gz.w, StemDgrad::outputs);
  const int64_t warps = int64_t(num_sms()) * StemDgrad::least_blocks<T> * StemDgrad::warps;
  const int64_t rows =
      std::clamp<int64_t>(ceil_div(gz.n * strips * gz.h, warps), StemDgrad::least_rows, StemDgrad::most_rows);
  const int64_t bands = ceil_div(gz.h, rows), units = gz.n * bands * strips;
  const StemDgradArgs<T> args{.gz = gz,
                              .weights = weights,
                              .gx = gx,
                              .strips = Divider(strips),
                              .bands = Divider(bands),
                              .rows = static_cast<int>(rows),
                              .units = static_cast<int>(units),
                              .rounds = StemDgrad::rounds<T>(gz.c),
                              .weight_bytes = StemDgrad::weight_bytes<T>(gz.c)};
  launch("stem_dgrad_kernel", stem_dgrad_kernel<T>,
         {.blocks = static_cast<unsigned>(ceil_div(units, StemDgrad::warps)),
          .threads = StemDgrad::threads,
          .shared_bytes = static_cast<size_t>(args.weight_bytes + StemDgrad::warps * StemDgrad::landing_bytes)},
         context, args);
}

template void stem_dgrad(const Source<bf16>&, const WeightView<bf16>&, bf16*, const Context&);
template void stem_dgrad(const Source<f16>&, const WeightView<f16>&, f16*, const Context&);
template void stem_dgrad(const Source<float>&, const WeightView<float>&, float*, const Context&);

}  // namespace vggfast::cuda
