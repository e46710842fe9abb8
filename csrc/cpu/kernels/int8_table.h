// The table of 8-bit kernels for one instruction set: a source of cpu/isa includes this one header.
#pragma once

#include "cpu/kernels/int8.h"
#include "cpu/kernels/int8_winograd.h"

namespace vggfast::cpu::VGGFAST_ISA {

const Int8Kernels int8_kernels{
    .block_channels = Int8::channels,
    .terms = Int8::terms,
    .lanes = Int8::lanes,
    .tile_pixels = Int8::pixels,
    .weight_bytes = VGGFAST_INT8_WEIGHT_BYTES,
    .pack = int8_pack,
    .words = int8_words,
    .conv = int8_conv,
    .linear = int8_linear,
    .quantise = int8_quantise,
    .winograd = {
        .pack = winograd_pack, .weights = winograd_weights, .inputs = winograd_inputs, .outputs = winograd_outputs}};

}  // namespace vggfast::cpu::VGGFAST_ISA
