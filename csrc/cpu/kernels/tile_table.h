// The kernels on tiles, gathered into their table. Included last by cpu/isa/isa_amx*.cpp, which name the Tiles.
#pragma once

#include "cpu/kernels/tile_linear.h"
#include "cpu/kernels/tile_stem.h"
#include "cpu/kernels/tile_wgrad.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

template <class Tiles>
void product_bf16(const Bf16* a, const Bf16* b, float* c) {
  Tiles tiles;
  tiles.template load<0>(c, tile_row_bytes);
  tiles.template load<1>(a, tile_row_bytes);
  tiles.template load<2>(b, tile_row_bytes);
  tiles.template dot_bf16<0, 1, 2>();
  tiles.template store<0>(c, tile_row_bytes);
}

template <class Tiles>
void product_u8s8(const uint8_t* a, const int8_t* b, int32_t* c) {
  Tiles tiles;
  tiles.template load<0>(c, tile_row_bytes);
  tiles.template load<1>(a, tile_row_bytes);
  tiles.template load<2>(b, tile_row_bytes);
  tiles.template dot_u8s8<0, 1, 2>();
  tiles.template store<0>(c, tile_row_bytes);
}

template <class Tiles>
constexpr TileKernels tile_kernels() {
  return {.block_maps_bf16 = block_maps<Bf16>,
          .block_maps_f32 = block_maps<float>,
          .split = split,
          .conv_bf16 = conv_tiles<Tiles, Bf16>,
          .conv_f32 = conv_tiles<Tiles, float>,
          .stem = stem_tiles<Tiles>,
          .wgrad_gy = wgrad_gy,
          .wgrad_x = wgrad_x,
          .wgrad = wgrad_tiles<Tiles>,
          .wgrad_special = wgrad_special,
          .linear_pack_f32 = pack_rows<float>,
          .linear_pack_bf16 = pack_rows<Bf16>,
          .linear_interleave = interleave_all,
          .linear_fprop = linear_fprop_tiles<Tiles>,
          .linear_dgrad = linear_dgrad_tiles<Tiles>,
          .linear_wgrad = linear_wgrad_tiles<Tiles>,
          .product_bf16 = product_bf16<Tiles>,
          .product_u8s8 = product_u8s8<Tiles>};
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
