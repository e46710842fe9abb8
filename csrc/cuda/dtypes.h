// What the CUDA ops share: choosing the code of a dtype.
#pragma once

#include "cuda/ptx/cvt.h"
#include "vggfast/error.h"
#include "vggfast/tensor.h"

namespace vggfast::cuda {

/// Throws unless `t` is on cuda and of a floating dtype that for_float has.
inline void check_float(const Tensor& t, const char* name) {
  VGGFAST_CHECK(t.device == Device::cuda, name, " must be on cuda, got ", name_of(t.device));
  VGGFAST_CHECK(t.dtype == DType::bf16 || t.dtype == DType::f16 || t.dtype == DType::f32 || t.dtype == DType::f64, name,
                " must be bfloat16, float16, float32 or float64, got ", name_of(t.dtype));
}

/// Calls body.operator()<T>() for the floating dtype of `t`: T is bf16, f16, float or double.
template <class Body>
auto for_float(const Tensor& t, const char* name, Body body) {
  check_float(t, name);
  switch (t.dtype) {
    case DType::bf16:
      return body.template operator()<bf16>();
    case DType::f16:
      return body.template operator()<f16>();
    case DType::f32:
      return body.template operator()<float>();
    default:
      return body.template operator()<double>();
  }
}

/// The same for a dtype that tensor cores multiply: T is bf16, f16, or float, read as TF32.
template <class Body>
auto for_tensor_cores(DType dtype, Body body) {
  if (dtype == DType::bf16) return body.template operator()<bf16>();
  if (dtype == DType::f16) return body.template operator()<f16>();
  return body.template operator()<float>();
}

}  // namespace vggfast::cuda
