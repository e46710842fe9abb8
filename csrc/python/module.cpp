// The pybind11 module vggfast._C. This folder is the only code that knows Python. It knows no torch: a tensor comes as
// a TensorView that Python fills from the tensor's own attributes and that keeps the tensor alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "python/ops.h"
#include "vggfast/build_info.h"
#include "vggfast/cpu.h"
#include "vggfast/engine.h"
#include "vggfast/linear.h"
#include "vggfast/memory.h"

namespace py = pybind11;
using namespace vggfast;

namespace {

constexpr Ops cpu_ops{.conv_fprop_workspace = conv_fprop_workspace,
                      .conv_dgrad_workspace = conv_dgrad_workspace,
                      .conv_wgrad_workspace = conv_wgrad_workspace,
                      .conv_fprop = conv_fprop,
                      .conv_dgrad = conv_dgrad,
                      .conv_wgrad = conv_wgrad,
                      .max_pool2x2 = max_pool2x2,
                      .mask_gather = mask_gather,
                      .mask_scatter = mask_scatter,
                      .sum_pool = sum_pool,
                      .mean_posteriors = mean_posteriors,
                      .mean_posteriors_dgrad = mean_posteriors_dgrad,
                      .lrn_fprop = lrn_fprop,
                      .lrn_dgrad_workspace = lrn_dgrad_workspace,
                      .lrn_dgrad = lrn_dgrad,
                      .prepare_images = prepare_images};

void bind_algorithms(py::module_& m) {
  m.def("set_conv_algorithm", &set_conv_algorithm);
  m.def("conv_algorithm", &conv_algorithm);
  m.def("conv_algorithms", &conv_algorithms);
  m.def("conv_cost",
        [](const std::string& pass, int64_t n, int64_t cin, int64_t h, int64_t w, int64_t cout, int64_t kernel) {
          const ConvCost cost = conv_cost(pass, n, cin, h, w, cout, kernel);
          return py::make_tuple(cost.algorithm, cost.multiply_adds);
        });
}

void bind_linear(py::module_& m) {
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.def(
      "linear_fprop",
      [](const Tensor& x, const Tensor& weight, const Tensor* bias, const Tensor& y, const Context& context) {
        linear_fprop(x, weight, bias, y, context);
      },
      no_gil);
  m.def(
      "linear_dgrad",
      [](const Tensor& gy, const Tensor& weight, const Tensor& gx, const Context& context) {
        linear_dgrad(gy, weight, gx, context);
      },
      no_gil);
  m.def(
      "linear_wgrad",
      [](const Tensor& x, const Tensor& gy, const Tensor& gw, const Context& context) {
        linear_wgrad(x, gy, gw, context);
      },
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
      .def("workspace", [](const Engine& e, int64_t layer, int64_t n, int64_t c, int64_t h, int64_t w,
                           int threads) { return e.workspace(layer, n, c, h, w, {threads}); })
      .def("bytes", &Engine::bytes)
      .def("algorithms", &Engine::algorithms);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled core of vggfast. Use vggfast.ops; this module takes addresses on trust.";
  python::bind_tensors(m);
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
  bind_algorithms(m);
  py::module_ cpu = m.def_submodule("cpu");
  python::bind_ops(cpu, cpu_ops);
  python::bind_crops(cpu);
  bind_linear(cpu);
#ifdef VGGFAST_WITH_CUDA
  python::bind_cuda(m.def_submodule("cuda"));
#endif
  bind_engine(m);
  python::bind_plan(m.def_submodule("plan"));
}
