// The pybind11 module vggfast._C. This folder is the only code that knows Python. It knows no torch: a tensor comes as
// a TensorView that Python fills from the tensor's own attributes and that keeps the tensor alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "python/define.h"
#include "python/ops.h"
#include "vggfast/build_info.h"
#include "vggfast/cpu.h"
#include "vggfast/engine.h"
#include "vggfast/linear.h"
#include "vggfast/memory.h"

namespace py = pybind11;
using namespace vggfast;
using python::named;

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
  m.def("set_conv_algorithm", named({"algorithm"}, [](const std::string& name) { set_conv_algorithm(name); }));
  m.def("conv_algorithm", named({}, [] { return conv_algorithm(); }));
  m.def("conv_algorithms", named({}, [] { return conv_algorithms(); }));
  m.def("conv_takes", named({"dtype"}, [](const std::string& dtype) { return conv_takes(python::dtype_named(dtype)); },
                            {.gil = true}));
  m.def("conv_cost",
        named({"pass", "n", "cin", "h", "w", "cout", "kernel"},
              [](const std::string& pass, int64_t n, int64_t cin, int64_t h, int64_t w, int64_t cout, int64_t kernel) {
                const ConvCost cost = conv_cost(pass, n, cin, h, w, cout, kernel);
                return std::make_pair(cost.algorithm, cost.multiply_adds);
              }));
}

void bind_packed_conv(py::module_& m) {
  m.def("conv_packing", named({"x", "weight", "relu", "pool", "context"},
                              [](const Tensor& x, const Tensor& weight, bool relu, bool pool, const Context& context) {
                                const ConvPacking found = conv_packing(x, weight, {relu, pool}, context);
                                return std::make_pair(found.layout, found.bytes);
                              },
                              {.memory = false, .gil = true}));
  m.def("conv_pack", named({"x", "weight", "relu", "pool", "packed", "context"},
                           [](const Tensor& x, const Tensor& weight, bool relu, bool pool, const Tensor& packed,
                              const Context& context) {
                             conv_pack(x, weight, {relu, pool}, python::workspace_of(packed), context);
                           }));
  m.def("conv_fprop_packed_workspace",
        named({"x", "weight", "original", "packed", "bias", "relu", "pool", "y", "mask", "context"},
              [](const Tensor& x, const Tensor& weight, const Tensor&, const Tensor&, const Tensor*, bool relu,
                 bool pool, const Tensor&, const Tensor*,
                 const Context& context) { return conv_fprop_packed_workspace(x, weight, {relu, pool}, context); },
              {.memory = false, .gil = true}));
  m.def("conv_fprop_packed",
        named({"x", "weight", "original", "packed", "bias", "relu", "pool", "y", "mask", "workspace", "context"},
              [](const Tensor& x, const Tensor& weight, const Tensor& original, const Tensor& packed,
                 const Tensor* bias, bool relu, bool pool, const Tensor& y, const Tensor* mask, const Tensor& workspace,
                 const Context& context) {
                return conv_fprop_packed(x, weight, original, python::workspace_of(packed), bias, {relu, pool}, y, mask,
                                         python::workspace_of(workspace), context);
              }));
}

void bind_linear(py::module_& m) {
  m.def("linear_fprop_workspace",
        named({"x", "weight", "bias", "y", "context"},
              [](const Tensor& x, const Tensor& weight, const Tensor*, const Tensor&, const Context& context) {
                return linear_fprop_workspace(x, weight, context);
              },
              {.memory = false}));
  m.def("linear_fprop", named({"x", "weight", "bias", "y", "workspace", "context"},
                              [](const Tensor& x, const Tensor& weight, const Tensor* bias, const Tensor& y,
                                 const Tensor& workspace, const Context& context) {
                                linear_fprop(x, weight, bias, y, python::workspace_of(workspace), context);
                              }));
  m.def("linear_dgrad_workspace",
        named({"gy", "weight", "gx", "context"},
              [](const Tensor& gy, const Tensor& weight, const Tensor&, const Context& context) {
                return linear_dgrad_workspace(gy, weight, context);
              },
              {.memory = false}));
  m.def("linear_dgrad",
        named({"gy", "weight", "gx", "workspace", "context"},
              [](const Tensor& gy, const Tensor& weight, const Tensor& gx, const Tensor& workspace,
                 const Context& context) { linear_dgrad(gy, weight, gx, python::workspace_of(workspace), context); }));
  m.def("linear_wgrad_workspace", named({"x", "gy", "gw", "context"},
                                        [](const Tensor& x, const Tensor& gy, const Tensor&, const Context& context) {
                                          return linear_wgrad_workspace(x, gy, context);
                                        },
                                        {.memory = false}));
  m.def("linear_wgrad",
        named({"x", "gy", "gw", "workspace", "context"},
              [](const Tensor& x, const Tensor& gy, const Tensor& gw, const Tensor& workspace, const Context& context) {
                linear_wgrad(x, gy, gw, python::workspace_of(workspace), context);
              }));
}

