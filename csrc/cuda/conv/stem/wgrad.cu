#include <algorithm>

#include "cuda/conv/stem/stem.h"
#include "cuda/conv/stem/wgrad.h"

namespace vggfast::cuda {
namespace {

template <class T, int Channels>
void launch_wgrad(const WgradArgs<T>& args, const Context& context) {
  using Traits = StemWgrad<T, Channels>;
  const int64_t across = ceil_div(args.gz.w, Traits::columns), down = ceil_div(args.gz.h, Traits::rows);
  const StemWgradArgs<T> stem{.x = args.x,
                              .gz = args.gz,
                              .tiles_across = Divider(std::max<int64_t>(1, across)),
                              .tiles_down = Divider(std::max<int64_t>(1, down)),
                              .tiles = static_cast<int>(args.gz.n * across * down),
                              .groups = static_cast<int>(ceil_div(args.gz.c, Traits::group)),
                              .splits = args.splits,
                              .partial = args.partial,
                              .partial_bias = args.partial_bias};
  launch("stem_wgrad_kernel", stem_wgrad_kernel<T, Channels>,
         {.blocks = static_cast<unsigned>(int64_t(stem.groups) * stem.splits),
          .threads = Traits::threads,
          .shared_bytes = Traits::shared_bytes},
         context, stem);
}

}  // namespace

template <class T>
int stem_wgrad_splits(const Source<T>& gz) {
  using Traits = StemWgrad<T, 3>;
  const int64_t tiles = gz.n * ceil_div(gz.h, Traits::rows) * ceil_div(gz.w, Traits::columns);
  const int64_t for_blocks = Traits::least_blocks * num_sms() / ceil_div(gz.c, Traits::group);
  return static_cast<int>(std::max<int64_t>(1, std::min(for_blocks, tiles / (Traits::warps * Traits::least_tiles))));
}

template <class T>
void stem_wgrad(const WgradArgs<T>& args, const Context& context) {
  args.x.c == 4 ? launch_wgrad<T, 4>(args, context) : launch_wgrad<T, 3>(args, context);
}

template int stem_wgrad_splits(const Source<bf16>&);
template int stem_wgrad_splits(const Source<f16>&);
template int stem_wgrad_splits(const Source<float>&);
template void stem_wgrad(const WgradArgs<bf16>&, const Context&);
template void stem_wgrad(const WgradArgs<f16>&, const Context&);
template void stem_wgrad(const WgradArgs<float>&, const Context&);

}  // namespace vggfast::cuda
