// The body of run_fprop (run.h), for the sources that instantiate it.
#pragma once

#include "cuda/conv/sm80/run.h"

namespace vggfast::cuda {

template <class Math, class Tile, Reads How>
void launch_fprop(FpropArgs<typename Math::Element>& args, const Context& context) {
  args.column_tiles = static_cast<int>(ceil_div(args.y.c, Tile::columns));
  const int64_t blocks = ceil_div(args.windows.count, Tile::rows / 4) * args.column_tiles;
  VGGFAST_CHECK(blocks < int64_t(1) << 31, "x is too large: it must take under 2^31 tiles, got ", blocks);
  launch("conv_fprop_kernel", conv_fprop_kernel<Math, Tile, How>,
         {.blocks = static_cast<unsigned>(blocks),
          .threads = Tile::threads,
          .shared_bytes = Tile::stages * (Tile::rows + Tile::columns) * row_bytes},
         context, args);
}

template <class Math>
void run_fprop(FpropArgs<typename Math::Element>& args, TileShape shape, const Context& context) {
  const Reads how = reads_of(args.x);
  if constexpr (sizeof(typename Math::Element) < 8) {
    const auto by_shape = [&]<Reads How>() {
      switch (shape) {
        case TileShape::large:
          return launch_fprop<Math, LargeTile, How>(args, context);
        case TileShape::tall:
          return launch_fprop<Math, TallTile, How>(args, context);
        case TileShape::small:
          return launch_fprop<Math, SmallTile, How>(args, context);
      }
    };
    if (how == Reads::async) return by_shape.template operator()<Reads::async>();
    if (how == Reads::masked) return by_shape.template operator()<Reads::masked>();
  }
  launch_fprop<Math, TallTile, Reads::gathered>(args, context);
}

}  // namespace vggfast::cuda
