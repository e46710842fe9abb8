#include "vggfast/batch_norm.h"

#include "python/define.h"
#include "python/ops.h"

namespace vggfast::python {

using Optional = const Tensor*;

void bind_batch_norm(pybind11::module_& m) {
  m.def("batch_norm_fprop_workspace",
        named({"x", "weight", "bias", "training", "eps", "relu", "pool", "mean", "var", "y", "mask", "context"},
              [](const Tensor& x, Optional, Optional, bool, double, bool, bool, const Tensor&, const Tensor&,
                 const Tensor&, Optional, const Context& context) { return batch_norm_fprop_workspace(x, context); },
              {.memory = false}));
  m.def("batch_norm_fprop", named({"x", "weight", "bias", "training", "eps", "relu", "pool", "mean", "var", "y", "mask",
                                   "workspace", "context"},
                                  [](const Tensor& x, Optional weight, Optional bias, bool training, double eps,
                                     bool relu, bool pool, const Tensor& mean, const Tensor& var, const Tensor& y,
                                     Optional mask, const Tensor& workspace, const Context& context) {
                                    batch_norm_fprop(x, weight, bias, {training, eps}, {relu, pool}, mean, var, y, mask,
                                                     workspace_of(workspace), context);
                                  }));
  m.def("batch_norm_dgrad_workspace",
        named({"gy", "mask", "x", "weight", "training", "eps", "mean", "var", "gx", "gw", "gb", "context"},
              [](const Tensor&, Optional, const Tensor& x, Optional, bool, double, const Tensor&, const Tensor&,
                 const Tensor&, Optional, Optional,
                 const Context& context) { return batch_norm_dgrad_workspace(x, context); },
              {.memory = false}));
  m.def("batch_norm_dgrad",
        named({"gy", "mask", "x", "weight", "training", "eps", "mean", "var", "gx", "gw", "gb", "workspace", "context"},
              [](const Tensor& gy, Optional mask, const Tensor& x, Optional weight, bool training, double eps,
                 const Tensor& mean, const Tensor& var, const Tensor& gx, Optional gw, Optional gb,
                 const Tensor& workspace, const Context& context) {
                batch_norm_dgrad(gy, masked_by(mask), x, weight, {training, eps}, mean, var, gx, gw, gb,
                                 workspace_of(workspace), context);
              }));
}

}  // namespace vggfast::python
