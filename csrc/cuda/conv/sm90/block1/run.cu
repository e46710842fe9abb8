#include "cuda/conv/sm90/block1/kernel.h"
#include "cuda/conv/sm90/block1/run.h"
#include "cuda/conv/sm90/fprop/launch.h"

namespace vggfast::cuda::sm90 {
namespace {

template <int Channels, class T>
void launch_block1(const Source<T>& x, const WeightView<T>& first, const T* first_bias, const FpropProblem<T>& second,
                   const Context& context) {
  using Tile = Block1Tile<T, Channels>;
  const Output<T, T> y = outputs_of(second);
  const Block1Args<T> args{.x = x,
                           .first_weights = first,
                           .first_bias = first_bias,
                           .schedule = Schedule::of<Tile>(y.sums),
                           .y = y,
                           .fixed_weights = context.fixed_weights};
  launch("conv_block1_kernel", conv_block1_kernel<Tile, T>,
         {.blocks = static_cast<unsigned>(std::min(num_sms(), args.schedule.groups)),
          .threads = threads,
          .shared_bytes = Tile::shared_bytes,
          .persistent = true},
         context, weights_map<Tile>(second), outputs_map<Tile>(second), args);
}

}  // namespace

template <class T>
void run_block1(const Source<T>& x, const WeightView<T>& first, const T* first_bias, const FpropProblem<T>& second,
                const Context& context) {
  x.c == 4 ? launch_block1<4>(x, first, first_bias, second, context)
           : launch_block1<3>(x, first, first_bias, second, context);
}

template void run_block1(const Source<bf16>&, const WeightView<bf16>&, const bf16*, const FpropProblem<bf16>&,
                         const Context&);
template void run_block1(const Source<f16>&, const WeightView<f16>&, const f16*, const FpropProblem<f16>&,
                         const Context&);

}  // namespace vggfast::cuda::sm90
