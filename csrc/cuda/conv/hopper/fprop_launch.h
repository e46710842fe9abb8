// The bodies of fprop_run.h's functions, for the sources that instantiate them.
#pragma once

#include "cuda/conv/hopper/choice.h"
#include "cuda/conv/hopper/fprop.h"
#include "cuda/conv/hopper/fprop_run.h"

namespace vggfast::cuda::hopper {

/// Of an NHWC tensor, boxes of a span of channels, some columns and rows of one image.
template <class T>
TensorMap image_map(const T* data, const Extent& e, uint32_t columns, uint32_t rows) {
  const auto extent = [](int64_t value) { return static_cast<uint64_t>(value); };
  const uint64_t pixel = sizeof(T) * extent(e.c);
  return tensor_map(TiledMap{.data = data,
                             .element = Operand<T>::element,
                             .rank = 4,
                             .dims = {extent(e.c), extent(e.w), extent(e.h), extent(e.n)},
                             .strides = {pixel, pixel * extent(e.w), pixel * extent(e.w) * extent(e.h)},
                             .box = {channels_of<T>, columns, rows, 1},
                             .swizzle = MapSwizzle::b128});
}

template <class Tile, class T>
TensorMap pixels_map(const FpropProblem<T>& p) {
  const Extent extent{p.n, p.h, p.w, p.cin};
  if constexpr (Tile::by_rows) {
    return image_map(p.x, extent, tile_width, Tile::box_rows / Tile::down);
  } else {
    const uint64_t pixel = sizeof(T) * static_cast<uint64_t>(p.cin), w = static_cast<uint64_t>(p.w),
                   h = static_cast<uint64_t>(p.h);
    const int32_t padding = p.kernel / 2;
    return tensor_map(Im2colMap{.data = p.x,
                                .element = Operand<T>::element,
                                .dims = {static_cast<uint64_t>(p.cin), w, h, static_cast<uint64_t>(p.n)},
                                .strides = {pixel, pixel * w, pixel * w * h},
                                .lower = {-padding, -padding},
                                .upper = {-padding, -padding},
                                .channels = channels_of<T>,
                                .pixels = Tile::pixels / Tile::down,
                                .swizzle = MapSwizzle::b128});
  }
}

template <class Tile, class T>
TensorMap weights_map(const FpropProblem<T>& p) {
  const auto bytes = [](int64_t values) { return static_cast<uint64_t>(values) * sizeof(T); };
  const int taps = p.kernel * p.kernel;
  return tensor_map(
      TiledMap{.data = p.weights,
               .element = Operand<T>::element,
               .rank = 3,
               .dims = {static_cast<uint64_t>(p.cin), static_cast<uint64_t>(taps), static_cast<uint64_t>(p.cout)},
               .strides = {bytes(p.tap_stride), bytes(p.weight_stride)},
               .box = {channels_of<T>, 1, Tile::channels / Tile::across},
               .swizzle = MapSwizzle::b128});
}

template <class Tile, class T>
TensorMap outputs_map(const FpropProblem<T>& p) {
  if constexpr (Tile::by_rows) {
    const int by = p.pool ? 2 : 1;
    return image_map(p.y, {p.n, p.h / by, p.w / by, p.cout}, tile_width / by, Tile::out_rows / by);
  } else {
    const Extent extent{p.n, p.h, p.w, p.cout};
    return tensor_map(TiledMap{.data = p.y,
                               .element = Operand<T>::element,
                               .rank = 2,
                               .dims = {static_cast<uint64_t>(p.cout), static_cast<uint64_t>(extent.pixels())},
                               .strides = {sizeof(T) * static_cast<uint64_t>(p.cout)},
                               .box = {channels_of<T>, Tile::staged_pixels},
                               .swizzle = MapSwizzle::b128});
  }
}

template <class Tile, class T>
void launch_fprop(const FpropProblem<T>& p, const Context& context) {
  const Extent sums{p.n, p.h, p.w, p.cout};
  const FpropArgs<T> args{.schedule = Schedule::of<Tile>(sums),
                          .depth = {0, (p.cin + channels_of<T> - 1) / channels_of<T>, p.kernel},
                          .y = {p.bias, p.selection, sums, p.relu, p.pool}};
  const int clusters = std::min(multiprocessors() / Tile::cluster, args.schedule.groups);
  launch("conv_fprop_hopper_kernel", conv_fprop_hopper_kernel<Tile, T>,
         {.blocks = static_cast<unsigned>(clusters * Tile::cluster),
          .threads = threads,
          .shared_bytes = Tile::shared_bytes,
          .cluster = Tile::cluster},
         context, pixels_map<Tile>(p), weights_map<Tile>(p), outputs_map<Tile>(p), args);
}

template <class T>
Shape shape_of(const FpropProblem<T>& p) {
  return {{p.n, p.h, p.w, p.cout}, p.cin, p.kernel, static_cast<int>(sizeof(T)), p.pool};
}

template <class T>
void run_fprop(const FpropProblem<T>& p, const std::string& wanted, const Context& context) {
  const std::string chosen = choose_tile(shape_of(p), wanted, multiprocessors());
  for_each_tile([&]<class Tile>(const char* name) {
    if (name == chosen) launch_fprop<Tile>(p, context);
  });
}

}  // namespace vggfast::cuda::hopper
