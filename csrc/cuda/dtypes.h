// What the CUDA ops share: choosing the code of a dtype.
#pragma once

#include "cuda/ptx/cvt.h"
#include "vggfast/error.h"
#include "vggfast/tensor.h"

namespace vggfast::cuda {

/// Calls body.operator()<T>() for the floating dtype of `t`: T is bf16, f16, float or double.
template <class Body>
auto for_float(const Tensor& t, const char* name, Body body) {
  VGGFAST_CHECK(t.device == Device::cuda, name, " must be on cuda, got ", name_of(t.device));
  switch (t.dtype) {
    case DType::bf16:
      return body.template operator()<bf16>();
    case DType::f16:
      return body.template operator()<f16>();
    case DType::f32:
      return body.template operator()<float>();
    case DType::f64:
      return body.template operator()<double>();
    default:
      fail(name, " must be bfloat16, float16, float32 or float64, got ", name_of(t.dtype));
  }
}

}  // namespace vggfast::cuda
