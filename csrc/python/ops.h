// Binding a back end's ops to Python: the same names and arguments for each. An op's last arguments are its workspace,
// where it has a function <op>_workspace that says how much, and how to run it; before them stand its inputs and
// outputs.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <memory>

#include "core/ops.h"

namespace vggfast::python {

/// A tensor as Python hands it over, and what is to live as long.
struct View : Tensor {
  std::shared_ptr<void> kept;
};

/// TensorView, Context and the translation of Error. `keep` is called with each new view.
void bind_tensors(pybind11::module_& m, std::function<std::shared_ptr<void>(const Tensor&)> keep = {});
void bind_ops(pybind11::module_ m, const Ops& ops);
/// The planner (plan.cpp).
void bind_plan(pybind11::module_ m);
/// crop_images, which the CPU alone has.
void bind_crops(pybind11::module_& m);
/// Batch norm, which the CPU alone has.
void bind_batch_norm(pybind11::module_& m);
/// The CUDA back end: of a GPU, or of the simulator where the kernels were compiled for that.
void bind_cuda(pybind11::module_ m);

/// Throws where there is no dtype of this name.
DType dtype_named(const std::string& name);

/// The planes of a mask say what it remembers: ReLU 1, pool 2, both 3.
Masked masked_by(const Tensor* mask);

inline Workspace workspace_of(const Tensor& t) { return {t.data, static_cast<size_t>(t.numel()) * size_of(t.dtype)}; }

}  // namespace vggfast::python
