// What the CPU ops share: choosing the code of a dtype.
#pragma once

#include "cpu/kernel_table.h"
#include "vggfast/error.h"
#include "vggfast/tensor.h"

namespace vggfast::cpu {

/// Throws unless `t` is float or double, on the CPU.
inline void check_float(const Tensor& t, const char* name) {
  VGGFAST_CHECK(t.device == Device::cpu, name, " must be on cpu, got ", name_of(t.device));
  VGGFAST_CHECK(t.dtype == DType::f32 || t.dtype == DType::f64, name, " must be float32 or float64, got ",
                name_of(t.dtype));
}

/// Calls body.operator()<T>() for the floating dtype of `t`.
template <class Body>
auto for_float(const Tensor& t, const char* name, Body body) {
  check_float(t, name);
  return t.dtype == DType::f32 ? body.template operator()<float>() : body.template operator()<double>();
}

/// The extents of a tensor in NHWC.
inline Extent extent_of(const Tensor& t) { return {t.size(0), t.size(2), t.size(3), t.size(1)}; }

}  // namespace vggfast::cpu
