// The kernels of one instruction set, gathered into its table. Included last by each cpu/isa/isa_*.cpp.
#pragma once

#include "cpu/int8_kernels.h"
#include "cpu/kernels/batch_norm.h"
#include "cpu/kernels/conv.h"
#include "cpu/kernels/crop.h"
#include "cpu/kernels/linear.h"
#include "cpu/kernels/lrn.h"
#include "cpu/kernels/pool.h"
#include "cpu/kernels/stem.h"
#include "cpu/kernels/winograd_wgrad.h"

#define VGGFAST_STRING_(x) #x
#define VGGFAST_STRING(x) VGGFAST_STRING_(x)

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

template <class S>
constexpr BatchNormKernels<S> batch_norm_of() {
  return {.moments = batch_norm_moments<S>,
          .fprop = batch_norm_fprop<S>,
          .sums = batch_norm_sums<S>,
          .dgrad = batch_norm_dgrad<S>};
}

template <class T>
constexpr Kernels<T> kernels_of() {
  return {.block_channels = ConvTraits<T>::channels,
          .tile_pixels = ConvTraits<T>::pixels,
          .wgrad_inputs = ConvTraits<T>::pixels,
          .conv_pack = conv_pack<T>,
          .conv_fprop = conv_fprop<T>,
          .conv_wgrad = conv_wgrad<T>,
          .max_pool = max_pool<T>,
          .mask_gather = mask_gather<T>,
          .mask_scatter = mask_scatter<T>,
          .batch_norm = batch_norm_of<T>(),
          .lrn_fprop = lrn_fprop<T>,
          .lrn_dgrad = lrn_dgrad<T>,
          .sum_pool = sum_pool<T>};
}

template <class From, class To>
void convert(const From* from, int64_t count, To* to) {
  int64_t i = 0;
  for (; i + Vf::lanes <= count; i += Vf::lanes) Vf::store(to + i, Vf::load(from + i));
  if (i < count) Vf::store(to + i, Vf::load(from + i, count - i), count - i);
}

template <int M, class S>
constexpr WinogradKernels<S> winograd_on() {
  return {.inputs = transform_inputs<M, S>,
          .outputs = winograd_outputs<M, S, float>,
          .gradients = transform_gradients<M, S>};
}

template <int M>
constexpr WinogradTable winograd_of() {
  return {.m = M,
          .pack = winograd_pack<M>,
          .unpack = winograd_unpack<M>,
          .f32 = winograd_on<M, float>(),
          .bf16 = winograd_on<M, Bf16>()};
}

}  // namespace

const KernelTable& table() {
  static constexpr KernelTable value{
      .name = VGGFAST_STRING(VGGFAST_ISA),
      .lanes = Vf::lanes,
      .gemm_rows = VGGFAST_GEMM_ROWS,
      .winograd = {winograd_of<1>(), winograd_of<2>(), winograd_of<4>(), winograd_of<6>()},
      .wgrad_vectors = 3,
      .multiply = multiply_gradients,
      .outputs_bf16_weights = winograd_outputs<1, float, Bf16>,
      .stem_segment = Stem::segment,
      .stem_fprop_f32 = stem_fprop<float>,
      .stem_fprop_bf16 = stem_fprop<Bf16>,
      .stem_wgrad = stem_wgrad<float>,
      .linear_fprop = linear_fprop,
      .linear_dgrad = linear_dgrad,
      .linear_wgrad = linear_wgrad,
      .crop_rows_f32 = crop_rows<float>,
      .crop_rows_bf16 = crop_rows<Bf16>,
      .to_bf16 = convert<float, Bf16>,
      .to_float = convert<Bf16, float>,
      .f32 = kernels_of<float>(),
      .f64 = kernels_of<double>(),
      .batch_norm_bf16 = batch_norm_of<Bf16>(),
      .int8 = &int8_kernels};
  return value;
}

}  // namespace vggfast::cpu::VGGFAST_ISA
