// The CUDA back end's ops, as the compiled module and the simulator's both bind them.
#include "vggfast/cuda.h"

#include <pybind11/stl.h>

#include "python/define.h"
#include "python/ops.h"

namespace vggfast::python {

namespace {

constexpr Ops cuda_ops{.conv_fprop_workspace = cuda::conv_fprop_workspace,
                       .conv_dgrad_workspace = cuda::conv_dgrad_workspace,
                       .conv_wgrad_workspace = cuda::conv_wgrad_workspace,
                       .conv_fprop = cuda::conv_fprop,
                       .conv_dgrad = cuda::conv_dgrad,
                       .conv_wgrad = cuda::conv_wgrad,
                       .max_pool2x2 = cuda::max_pool2x2,
                       .mask_gather = cuda::mask_gather,
                       .mask_scatter = cuda::mask_scatter,
                       .sum_pool = cuda::sum_pool,
                       .mean_posteriors = cuda::mean_posteriors,
                       .mean_posteriors_dgrad = cuda::mean_posteriors_dgrad,
                       .lrn_fprop = cuda::lrn_fprop,
                       .lrn_dgrad_workspace = cuda::lrn_dgrad_workspace,
                       .lrn_dgrad = cuda::lrn_dgrad,
                       .prepare_images = cuda::prepare_images};

void bind_prepacked(pybind11::module_& m) {
  m.def("conv_pack_workspace", named({"weight", "mirrored", "context"},
                                     [](const Tensor& weight, bool mirrored, const Context& context) {
                                       return cuda::conv_pack_workspace(weight, mirrored, context);
                                     },
                                     {.memory = false}));
  m.def("conv_pack", named({"weight", "mirrored", "packed", "context"},
                           [](const Tensor& weight, bool mirrored, const Tensor& packed, const Context& context) {
                             cuda::conv_pack(weight, mirrored, workspace_of(packed), context);
                           }));
  m.def("conv_fprop_prepacked_workspace",
        named({"x", "weight", "bias", "relu", "pool", "y", "mask", "packed", "context"},
              [](const Tensor& x, const Tensor& weight, const Tensor*, bool relu, bool pool, const Tensor&,
                 const Tensor*, const Tensor&, const Context& context) {
                return cuda::conv_fprop_prepacked_workspace(x, weight, {relu, pool}, context);
              },
              {.memory = false}));
  m.def("conv_fprop_prepacked",
        named({"x", "weight", "bias", "relu", "pool", "y", "mask", "packed", "workspace", "context"},
              [](const Tensor& x, const Tensor& weight, const Tensor* bias, bool relu, bool pool, const Tensor& y,
                 const Tensor* mask, const Tensor& packed, const Tensor& workspace, const Context& context) {
                cuda::conv_fprop_prepacked(x, weight, bias, {relu, pool}, y, mask, workspace_of(packed),
                                           workspace_of(workspace), context);
              }));
  m.def("conv_dgrad_prepacked_workspace",
        named({"gy", "mask", "weight", "gx", "x_mask", "packed", "context"},
              [](const Tensor& gy, const Tensor* mask, const Tensor& weight, const Tensor& gx, const Tensor*,
                 const Tensor&, const Context& context) {
                VGGFAST_CHECK(gx.dim() == 4, "gx must have 4 axes, got shape ", describe(gx.shape));
                return cuda::conv_dgrad_prepacked_workspace(gy, masked_by(mask), weight, gx.size(2), gx.size(3),
                                                            context);
              },
              {.memory = false}));
  m.def("conv_dgrad_prepacked",
        named({"gy", "mask", "weight", "gx", "x_mask", "packed", "workspace", "context"},
              [](const Tensor& gy, const Tensor* mask, const Tensor& weight, const Tensor& gx, const Tensor* x_mask,
                 const Tensor& packed, const Tensor& workspace, const Context& context) {
                cuda::conv_dgrad_prepacked(gy, masked_by(mask), weight, gx, workspace_of(packed),
                                           workspace_of(workspace), context, x_mask);
              }));
}

}  // namespace

void bind_cuda(pybind11::module_ m) {
  bind_ops(m, cuda_ops);
  bind_prepacked(m);
  m.def("conv_fprop_scaled", named({"x", "weight", "bias", "scale", "relu", "pool", "y", "context"},
                                   [](const Tensor& x, const Tensor& weight, const Tensor* bias, double scale,
                                      bool relu, bool pool, const Tensor& y, const Context& context) {
                                     cuda::conv_fprop_scaled(x, weight, bias, scale, {relu, pool}, y, context);
                                   }));
  m.def("conv_block1",
        named({"x", "w1", "b1", "w2", "b2", "y", "context"},
              [](const Tensor& x, const Tensor& w1, const Tensor* b1, const Tensor& w2, const Tensor* b2,
                 const Tensor& y, const Context& context) { cuda::conv_block1(x, w1, b1, w2, b2, y, context); }));
  m.def("has_conv_block1", &cuda::has_conv_block1);
  m.def("set_conv_tile", &cuda::set_conv_tile);
  m.def("conv_tile", &cuda::conv_tile);
  m.def("conv_tiles", &cuda::conv_tiles);
  pybind11::class_<cuda::ConvChoice>(m, "ConvChoice", pybind11::module_local())
      .def_readonly("tile", &cuda::ConvChoice::tile)
      .def_readonly("clocks", &cuda::ConvChoice::clocks)
      .def_readonly("clocks_in_step", &cuda::ConvChoice::clocks_in_step)
      .def_readonly("chosen", &cuda::ConvChoice::chosen);
  m.def("conv_choices", &cuda::conv_choices);
  m.def("conv_clusters", &cuda::conv_clusters);
}

}  // namespace vggfast::python
