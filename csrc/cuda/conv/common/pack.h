// Weights as fprop reads them: a row for each output channel, its taps' input channels one after the other, rounded up
// with zeros to whole tiles and stages; for dgrad, input and output channels change places and the taps are mirrored.
#pragma once

#include "cuda/conv/common/math.h"
#include "vggfast/error.h"
#include "vggfast/tensor.h"

namespace vggfast::cuda {

template <class T>
struct WeightView {
  const T* data;
  int out, in, kernel;
  int64_t out_stride, in_stride, row_stride, column_stride;

  int64_t rows() const { return (out + 127) / 128 * 128; }
  int64_t depth() const { return (int64_t(kernel) * kernel * in + depth_of<T> - 1) / depth_of<T> * depth_of<T>; }
  size_t packed_bytes() const { return static_cast<size_t>(rows() * depth()) * sizeof(T); }
};

template <class T>
WeightView<T> fprop_view(const Tensor& weight) {
  return {weight.as<T>(),
          static_cast<int>(weight.size(0)),
          static_cast<int>(weight.size(1)),
          static_cast<int>(weight.size(2)),
          weight.stride(0),
          weight.stride(1),
          weight.stride(2),
          weight.stride(3)};
}
template <class T>
WeightView<T> dgrad_view(const Tensor& weight) {
  const int64_t last = weight.size(2) - 1;
  return {weight.as<T>() + last * (weight.stride(2) + weight.stride(3)),
          static_cast<int>(weight.size(1)),
          static_cast<int>(weight.size(0)),
          static_cast<int>(weight.size(2)),
          weight.stride(1),
          weight.stride(0),
          -weight.stride(2),
          -weight.stride(3)};
}

/// `tf32`: values are rounded to what the tensor cores read.
template <class T>
void pack_weights(const WeightView<T>& weights, bool tf32, T* packed, const Context& context);

/// Bytes of a run's workspace for them: none where the caller has packed them.
template <class T>
size_t packing_bytes(const WeightView<T>& weights, const Workspace* packed) {
  return packed ? 0 : weights.packed_bytes();
}

/// What the caller has packed; else they are packed now, to the workspace.
template <class T>
const T* packed_weights(const WeightView<T>& weights, const Workspace* packed, Workspace workspace,
                        const Context& context) {
  const Workspace& there = packed ? *packed : workspace;
  VGGFAST_CHECK(there.bytes >= weights.packed_bytes(), packed ? "packed" : "workspace", " must have at least ",
                weights.packed_bytes(), " bytes, got ", there.bytes);
  T* const values = static_cast<T*>(there.data);
  if (!packed) pack_weights(weights, context.tf32, values, context);
  return values;
}

}  // namespace vggfast::cuda
