// The pybind11 module vggfast._C: the only code that knows Python. It knows no torch: a tensor comes as a TensorView
// that Python fills from the tensor's own attributes and that keeps the tensor alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "vggfast/build_info.h"
#include "vggfast/conv.h"
#include "vggfast/cpu.h"
#include "vggfast/error.h"
#include "vggfast/lrn.h"
#include "vggfast/pool.h"
#ifdef VGGFAST_WITH_CUDA
#include "vggfast/cuda.h"
#endif

namespace py = pybind11;
using namespace vggfast;

namespace {

DType dtype_named(const std::string& name) {
  for (DType dtype : {DType::f32, DType::f64, DType::u8}) {
    if (name == name_of(dtype)) return dtype;
  }
  fail("dtype is ", name, ": float32, float64 or uint8 is wanted");
}

Device device_named(const std::string& name) {
  if (name == "cpu") return Device::cpu;
  VGGFAST_CHECK(name == "cuda", "device is ", name, ": cpu or cuda is wanted");
  return Device::cuda;
}

Tensor make_tensor(const py::object& /*owner*/, uintptr_t data, std::vector<int64_t> shape,
                   std::vector<int64_t> strides, const std::string& dtype, const std::string& device) {
  return {reinterpret_cast<void*>(data), dtype_named(dtype), device_named(device), std::move(shape),
          std::move(strides)};
}

Workspace workspace_of(const Tensor& t) { return {t.data, static_cast<size_t>(t.numel()) * size_of(t.dtype)}; }

void bind_conv(py::module_& m) {
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.def("conv_fprop_workspace", &conv_fprop_workspace);
  m.def("conv_dgrad_workspace", &conv_dgrad_workspace);
  m.def("conv_wgrad_workspace", &conv_wgrad_workspace);
  m.def(
      "conv_fprop",
      [](const Tensor& x, const Tensor& weight, const Tensor* bias, bool relu, bool pool, const Tensor& y,
         const Tensor* selection, const Tensor& workspace,
         int threads) { conv_fprop(x, weight, bias, {relu, pool}, y, selection, workspace_of(workspace), {threads}); },
      no_gil);
  m.def(
      "conv_dgrad",
      [](const Tensor& gy, const Tensor& weight, const Tensor& gx, const Tensor& workspace, int threads) {
        conv_dgrad(gy, weight, gx, workspace_of(workspace), {threads});
      },
      no_gil);
  m.def(
      "conv_wgrad",
      [](const Tensor& x, const Tensor& gy, const Tensor& gw, const Tensor* gb, const Tensor& workspace, int threads) {
        conv_wgrad(x, gy, gw, gb, workspace_of(workspace), {threads});
      },
      no_gil);
}

void bind_pool(py::module_& m) {
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.def(
      "max_pool2x2",
      [](const Tensor& x, const Tensor& y, const Tensor* selection, int threads) {
        max_pool2x2(x, y, selection, {threads});
      },
      no_gil);
  m.def(
      "gather_selected",
      [](const Tensor& z, const Tensor& selection, bool relu, bool pool, const Tensor& y, int threads) {
        gather_selected(z, selection, {relu, pool}, y, {threads});
      },
      no_gil);
  m.def(
      "scatter_selected",
      [](const Tensor& y, const Tensor& selection, bool relu, bool pool, const Tensor& z, int threads) {
        scatter_selected(y, selection, {relu, pool}, z, {threads});
      },
      no_gil);
  m.def(
      "sum_pool", [](const Tensor& x, bool mean, const Tensor& y, int threads) { sum_pool(x, mean, y, {threads}); },
      no_gil);
#ifdef VGGFAST_WITH_CUDA
  m.def(
      "cuda_max_pool2x2",
      [](const Tensor& x, const Tensor& y, const Tensor* selection, uintptr_t stream) {
        cuda::max_pool2x2(x, y, selection, {.stream = reinterpret_cast<void*>(stream)});
      },
      no_gil);
#endif
}

void bind_lrn(py::module_& m) {
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.def(
      "lrn_fprop",
      [](const Tensor& x, int64_t size, double alpha, double beta, double k, const Tensor& y, int threads) {
        lrn_fprop(x, {size, alpha, beta, k}, y, {threads});
      },
      no_gil);
  m.def("lrn_dgrad_workspace", [](const Tensor& x, int threads) { return lrn_dgrad_workspace(x, {threads}); });
  m.def(
      "lrn_dgrad",
      [](const Tensor& gy, const Tensor& x, int64_t size, double alpha, double beta, double k, const Tensor& gx,
         const Tensor& workspace,
         int threads) { lrn_dgrad(gy, x, {size, alpha, beta, k}, gx, workspace_of(workspace), {threads}); },
      no_gil);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled core of vggfast. Use vggfast.ops; this module takes addresses on trust.";
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const Error& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    }
  });
  py::class_<Tensor>(m, "TensorView")
      .def(py::init(&make_tensor), py::keep_alive<1, 2>(), py::arg("owner"), py::arg("data"), py::arg("shape"),
           py::arg("strides"), py::arg("dtype"), py::arg("device"));
  m.def("build_info", &build_info);
  m.def("cpu_isas", &cpu_isas);
  m.def("cpu_isa", &cpu_isa);
  m.def("set_cpu_isa", &set_cpu_isa);
  m.def("openmp_runtime", &openmp_runtime);
  bind_conv(m);
  bind_pool(m);
  bind_lrn(m);
}
