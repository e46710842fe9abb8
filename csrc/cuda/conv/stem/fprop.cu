#include <algorithm>

#include "cuda/conv/stem/fprop.h"
#include "cuda/conv/stem/stem.h"

namespace vggfast::cuda {
namespace {

template <class T, int Channels>
void launch_fprop(StemFpropArgs<T> args, const Context& context) {
  using Traits = StemFprop<T, Channels>;
  const int64_t across = ceil_div(args.x.w, Traits::tile_columns), down = ceil_div(args.x.h, Traits::tile_rows);
  args.tiles_across = Divider(across);
  args.tiles_down = Divider(down);
  args.tiles = static_cast<int>(args.x.n * across * down);
  args.groups = static_cast<int>(ceil_div(args.y.c, Traits::group));
  args.fixed_weights = context.fixed_weights;
  const int most = std::max(1, Traits::least_blocks * num_sms() / args.groups);
  const int64_t blocks = int64_t(std::min(args.tiles, most)) * args.groups;
  launch("stem_fprop_kernel", stem_fprop_kernel<T, Channels>,
         {.blocks = static_cast<unsigned>(blocks), .threads = Traits::threads, .shared_bytes = Traits::shared_bytes},
         context, args);
}

}  // namespace

template <class T>
void stem_fprop(const Source<T>& x, const WeightView<T>& weights, const Output<T>& y, const Context& context) {
  if (int64_t(x.n) * x.h * x.w == 0) return;
  StemFpropArgs<T> args{.x = x,
                        .weights = weights,
                        .y = y,
                        .tiles_across = {},
                        .tiles_down = {},
                        .tiles = 0,
                        .groups = 0,
                        .fixed_weights = false};
  x.c == 4 ? launch_fprop<T, 4>(args, context) : launch_fprop<T, 3>(args, context);
}

template void stem_fprop(const Source<bf16>&, const WeightView<bf16>&, const Output<bf16>&, const Context&);
template void stem_fprop(const Source<f16>&, const WeightView<f16>&, const Output<f16>&, const Context&);
template void stem_fprop(const Source<float>&, const WeightView<float>&, const Output<float>&, const Context&);

}  // namespace vggfast::cuda
