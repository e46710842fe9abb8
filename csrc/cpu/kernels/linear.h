// Linear layers over few rows: y = x Wt, gx = gy W and gW = gyt x, where W (outputs, inputs) exceeds the caches.
//
// W is read once, in its own layout. A block of `linear_inputs` columns of W is multiplied with the same columns of all
// rows of x, which stay in L2 meanwhile. Where there are more rows than a register tile has, the next tiles find their
// part of W in L1. VGG-16's first FC layer of 8 rows took 49 ms forward and backward this way, and 273 ms by torch (2
// cores of Zen 5).
#pragma once

#include "cpu/isa/simd.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

constexpr int64_t linear_inputs = 1024;
constexpr int linear_rows = VGGFAST_GEMM_ROWS >= 8 ? 8 : 4;     // rows of x or gy in a register tile
constexpr int linear_outputs = VGGFAST_GEMM_ROWS >= 8 ? 3 : 2;  // outputs in a register tile

/// Calls body.operator()<count>() for a count of 1 ... Most.
template <int Most, class Body>
inline __attribute__((always_inline)) void with_count(int64_t count, Body body) {
  if constexpr (Most > 1) {
    if (count < Most) return with_count<Most - 1>(count, body);
  }
  body.template operator()<Most>();
}

/// Adds to y[row][out] of Rows rows and Outs outputs the products of the `count` inputs from `begin` on.
template <int Rows, int Outs>
void linear_dots(const LinearArgs& a, int64_t row, int64_t out, int64_t begin, int64_t count) {
  using V = Vec<float>;
  const float *x = a.x + row * a.inputs + begin, *w = a.weight + out * a.inputs + begin;
  V::Value acc[Rows][Outs] = {};
  const auto step = [&](auto load, int64_t i) {
    V::Value column[Outs];
#pragma GCC unroll 4
    for (int o = 0; o < Outs; ++o) {
      column[o] = load(w + o * a.inputs + i);
      __builtin_prefetch(w + (o + Outs) * a.inputs + i, 0, 2);  // weights of the next outputs
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const V::Value values = load(x + r * a.inputs + i);
#pragma GCC unroll 4
      for (int o = 0; o < Outs; ++o) acc[r][o] += values * column[o];
    }
  };
  int64_t i = 0;
  for (; i + V::lanes <= count; i += V::lanes) step([](const float* p) { return V::load(p); }, i);
  if (i < count) step([=](const float* p) { return V::load(p, count - i); }, i);
  for (int r = 0; r < Rows; ++r) {
    for (int o = 0; o < Outs; ++o) {
      float sum = 0;
      for (int64_t lane = 0; lane < V::lanes; ++lane) sum += acc[r][o][lane];
      a.y[(row + r) * a.outputs + out + o] += sum;
    }
  }
}

/// Computes outputs [begin, end) of every row.
void linear_fprop(const LinearArgs& a, int64_t begin, int64_t end) {
  for (int64_t row = 0; row < a.rows; ++row) {
    for (int64_t out = begin; out < end; ++out) a.y[row * a.outputs + out] = a.bias ? a.bias[out] : 0;
  }
  for (int64_t i = 0; i < a.inputs; i += linear_inputs) {
    const int64_t count = min(linear_inputs, a.inputs - i);
    for (int64_t out = begin; out < end; out += linear_outputs) {
      for (int64_t row = 0; row < a.rows; row += linear_rows) {
        with_count<linear_outputs>(end - out, [&]<int Outs>() {
          with_count<linear_rows>(a.rows - row, [&]<int Rows>() { linear_dots<Rows, Outs>(a, row, out, i, count); });
        });
      }
    }
  }
}

