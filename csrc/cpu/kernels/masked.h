// Reading a gradient through the mask of ReLU and pool (vggfast/mask.h), a vector of channels at a time.
#pragma once

#include "cpu/kernels/epilogue.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

using Vf = Vec<float>;

/// Loads `count` channels from p on, with 0 in the lanes that `pass` leaves out.
template <class S>
Vf::Value load_masked(const S* p, int64_t count, Vf::Mask pass) {
  return Vf::select(pass, count >= Vf::lanes ? Vf::load(p) : Vf::load(p, count), Vf::zero());
}

/// Channels [c, c + count) of pixel number `pixel` of what mask_scatter would make of `in`, for a mask of ReLU alone.
template <class S>
Vf::Value read_rectified(const ConvInput<S>& in, int64_t pixel, int64_t c, int64_t count) {
  const int64_t bytes = (in.extent.c + 7) / 8;
  return load_masked(in.data + pixel * in.extent.c + c, count, load_bits<float>(in.mask + pixel * bytes, bytes, c));
}

/// The same for pixel (n, y, x) and a mask with a pool.
template <class S>
Vf::Value read_unpooled(const ConvInput<S>& in, int64_t n, int64_t y, int64_t x, int64_t c, int64_t count) {
  const int64_t sy = y / 2, sx = x / 2;
  if (sy >= in.stored_h || sx >= in.stored_w) return Vf::zero();  // an odd last row or column belongs to no window
  const int64_t plane = in.stored_h * in.stored_w, pixel = sy * in.stored_w + sx, bytes = (in.extent.c + 7) / 8;
  const uint8_t* bits = in.mask + (n * (in.relu ? 3 : 2) * plane + pixel) * bytes;
  Vf::Mask pass = ~Vf::Mask{};
  if (in.relu) {
    pass = load_bits<float>(bits, bytes, c);
    bits += plane * bytes;
  }
  const Vf::Mask column = load_bits<float>(bits, bytes, c), below = load_bits<float>(bits + plane * bytes, bytes, c);
  pass &= (x & 1 ? column : ~column) & (y & 1 ? below : ~below);
  return load_masked(in.data + (n * plane + pixel) * in.extent.c + c, count, pass);
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
