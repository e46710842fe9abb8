// The body of run_wgrad (run.h), for the sources that instantiate it.
#pragma once

#include "cuda/conv/sm80/run.h"

namespace vggfast::cuda {

template <class Math, class Tile, Reads Gradients, Reads Inputs>
void launch_wgrad(WgradArgs<typename Math::Element>& args, const Context& context) {
  args.row_tiles = static_cast<int>(ceil_div(args.gz.c, Tile::rows));
  args.column_tiles = static_cast<int>(ceil_div(args.columns, Tile::columns));
  const int64_t blocks = int64_t(args.row_tiles) * args.column_tiles * args.splits;
  VGGFAST_CHECK(blocks < int64_t(1) << 31, "gw is too large: it must take under 2^31 tiles, got ", blocks);
  launch("conv_wgrad_kernel", conv_wgrad_kernel<Math, Tile, Gradients, Inputs>,
         {.blocks = static_cast<unsigned>(blocks),
          .threads = Tile::threads,
          .shared_bytes = Tile::stages * (Tile::rows + Tile::columns) * row_bytes},
         context, args);
}

template <class Math>
void run_wgrad(WgradArgs<typename Math::Element>& args, TileShape shape, const Context& context) {
  const Reads gradients = reads_of(args.gz), inputs = reads_of(args.x);
  if constexpr (sizeof(typename Math::Element) < 8) {
    const auto by_shape = [&]<Reads Gradients>() {
      if (shape == TileShape::large) return launch_wgrad<Math, LargeTile, Gradients, Reads::async>(args, context);
      launch_wgrad<Math, SmallTile, Gradients, Reads::async>(args, context);
    };
    if (inputs == Reads::async && gradients == Reads::async) return by_shape.template operator()<Reads::async>();
    if (inputs == Reads::async && gradients == Reads::masked) return by_shape.template operator()<Reads::masked>();
  }
  launch_wgrad<Math, SmallTile, Reads::gathered, Reads::gathered>(args, context);
}

}  // namespace vggfast::cuda