void bind_engine(py::module_& m) {
  using Outputs = std::vector<std::pair<int64_t, Tensor>>;
  py::class_<Engine>(m, "Engine")
      .def(py::init(named({"bf16", "bf16_weights", "threads", "batch", "size"},
                          [](bool bf16, bool bf16_weights, int threads, int64_t batch, int64_t size) {
                            return std::make_unique<Engine>(EngineOptions{bf16, bf16_weights, threads, batch, size});
                          })))
      .def("add_conv", named({"self", "weight", "bias"},
                             [](Engine& e, const Tensor& weight, const Tensor* bias) { e.add_conv(weight, bias); }))
      .def("add_linear", named({"self", "weight", "bias"},
                               [](Engine& e, const Tensor& weight, const Tensor* bias) { e.add_linear(weight, bias); }))
      .def("add_quantised_conv", named({"self", "weight", "bias", "unit", "source"},
                                       [](Engine& e, const Tensor& weight, const Tensor* bias, const Tensor& unit,
                                          float source) { e.add_quantised_conv(weight, bias, unit, source); }))
      .def("add_quantised_linear", named({"self", "weight", "bias", "unit", "source"},
                                         [](Engine& e, const Tensor& weight, const Tensor* bias, const Tensor& unit,
                                            float source) { e.add_quantised_linear(weight, bias, unit, source); }))
      .def("add_relu", named({"self"}, [](Engine& e) { e.add_relu(); }))
      .def("add_max_pool", named({"self", "ceil_mode"}, [](Engine& e, bool ceil_mode) { e.add_max_pool(ceil_mode); }))
      .def("add_lrn",
           named({"self", "size", "alpha", "beta", "k"}, [](Engine& e, int64_t size, double alpha, double beta,
                                                            double k) { e.add_lrn({size, alpha, beta, k}); }))
      .def("add_flatten", named({"self", "size"}, [](Engine& e, int64_t size) { e.add_flatten(size); }))
      .def("add_windows", named({"self", "size"}, [](Engine& e, int64_t size) { e.add_windows(size); }))
      .def("add_row_mean", named({"self"}, [](Engine& e) { e.add_row_mean(); }))
      .def("layers", named({"self"}, [](const Engine& e) { return e.layers(); }))
      .def("output_shape", named({"self", "layer", "n", "c", "h", "w"},
                                 [](const Engine& e, int64_t layer, int64_t n, int64_t c, int64_t h, int64_t w) {
                                   return e.output_shape(layer, n, c, h, w);
                                 }))
      .def("run", named({"self", "x", "outputs", "threads"}, [](Engine& e, const Tensor& x, const Outputs& outputs,
                                                                int threads) { e.run(x, outputs, {threads}); }))
      .def("workspace", named({"self", "layer", "n", "c", "h", "w", "threads"},
                              [](const Engine& e, int64_t layer, int64_t n, int64_t c, int64_t h, int64_t w,
                                 int threads) { return e.workspace(layer, n, c, h, w, {threads}); }))
      .def("bytes", named({"self"}, [](const Engine& e) { return e.bytes(); }))
      .def("algorithms", named({"self"}, [](const Engine& e) { return e.algorithms(); }));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled core of vggfast. Use vggfast.ops; this module takes addresses on trust.";
  python::bind_tensors(m);
  m.def("build_info", named({}, [] { return build_info(); }));
  m.def("cpu_isas", named({}, [] { return cpu_isas(); }));
  m.def("cpu_isa", named({}, [] { return cpu_isa(); }));
  m.def("set_cpu_isa", named({"isa"}, [](const std::string& name) { set_cpu_isa(name); }));
  m.def("amx_support", named({}, [] { return amx_support(); }));
  m.def("tile_counts", named({}, [] {
          const TileCounts counts = tile_counts();
          return std::make_tuple(counts.products, counts.stores,
                                 std::vector<int64_t>(std::begin(counts.loads), std::end(counts.loads)));
        }));
  m.def("openmp_runtime", named({}, [] { return openmp_runtime(); }));
  py::class_<CachedBuffer>(m, "CachedBuffer", py::buffer_protocol())
      .def(py::init(named({"bytes"}, [](size_t bytes) { return std::make_unique<CachedBuffer>(bytes); })))
      .def_buffer([](CachedBuffer& b) { return py::buffer_info(static_cast<uint8_t*>(b.data()), b.bytes()); });
  m.def("held_bytes", named({}, [] { return CachedBuffer::held(); }));
  m.def("release_unused", named({}, [] { CachedBuffer::release_unused(); }));
  bind_algorithms(m);
  py::module_ cpu = m.def_submodule("cpu");
  python::bind_ops(cpu, cpu_ops);
  python::bind_batch_norm(cpu);
  python::bind_crops(cpu);
  bind_packed_conv(cpu);
  bind_linear(cpu);
#ifdef VGGFAST_WITH_CUDA
  python::bind_cuda(m.def_submodule("cuda"));
#endif
  bind_engine(m);
  python::bind_plan(m.def_submodule("plan"));
}
