// What the ops mean, as naive loops in double.
#pragma once

#include <cmath>
#include <vector>

#include "tensors.h"
#include "vggfast/lrn.h"
#include "vggfast/pool.h"

namespace vggfast::test {

/// Calls visit(n, out, in, r, s, y, x, yy, xx): each product of a convolution, (yy, xx) being x's pixel.
template <class Visit>
void for_each_product(const Array& x, int64_t cout, int64_t kernel, Visit visit) {
  for (int64_t n = 0; n < x.n; ++n)
    for (int64_t y = 0; y < x.h; ++y)
      for (int64_t column = 0; column < x.w; ++column)
        for (int64_t r = 0; r < kernel; ++r)
          for (int64_t s = 0; s < kernel; ++s) {
            const int64_t yy = y + r - kernel / 2, xx = column + s - kernel / 2;
            if (yy < 0 || yy >= x.h || xx < 0 || xx >= x.w) continue;
            for (int64_t out = 0; out < cout; ++out)
              for (int64_t in = 0; in < x.c; ++in) visit(n, out, in, r, s, y, column, yy, xx);
          }
}

inline Array conv(const Array& x, const Array& weight, const Array* bias) {
  Array z(x.n, weight.n, x.h, x.w);
  for_each_product(x, weight.n, weight.h,
                   [&](auto n, auto out, auto in, auto r, auto s, auto y, auto column, auto yy, auto xx) {
                     z.at(n, out, y, column) += x.at(n, in, yy, xx) * weight.at(out, in, r, s);
                   });
  for (int64_t n = 0; bias && n < z.n; ++n)
    for (int64_t c = 0; c < z.c; ++c)
      for (int64_t i = 0; i < z.h * z.w; ++i) z.at(n, c, 0, i) += bias->at(0, c, 0, 0);
  return z;
}

inline Array conv_input_gradient(const Array& gy, const Array& weight) {
  Array gx(gy.n, weight.c, gy.h, gy.w);
  for_each_product(gx, weight.n, weight.h,
                   [&](auto n, auto out, auto in, auto r, auto s, auto y, auto column, auto yy, auto xx) {
                     gx.at(n, in, yy, xx) += gy.at(n, out, y, column) * weight.at(out, in, r, s);
                   });
  return gx;
}

inline Array conv_weight_gradient(const Array& x, const Array& gy, int64_t kernel) {
  Array gw(gy.c, x.c, kernel, kernel);
  for_each_product(x, gy.c, kernel,
                   [&](auto n, auto out, auto in, auto r, auto s, auto y, auto column, auto yy, auto xx) {
                     gw.at(out, in, r, s) += gy.at(n, out, y, column) * x.at(n, in, yy, xx);
                   });
  return gw;
}

inline Array channel_sums(const Array& a) {
  Array sums(1, a.c, 1, 1);
  for (int64_t n = 0; n < a.n; ++n)
    for (int64_t c = 0; c < a.c; ++c)
      for (int64_t i = 0; i < a.h * a.w; ++i) sums.at(0, c, 0, 0) += a.at(n, c, 0, i);
  return sums;
}

/// An epilogue's output, and which element it took: number 0 to 3 of its window (0 without pool), -1 where ReLU cut.
/// `window` says the number even where ReLU cut.
struct Chosen {
  Array y, from, window;
};

inline Chosen select(const Array& z, Epilogue e, bool ceil_mode) {
  const int64_t step = e.pool ? 2 : 1;
  const int64_t oh = e.pool ? pooled(z.h, ceil_mode) : z.h, ow = e.pool ? pooled(z.w, ceil_mode) : z.w;
  Chosen out{Array(z.n, z.c, oh, ow), Array(z.n, z.c, oh, ow), Array(z.n, z.c, oh, ow)};
  for (int64_t n = 0; n < z.n; ++n)
    for (int64_t c = 0; c < z.c; ++c)
      for (int64_t y = 0; y < oh; ++y)
        for (int64_t x = 0; x < ow; ++x) {
          double best = z.at(n, c, step * y, step * x);
          int number = 0;
          for (int i = 1; i < step * step; ++i) {
            const int64_t row = step * y + i / 2, column = step * x + i % 2;
            if (row >= z.h || column >= z.w) continue;
            const double v = z.at(n, c, row, column);
            if (v > best || std::isnan(v)) {
              best = v;
              number = i;
            }
          }
          const bool cut = e.relu && best <= 0;
          out.y.at(n, c, y, x) = cut ? 0 : best;
          out.window.at(n, c, y, x) = number;
          out.from.at(n, c, y, x) = cut ? -1 : number;
        }
  return out;
}

/// At random among the elements that each window has; ReLU cuts half of them. y is what `z` has there.
inline Chosen choose(const Array& z, Epilogue e, bool ceil_mode, Random& random) {
  Chosen out = select(z, e, ceil_mode);
  const int64_t step = e.pool ? 2 : 1;
  for (int64_t n = 0; n < z.n; ++n)
    for (int64_t c = 0; c < z.c; ++c)
      for (int64_t y = 0; y < out.y.h; ++y)
        for (int64_t x = 0; x < out.y.w; ++x) {
          const int row = e.pool && 2 * y + 1 < z.h ? random.integer(0, 1) : 0;
          const int column = e.pool && 2 * x + 1 < z.w ? random.integer(0, 1) : 0;
          const bool cut = e.relu && random.integer(0, 1);
          out.window.at(n, c, y, x) = 2 * row + column;
          out.from.at(n, c, y, x) = cut ? -1 : 2 * row + column;
          out.y.at(n, c, y, x) = cut ? 0 : z.at(n, c, step * y + row, step * x + column);
        }
  return out;
}

inline Array scatter(const Array& y, const Array& from, Epilogue e, int64_t h, int64_t w) {
  const int64_t step = e.pool ? 2 : 1;
  Array z(y.n, y.c, h, w);
  for (int64_t n = 0; n < y.n; ++n)
    for (int64_t c = 0; c < y.c; ++c)
      for (int64_t row = 0; row < y.h; ++row)
        for (int64_t x = 0; x < y.w; ++x) {
          const int i = static_cast<int>(from.at(n, c, row, x));
          if (i >= 0) z.at(n, c, step * row + i / 2, step * x + i % 2) = y.at(n, c, row, x);
        }
  return z;
}

inline Held make_mask(Epilogue e, int64_t n, int64_t c, int64_t oh, int64_t ow) {
  return make(DType::u8, {n, mask_planes(e), oh, ow, (c + 7) / 8}, {0, 1, 2, 3, 4});
}

/// The byte of a mask that holds channel c's bit.
inline uint8_t& mask_byte(const Tensor& s, int64_t n, int64_t plane, int64_t y, int64_t x, int64_t c) {
  return s.as<uint8_t>()[n * s.stride(0) + plane * s.stride(1) + y * s.stride(2) + x * s.stride(3) + c / 8];
}

/// Calls visit(byte, bit, wanted) for each bit of a channel: what `from` and `window` want it to be.
template <class Visit>
void for_each_bit(const Tensor& s, Epilogue e, const Array& from, const Array& window, Visit visit) {
  for (int64_t n = 0; n < from.n; ++n)
    for (int64_t y = 0; y < from.h; ++y)
      for (int64_t x = 0; x < from.w; ++x)
        for (int64_t c = 0; c < from.c; ++c) {
          const int number = static_cast<int>(window.at(n, c, y, x));
          int64_t plane = 0;
          if (e.relu) visit(mask_byte(s, n, plane++, y, x, c), c % 8, from.at(n, c, y, x) >= 0);
          if (e.pool) {
            visit(mask_byte(s, n, plane++, y, x, c), c % 8, number % 2 == 1);
            visit(mask_byte(s, n, plane, y, x, c), c % 8, number / 2 == 1);
          }
        }
}

template <class... Parts>
void check_mask_bits(const Tensor& s, Epilogue e, const Chosen& wanted, const Parts&... parts) {
  bool reported = false;
  for_each_bit(s, e, wanted.from, wanted.window, [&](const uint8_t& byte, int64_t bit, bool want) {
    ++checks;
    if (((byte >> bit) & 1) != want && !std::exchange(reported, true)) {
      report(__FILE__, __LINE__, "bit ", bit, " of byte ", &byte - s.as<uint8_t>(), " of mask ", describe(s.shape),
             " is ", !want, ", expected ", want, "; ", parts...);
    }
  });
}

/// What z has where a mask points: 0 where ReLU cut. The y of an epilogue that selected so.
inline Array gather(const Array& z, const Tensor& s, Epilogue e) {
  const int64_t step = e.pool ? 2 : 1;
  Array y(z.n, z.c, s.size(2), s.size(3));
  for (int64_t n = 0; n < y.n; ++n)
    for (int64_t row = 0; row < y.h; ++row)
      for (int64_t x = 0; x < y.w; ++x)
        for (int64_t c = 0; c < y.c; ++c) {
          const auto bit = [&](int64_t plane) { return (mask_byte(s, n, plane, row, x, c) >> (c % 8)) & 1; };
          const int64_t pool = e.relu ? 1 : 0;
          const int64_t column = e.pool ? bit(pool) : 0, below = e.pool ? bit(pool + 1) : 0;
          if (!e.relu || bit(0)) y.at(n, c, row, x) = z.at(n, c, step * row + below, step * x + column);
        }
  return y;
}

/// The mask that says `from` and `window`; bits that belong to no channel are all `padding`.
inline Held put_mask(Epilogue e, const Array& from, const Array& window, bool padding) {
  Held held = make_mask(e, from.n, from.c, from.h, from.w);
  if (!padding && held.memory->bytes() > 0) std::memset(held.memory->data(), 0, held.memory->bytes());
  for_each_bit(held, e, from, window, [](uint8_t& byte, int64_t bit, bool want) {
    byte = static_cast<uint8_t>((byte & ~(1 << bit)) | (want << bit));
  });
  return held;
}

}  // namespace vggfast::test
