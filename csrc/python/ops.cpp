#include "python/ops.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "python/define.h"
#include "vggfast/error.h"
#include "vggfast/memory.h"

namespace py = pybind11;

namespace vggfast::python {

DType dtype_named(const std::string& name) {
  for (DType dtype : {DType::f32, DType::f64, DType::u8, DType::i8, DType::bf16, DType::f16, DType::i32, DType::e4m3}) {
    if (name == name_of(dtype)) return dtype;
  }
  fail("dtype must be one of bfloat16, float16, float32, float64, uint8, int8, int32, float8_e4m3fn, got '", name, "'");
}

Masked masked_by(const Tensor* mask) {
  if (!mask) return {};
  VGGFAST_CHECK(mask->dim() == 5, "mask must have 5 axes, got shape ", describe(mask->shape));
  return {mask, {mask->size(1) != 2, mask->size(1) >= 2}};
}

namespace {

void check_axes(const Tensor& t, const char* name) {
  VGGFAST_CHECK(t.dim() == 4, name, " must have 4 axes, got shape ", describe(t.shape));
}

Device device_named(const std::string& name) {
  if (name == "cpu") return Device::cpu;
  VGGFAST_CHECK(name == "cuda", "device must be cpu or cuda, got '", name, "'");
  return Device::cuda;
}

using Optional = const Tensor*;

void bind_conv(py::module_& m, const Ops& ops) {
  m.def("conv_fprop_workspace",
        named({"x", "weight", "bias", "relu", "pool", "y", "mask", "context"},
              [=](const Tensor& x, const Tensor& weight, Optional, bool relu, bool pool, const Tensor&, Optional,
                  const Context& context) { return ops.conv_fprop_workspace(x, weight, {relu, pool}, context); },
              {.memory = false}));
  m.def("conv_fprop", named({"x", "weight", "bias", "relu", "pool", "y", "mask", "workspace", "context"},
                            [=](const Tensor& x, const Tensor& weight, Optional bias, bool relu, bool pool,
                                const Tensor& y, Optional mask, const Tensor& workspace, const Context& context) {
                              ops.conv_fprop(x, weight, bias, {relu, pool}, y, mask, workspace_of(workspace), context);
                            }));
  m.def("conv_dgrad_workspace", named({"gy", "mask", "weight", "gx", "x_mask", "context"},
                                      [=](const Tensor& gy, Optional mask, const Tensor& weight, const Tensor& gx,
                                          Optional, const Context& context) {
                                        check_axes(gx, "gx");
                                        return ops.conv_dgrad_workspace(gy, masked_by(mask), weight, gx.size(2),
                                                                        gx.size(3), context);
                                      },
                                      {.memory = false}));
  m.def("conv_dgrad", named({"gy", "mask", "weight", "gx", "x_mask", "workspace", "context"},
                            [=](const Tensor& gy, Optional mask, const Tensor& weight, const Tensor& gx,
                                Optional x_mask, const Tensor& workspace, const Context& context) {
                              ops.conv_dgrad(gy, masked_by(mask), weight, gx, workspace_of(workspace), context, x_mask);
                            }));
  m.def("conv_wgrad_workspace", named({"x", "gy", "mask", "gw", "gb", "context"},
                                      [=](const Tensor& x, const Tensor& gy, Optional mask, const Tensor& gw, Optional,
                                          const Context& context) {
                                        check_axes(gw, "gw");
                                        return ops.conv_wgrad_workspace(x, gy, masked_by(mask), gw.size(2), context);
                                      },
                                      {.memory = false}));
  m.def("conv_wgrad", named({"x", "gy", "mask", "gw", "gb", "workspace", "context"},
                            [=](const Tensor& x, const Tensor& gy, Optional mask, const Tensor& gw, Optional gb,
                                const Tensor& workspace, const Context& context) {
                              ops.conv_wgrad(x, gy, masked_by(mask), gw, gb, workspace_of(workspace), context);
                            }));
}

void bind_pool(py::module_& m, const Ops& ops) {
  m.def("max_pool2x2",
        named({"x", "y", "mask", "context"}, [=](const Tensor& x, const Tensor& y, Optional mask,
                                                 const Context& context) { ops.max_pool2x2(x, y, mask, context); }));
  m.def("mask_gather", named({"z", "mask", "y", "context"},
                             [=](const Tensor& z, const Tensor& mask, const Tensor& y, const Context& context) {
                               ops.mask_gather(z, mask, masked_by(&mask).epilogue, y, context);
                             }));
  m.def("mask_scatter", named({"y", "mask", "z", "context"},
                              [=](const Tensor& y, const Tensor& mask, const Tensor& z, const Context& context) {
                                ops.mask_scatter(y, mask, masked_by(&mask).epilogue, z, context);
                              }));
  m.def("sum_pool",
        named({"x", "mean", "y", "context"}, [=](const Tensor& x, bool mean, const Tensor& y, const Context& context) {
          ops.sum_pool(x, mean, y, context);
        }));
  m.def("mean_posteriors", named({"maps", "views", "scores", "context"},
                                 [=](const Tensor& maps, int64_t views, const Tensor& scores, const Context& context) {
                                   ops.mean_posteriors(maps, views, scores, context);
                                 }));
  m.def("mean_posteriors_dgrad",
        named({"gscores", "maps", "views", "gmaps", "context"},
              [=](const Tensor& gscores, const Tensor& maps, int64_t views, const Tensor& gmaps,
                  const Context& context) { ops.mean_posteriors_dgrad(gscores, maps, views, gmaps, context); }));
}

void bind_lrn(py::module_& m, const Ops& ops) {
  m.def("lrn_fprop", named({"x", "size", "alpha", "beta", "k", "y", "context"},
                           [=](const Tensor& x, int64_t size, double alpha, double beta, double k, const Tensor& y,
                               const Context& context) { ops.lrn_fprop(x, {size, alpha, beta, k}, y, context); }));
  m.def("lrn_dgrad_workspace", named({"gy", "x", "size", "alpha", "beta", "k", "gx", "context"},
                                     [=](const Tensor&, const Tensor& x, int64_t, double, double, double, const Tensor&,
                                         const Context& context) { return ops.lrn_dgrad_workspace(x, context); },
                                     {.memory = false}));
  m.def("lrn_dgrad", named({"gy", "x", "size", "alpha", "beta", "k", "gx", "workspace", "context"},
                           [=](const Tensor& gy, const Tensor& x, int64_t size, double alpha, double beta, double k,
                               const Tensor& gx, const Tensor& workspace, const Context& context) {
                             ops.lrn_dgrad(gy, x, {size, alpha, beta, k}, gx, workspace_of(workspace), context);
                           }));
}

void bind_images(py::module_& m, const Ops& ops) {
  m.def("prepare_images",
        named({"images", "corners", "flips", "shifts", "mean", "std", "y", "context"},
              [=](const Tensor& images, Optional corners, Optional flips, Optional shifts, std::array<float, 3> mean,
                  std::array<float, 3> std, const Tensor& y, const Context& context) {
                const Normalisation by{{mean[0], mean[1], mean[2]}, {std[0], std[1], std[2]}};
                ops.prepare_images(images, {corners, flips, shifts}, by, y, context);
              }));
}

/// What Python says of a tensor: its memory is taken on trust, its shape is not.
View view_of(uintptr_t data, std::vector<int64_t> shape, std::vector<int64_t> strides, const std::string& dtype,
             const std::string& device) {
  VGGFAST_CHECK(shape.size() == strides.size(), "strides must be as many as the ", shape.size(), " axes, got ",
                describe(strides));
  if (std::find(shape.begin(), shape.end(), 0) == shape.end()) check_extents(shape, "shape");
  return {
      {reinterpret_cast<void*>(data), dtype_named(dtype), device_named(device), std::move(shape), std::move(strides)},
      nullptr};
}

}  // namespace

void bind_tensors(py::module_& m, std::function<std::shared_ptr<void>(const Tensor&)> keep) {
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const Error& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    } catch (const NoMemory&) {
      throw;  // pybind11 takes its text
    } catch (const std::bad_alloc&) {
      PyErr_SetString(PyExc_MemoryError, "there is no memory for what the call works on");
    }
  });
  py::class_<Tensor>(m, "Tensor", py::module_local());
  py::class_<View, Tensor>(m, "TensorView", py::module_local())
      .def(py::init([keep, make = named(
                               {"owner", "data", "shape", "strides", "dtype", "device"},
                               [](const py::object&, uintptr_t data, std::vector<int64_t> shape,
                                  std::vector<int64_t> strides, const std::string& dtype, const std::string& device) {
                                 return view_of(data, std::move(shape), std::move(strides), dtype, device);
                               },
                               {.gil = true})](const py::args& args, const py::kwargs& kwargs) {
             View view = make(args, kwargs);
             if (keep) view.kept = keep(view);
             return view;
           }),
           py::keep_alive<1, 2>());
  py::class_<Context>(m, "Context", py::module_local())
      .def(py::init(named({{"threads", py::int_(1)},
                           {"stream", py::int_(0)},
                           {"tf32", py::bool_(false)},
                           {"exact", py::none()},
                           {"fixed_weights", py::bool_(false)}},
                          [](int threads, uintptr_t stream, bool tf32, std::optional<bool> exact, bool fixed_weights) {
                            return Context{threads, reinterpret_cast<void*>(stream), tf32, exact, fixed_weights};
                          },
                          {.gil = true})));
}

void bind_ops(py::module_ m, const Ops& ops) {
  bind_conv(m, ops);
  bind_pool(m, ops);
  bind_lrn(m, ops);
  bind_images(m, ops);
}

}  // namespace vggfast::python
