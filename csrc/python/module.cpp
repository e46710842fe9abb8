// The pybind11 module vggfast._C: the only code that knows Python. It knows no torch: a tensor comes as a TensorView
// that Python fills from the tensor's own attributes and that keeps the tensor alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "vggfast/build_info.h"
#include "vggfast/conv.h"
#include "vggfast/cpu.h"
#include "vggfast/engine.h"
#include "vggfast/error.h"
#include "vggfast/linear.h"
#include "vggfast/lrn.h"
#include "vggfast/memory.h"
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

/// The planes of a selection say what it remembers: ReLU 1, pool 2, both 3.
Selected selected_by(const Tensor* selection) {
  if (!selection) return {};
  VGGFAST_CHECK(selection->dim() == 5, "selection has shape ", describe(selection->shape), ": 5 axes are wanted");
  return {selection, {selection->size(1) != 2, selection->size(1) >= 2}};
}

void bind_conv(py::module_& m) {
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.def("set_conv_algorithm", &set_conv_algorithm);
  m.def("conv_algorithm", &conv_algorithm);
  m.def("conv_cost",
        [](const std::string& pass, int64_t n, int64_t cin, int64_t h, int64_t w, int64_t cout, int64_t kernel) {
          const ConvCost cost = conv_cost(pass, n, cin, h, w, cout, kernel);
          return py::make_tuple(cost.algorithm, cost.multiply_adds);
        });
  m.def("conv_fprop_workspace", [](const Tensor& x, const Tensor& weight, bool relu, bool pool, int threads) {
    return conv_fprop_workspace(x, weight, {relu, pool}, {threads});
  });
  m.def("conv_dgrad_workspace",
        [](const Tensor& gy, const Tensor* selection, const Tensor& weight, int64_t h, int64_t w, int threads) {
          return conv_dgrad_workspace(gy, selected_by(selection), weight, h, w, {threads});
        });
  m.def("conv_wgrad_workspace",
        [](const Tensor& x, const Tensor& gy, const Tensor* selection, int64_t kernel, int threads) {
          return conv_wgrad_workspace(x, gy, selected_by(selection), kernel, {threads});
        });
  m.def(
      "conv_fprop",
      [](const Tensor& x, const Tensor& weight, const Tensor* bias, bool relu, bool pool, const Tensor& y,
         const Tensor* selection, const Tensor& workspace,
         int threads) { conv_fprop(x, weight, bias, {relu, pool}, y, selection, workspace_of(workspace), {threads}); },
      no_gil);
  m.def(
      "conv_dgrad",
      [](const Tensor& gy, const Tensor* selection, const Tensor& weight, const Tensor& gx, const Tensor& workspace,
         int threads) { conv_dgrad(gy, selected_by(selection), weight, gx, workspace_of(workspace), {threads}); },
      no_gil);
  m.def(
      "conv_wgrad",
      [](const Tensor& x, const Tensor& gy, const Tensor* selection, const Tensor& gw, const Tensor* gb,
         const Tensor& workspace,
         int threads) { conv_wgrad(x, gy, selected_by(selection), gw, gb, workspace_of(workspace), {threads}); },
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

void bind_linear(py::module_& m) {
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.def(
      "linear_fprop",
      [](const Tensor& x, const Tensor& weight, const Tensor* bias, const Tensor& y, int threads) {
        linear_fprop(x, weight, bias, y, {threads});
      },
      no_gil);
  m.def(
      "linear_dgrad",
      [](const Tensor& gy, const Tensor& weight, const Tensor& gx, int threads) {
        linear_dgrad(gy, weight, gx, {threads});
      },
      no_gil);
  m.def(
      "linear_wgrad",
      [](const Tensor& x, const Tensor& gy, const Tensor& gw, int threads) { linear_wgrad(x, gy, gw, {threads}); },
      no_gil);
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

void bind_engine(py::module_& m) {
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  py::class_<Engine>(m, "Engine")
      .def(py::init([](bool bf16, bool bf16_weights, int threads, int64_t batch, int64_t size) {
             return std::make_unique<Engine>(EngineOptions{bf16, bf16_weights, threads, batch, size});
           }),
           py::arg("bf16"), py::arg("bf16_weights"), py::arg("threads"), py::arg("batch"), py::arg("size"))
      .def("add_conv", &Engine::add_conv, no_gil)
      .def("add_linear", &Engine::add_linear, no_gil)
      .def("add_relu", &Engine::add_relu)
      .def("add_max_pool", &Engine::add_max_pool)
      .def("add_lrn",
           [](Engine& e, int64_t size, double alpha, double beta, double k) { e.add_lrn({size, alpha, beta, k}); })
      .def("add_flatten", &Engine::add_flatten)
      .def("add_windows", &Engine::add_windows)
      .def("add_row_mean", &Engine::add_row_mean)
      .def("layers", &Engine::layers)
      .def("output_shape", &Engine::output_shape)
      .def(
          "run",
          [](Engine& e, const Tensor& x, const std::vector<std::pair<int64_t, Tensor>>& outputs, int threads) {
            e.run(x, outputs, {threads});
          },
          no_gil)
      .def("bytes", &Engine::bytes)
      .def("algorithms", &Engine::algorithms);
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
  py::class_<CachedBuffer>(m, "CachedBuffer", py::buffer_protocol())
      .def(py::init<size_t>(), py::arg("bytes"))
      .def_buffer([](CachedBuffer& b) { return py::buffer_info(static_cast<uint8_t*>(b.data()), b.bytes()); });
  m.def("held_bytes", &CachedBuffer::held);
  m.def("release_unused", &CachedBuffer::release_unused);
  bind_conv(m);
  bind_pool(m);
  bind_linear(m);
  bind_lrn(m);
  bind_engine(m);
}
