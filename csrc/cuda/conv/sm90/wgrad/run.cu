#include "cuda/conv/sm90/wgrad/kernel.h"
#include "cuda/conv/sm90/wgrad/run.h"

namespace vggfast::cuda::sm90 {
namespace {

/// Boxes of 64 channels of the pixels that a step reads, and of `halo` rows more.
template <class T>
TensorMap map_of(const Tensor& t, const WgradPlan& plan, int halo) {
  const auto n = static_cast<uint64_t>(t.size(0)), c = static_cast<uint64_t>(t.size(1)),
             h = static_cast<uint64_t>(t.size(2)), w = static_cast<uint64_t>(t.size(3));
  const auto phases = static_cast<uint64_t>(plan.phases);
  const uint64_t pixel = c * sizeof(T), row = w * pixel;
  return tensor_map(TiledMap{.data = t.data,
                             .element = Operand<T>::element,
                             .rank = 5,
                             .dims = {c, phases, w / phases, n, h},
                             .strides = {pixel, phases * pixel, h * row, row},
                             .box = {wgrad_channels, 1, static_cast<uint32_t>(plan.abreast),
                                     static_cast<uint32_t>(plan.images), static_cast<uint32_t>(plan.rows + halo)},
                             .swizzle = MapSwizzle::b128});
}

template <class T, int Rows>
void launch_wgrad(const Tensor& x, const Tensor& gz, const WgradPlan& plan, const WgradArgs& args,
                  const Context& context) {
  using Tile = WgradTraits<T, Rows>;
  const int64_t blocks = int64_t(args.cout_tiles) * args.cin_tiles * args.splits;
  VGGFAST_CHECK(blocks < int64_t(1) << 31, "gw is too large: it must take under 2^31 tiles, got ", blocks);
  launch("conv_wgrad_hopper_kernel", conv_wgrad_hopper_kernel<Tile>,
         {.blocks = static_cast<unsigned>(blocks), .threads = Tile::threads, .shared_bytes = Tile::shared_bytes},
         context, map_of<T>(gz, plan, 0), map_of<T>(x, plan, row_taps - 1), args);
}

}  // namespace

void run_wgrad(const Tensor& x, const Tensor& gz, const WgradPlan& plan, float* partial, float* partial_bias,
               const Context& context) {
  const int64_t teeth = x.size(3) / plan.phases;
  const WgradArgs args{.walk = {.phases = Divider(plan.phases),
                                .across = Divider(ceil_div(teeth, plan.abreast)),
                                .down = Divider(ceil_div(x.size(2), plan.rows)),
                                .steps = static_cast<int>(plan.steps),
                                .abreast = plan.abreast,
                                .images = plan.images},
                       .cout = static_cast<int>(gz.size(1)),
                       .cin = static_cast<int>(x.size(1)),
                       .cout_tiles = static_cast<int>(ceil_div(gz.size(1), wgrad_channels)),
                       .cin_tiles = static_cast<int>(ceil_div(x.size(1), wgrad_channels)),
                       .splits = plan.splits,
                       .partial = partial,
                       .partial_bias = partial_bias};
  const auto launch_rows = [&]<class T>() {
    plan.rows == 14 ? launch_wgrad<T, 14>(x, gz, plan, args, context) : launch_wgrad<T, 8>(x, gz, plan, args, context);
  };
  x.dtype == DType::bf16 ? launch_rows.operator()<bf16>() : launch_rows.operator()<f16>();
}

}  // namespace vggfast::cuda::sm90