/// Adds the products of Outs outputs to inputs [begin, begin + count) of the gradients of Rows rows. Where `out` is 0,
/// it stores them instead.
template <int Rows, int Outs>
void linear_axpys(const LinearArgs& a, int64_t row, int64_t out, int64_t begin, int64_t count) {
  using V = Vec<float>;
  const float *gy = a.y + row * a.outputs + out, *w = a.weight + out * a.inputs + begin;
  float* gx = a.gx + row * a.inputs + begin;
  const auto step = [&](auto load, auto store, int64_t i) {
    V::Value column[Outs];
#pragma GCC unroll 8
    for (int o = 0; o < Outs; ++o) {
      column[o] = load(w + o * a.inputs + i);
      __builtin_prefetch(w + (o + Outs) * a.inputs + i, 0, 2);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      V::Value sum = V::zero();  // of its own, so that rounding grows with the sums, not with the outputs
#pragma GCC unroll 8
      for (int o = 0; o < Outs; ++o) sum = V::fma(gy[r * a.outputs + o], column[o], sum);
      store(gx + r * a.inputs + i, out == 0 ? sum : load(gx + r * a.inputs + i) + sum);
    }
  };
  int64_t i = 0;
  for (; i + V::lanes <= count; i += V::lanes) {
    step([](const float* p) { return V::load(p); }, [](float* p, V::Value v) { V::store(p, v); }, i);
  }
  if (i < count) {
    step([=](const float* p) { return V::load(p, count - i); },
         [=](float* p, V::Value v) { V::store(p, v, count - i); }, i);
  }
}

/// Computes inputs [begin, end) of every row's gradient.
void linear_dgrad(const LinearArgs& a, int64_t begin, int64_t end) {
  constexpr int outs = linear_rows;  // rows of W in registers
  for (int64_t out = 0; out < a.outputs; out += outs) {
    for (int64_t row = 0; row < a.rows; row += linear_rows) {
      with_count<outs>(a.outputs - out, [&]<int Outs>() {
        with_count<linear_rows>(a.rows - row,
                                [&]<int Rows>() { linear_axpys<Rows, Outs>(a, row, out, begin, end - begin); });
      });
    }
  }
}

/// Computes outputs [begin, end) of the weights' gradient. With `stream`, gw's vectors are aligned and are written past
/// the caches.
void linear_wgrad(const LinearArgs& a, int64_t begin, int64_t end) {
  using V = Vec<float>;
  constexpr int outs = 4, vectors = 2;
  for (int64_t block = 0; block < a.inputs; block += linear_inputs) {
    const int64_t block_end = min(block + linear_inputs, a.inputs);
    for (int64_t out = begin; out < end; out += outs) {
      with_count<outs>(end - out, [&]<int Outs>() {
        const auto step = [&]<int Vecs>(auto load, auto store, int64_t i) {
          V::Value acc[Outs][Vecs] = {};
          for (int64_t row = 0; row < a.rows; ++row) {
            const float* gy = a.y + row * a.outputs + out;
#pragma GCC unroll 2
            for (int v = 0; v < Vecs; ++v) {
              const V::Value values = load(a.x + row * a.inputs + i + v * V::lanes);
#pragma GCC unroll 4
              for (int o = 0; o < Outs; ++o) acc[o][v] = V::fma(gy[o], values, acc[o][v]);
            }
          }
#pragma GCC unroll 4
          for (int o = 0; o < Outs; ++o) {
#pragma GCC unroll 2
            for (int v = 0; v < Vecs; ++v) store(a.gw + (out + o) * a.inputs + i + v * V::lanes, acc[o][v]);
          }
        };
        const auto load = [](const float* p) { return V::load(p); };
        int64_t i = block;
        for (; i + vectors * V::lanes <= block_end; i += vectors * V::lanes) {
          if (a.stream) {
            step.template operator()<vectors>(load, [](float* p, V::Value v) { V::stream(p, v); }, i);
          } else {
            step.template operator()<vectors>(load, [](float* p, V::Value v) { V::store(p, v); }, i);
          }
        }
        for (; i < block_end; i += V::lanes) {
          const int64_t count = min(block_end - i, V::lanes);
          if (count == V::lanes) {
            step.template operator()<1>(load, [](float* p, V::Value v) { V::store(p, v); }, i);
          } else {
            step.template operator()<1>([=](const float* p) { return V::load(p, count); },
                                        [=](float* p, V::Value v) { V::store(p, v, count); }, i);
          }
        }
      });
    }
  }
  if (a.stream) V::end_stream();
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
