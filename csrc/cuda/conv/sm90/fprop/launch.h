// The bodies of run.h's functions, for the sources that instantiate them.
#pragma once

#include "cuda/conv/sm90/fprop/choice.h"
#include "cuda/conv/sm90/fprop/kernel.h"
#include "cuda/conv/sm90/fprop/run.h"
#include "cuda/occupancy.h"

namespace vggfast::cuda::sm90 {

/// Of an NHWC tensor, boxes of some channels, columns and rows of one image.
template <class T>
TensorMap image_map(const T* data, MapElement element, const Extent& e, uint32_t channels, uint32_t columns,
                    uint32_t rows, MapSwizzle swizzle = MapSwizzle::b128) {
  const auto extent = [](int64_t value) { return static_cast<uint64_t>(value); };
  const uint64_t pixel = sizeof(T) * extent(e.c);
  return tensor_map(TiledMap{.data = data,
                             .element = element,
                             .rank = 4,
                             .dims = {extent(e.c), extent(e.w), extent(e.h), extent(e.n)},
                             .strides = {pixel, pixel * extent(e.w), pixel * extent(e.w) * extent(e.h)},
                             .box = {channels, columns, rows, 1},
                             .swizzle = swizzle});
}

template <class Tile, class T, class U>
TensorMap pixels_map(const FpropProblem<T, U>& p) {
  const Extent extent{p.n, p.h, p.w, p.cin};
  if constexpr (Tile::halo) {
    return image_map(p.x, loaded_element<T>, extent, channels_of<T>, tile_width, Tile::box_rows / Tile::down);
  } else {
    const uint64_t pixel = sizeof(T) * static_cast<uint64_t>(p.cin), w = static_cast<uint64_t>(p.w),
                   h = static_cast<uint64_t>(p.h);
    const int32_t padding = p.kernel / 2;
    return tensor_map(Im2colMap{.data = p.x,
                                .element = loaded_element<T>,
                                .dims = {static_cast<uint64_t>(p.cin), w, h, static_cast<uint64_t>(p.n)},
                                .strides = {pixel, pixel * w, pixel * w * h},
                                .lower = {-padding, -padding},
                                .upper = {-padding, -padding},
                                .channels = channels_of<T>,
                                .pixels = Tile::pixels / Tile::down,
                                .swizzle = MapSwizzle::b128});
  }
}

template <class Tile, class T, class U>
TensorMap weights_map(const FpropProblem<T, U>& p) {
  const auto bytes = [](int64_t values) { return static_cast<uint64_t>(values) * sizeof(T); };
  const auto count = [](int value) { return static_cast<uint64_t>(value); };
  const uint64_t taps = count(p.kernel * p.kernel), row = bytes(p.weight_stride);
  constexpr uint32_t rows = warpgroup_channels / Tile::across;
  TiledMap map{.data = p.weights,
               .element = loaded_element<T>,
               .rank = 3,
               .dims = {count(p.cin), taps, count(p.cout)},
               .strides = {bytes(p.tap_stride), row},
               .box = {channels_of<T>, 1, rows},
               .swizzle = MapSwizzle::b128};
  if constexpr (sizeof(U) == 1) {  // channel_of_row: even channels of 16, then odd ones
    map.rank = 5;
    map.dims[2] = 8, map.dims[3] = 2, map.dims[4] = count(p.cout / 16);
    map.strides[1] = 2 * row, map.strides[2] = row, map.strides[3] = 16 * row;
    map.box[2] = 8, map.box[3] = 2, map.box[4] = rows / 16;
  }
  return tensor_map(map);
}

template <class Tile, class T, class U>
TensorMap outputs_map(const FpropProblem<T, U>& p) {
  constexpr uint32_t channels = std::min(warpgroup_channels, channels_of<U>);
  constexpr MapSwizzle swizzle = sizeof(U) == 1 ? MapSwizzle::b64 : MapSwizzle::b128;
  if constexpr (Tile::halo) {
    const int by = p.pool ? 2 : 1;
    return image_map(p.y, Operand<U>::element, {p.n, p.h / by, p.w / by, p.cout}, channels, tile_width / by,
                     Tile::out_rows / by, swizzle);
  } else {
    const Extent extent{p.n, p.h, p.w, p.cout};
    return tensor_map(TiledMap{.data = p.y,
                               .element = Operand<U>::element,
                               .rank = 2,
                               .dims = {static_cast<uint64_t>(p.cout), static_cast<uint64_t>(extent.pixels())},
                               .strides = {sizeof(U) * static_cast<uint64_t>(p.cout)},
                               .box = {channels, Tile::staged_pixels},
                               .swizzle = swizzle});
  }
}

template <class T, class U>
Output<T, U> outputs_of(const FpropProblem<T, U>& p) {
  return {.y = p.y,
          .bias = p.bias,
          .scale = p.scale,
          .mask = p.mask,
          .x_mask = p.x_mask,
          .sums = {p.n, p.h, p.w, p.cout},
          .pooled_w = Divider(std::max(1, p.w / 2)),
          .pooled_h = Divider(std::max(1, p.h / 2)),
          .relu = p.relu,
          .pool = p.pool};
}

constexpr const char* fprop_name = "conv_fprop_hopper_kernel";

/// For so many clusters.
template <class Tile>
Grid fprop_grid(int clusters) {
  return {.blocks = static_cast<unsigned>(clusters * Tile::cluster),
          .threads = threads,
          .shared_bytes = Tile::shared_bytes,
          .cluster = Tile::cluster,
          .persistent = true};
}

/// That run at once on the current device.
template <class Tile, class T, class U>
int resident_fprop() {
  if (Tile::cluster == 1) return num_sms();
  return resident_clusters(fprop_name, conv_fprop_hopper_kernel<Tile, T, U>, fprop_grid<Tile>(1));
}

/// Of the current device: the fewest that any tile's kernel allows.
template <class T, class U>
Residency residency() {
  const int sms = num_sms();
  Residency found{sms, {sms / 2, sms / 4, sms / 8}};
  for_each_tile([&]<class Tile>(TileId) {
    if constexpr (Tile::cluster > 1) {
      int& least = found.clusters[std::bit_width(unsigned(Tile::cluster)) - 2];
      least = std::min(least, resident_fprop<Tile, T, U>());
    }
  });
  return found;
}

template <class Tile, class T, class U>
void launch_fprop(const FpropProblem<T, U>& p, const Context& context) {
  const Output<T, U> y = outputs_of(p);
  const FpropArgs<T, U> args{.schedule = Schedule::of<Tile>(y.sums),
                             .k = {0, (p.cin + channels_of<T> - 1) / channels_of<T>, p.kernel},
                             .y = y,
                             .fixed_weights = context.fixed_weights};
  const int clusters = std::min(resident_fprop<Tile, T, U>(), args.schedule.groups);
  launch(fprop_name, conv_fprop_hopper_kernel<Tile, T, U>, fprop_grid<Tile>(clusters), context, pixels_map<Tile>(p),
         weights_map<Tile>(p), outputs_map<Tile>(p), args);
}

template <class T, class U>
Shape shape_of(const FpropProblem<T, U>& p) {
  return {{p.n, p.h, p.w, p.cout}, p.cin, p.kernel, static_cast<int>(sizeof(T)), static_cast<int>(sizeof(U)), p.pool};
}

template <class T, class U>
void run_fprop(const FpropProblem<T, U>& p, std::optional<TileId> asked_for, const Context& context) {
  const Shape shape = shape_of(p);
  const Residency gpu = residency<T, U>();
  const TileId chosen = asked_for ? choose_tile(shape, asked_for, gpu) : cached_tile(shape, gpu);
  for_each_tile([&]<class Tile>(TileId id) {
    if (id == chosen) launch_fprop<Tile>(p, context);
  });
}

}  // namespace vggfast::cuda::sm90
