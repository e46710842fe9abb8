// The kernels of one instruction set, gathered into its table. Included last by each cpu/isa_*.cpp.
#pragma once

#include "cpu/kernels/conv.h"
#include "cpu/kernels/lrn.h"
#include "cpu/kernels/pool.h"

#define VGGFAST_STRING_(x) #x
#define VGGFAST_STRING(x) VGGFAST_STRING_(x)

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

template <class T>
constexpr Kernels<T> kernels_of() {
  return {.block_channels = ConvTraits<T>::channels,
          .tile_pixels = ConvTraits<T>::pixels,
          .wgrad_inputs = ConvTraits<T>::pixels,
          .conv_pack = conv_pack<T>,
          .conv_fprop = conv_fprop<T>,
          .conv_wgrad = conv_wgrad<T>,
          .max_pool = max_pool<T>,
          .gather_selected = gather_selected<T>,
          .scatter_selected = scatter_selected<T>,
          .lrn_fprop = lrn_fprop<T>,
          .lrn_dgrad = lrn_dgrad<T>,
          .sum_pool = sum_pool<T>};
}

}  // namespace

const KernelTable& table() {
  static constexpr KernelTable value{VGGFAST_STRING(VGGFAST_ISA), kernels_of<float>(), kernels_of<double>()};
  return value;
}

}  // namespace vggfast::cpu::VGGFAST_ISA
