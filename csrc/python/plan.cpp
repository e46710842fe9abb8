// The planner for back ends whose steps Python runs.
#include "plan/plan.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <array>

#include "python/define.h"
#include "python/ops.h"
#include "vggfast/error.h"

namespace py = pybind11;

namespace vggfast::python {
namespace {

using plan::Activation;
using plan::Layer;
using plan::Plan;
using plan::Shape;
using plan::Step;

plan::Kind kind_named(const std::string& name) {
  static const std::pair<const char*, plan::Kind> kinds[] = {
      {"conv", plan::Kind::conv},     {"relu", plan::Kind::relu},        {"max_pool", plan::Kind::max_pool},
      {"lrn", plan::Kind::lrn},       {"flatten", plan::Kind::flatten},  {"windows", plan::Kind::windows},
      {"linear", plan::Kind::linear}, {"row_mean", plan::Kind::row_mean}};
  for (const auto& [known, kind] : kinds) {
    if (name == known) return kind;
  }
  fail("kind must be that of a layer, got ", name);
}

/// (N, C, H, W), or (rows, values).
py::tuple tuple_of(const Shape& s) {
  if (s.rows) return py::make_tuple(s.n, s.c);
  return py::make_tuple(s.n, s.c, s.h, s.w);
}
Shape images_of(const std::array<int64_t, 4>& nchw) {
  check_extents({nchw.begin(), nchw.end()}, "images");
  return {nchw[0], nchw[2], nchw[3], nchw[1]};
}

void bind_classes(py::module_& m) {
  py::class_<Layer>(m, "Layer")
      .def(py::init(named({"kind",
                           {"cin", py::int_(0)},
                           {"channels", py::int_(0)},
                           {"size", py::int_(0)},
                           {"ceil_mode", py::bool_(false)},
                           {"fuses_pool", py::bool_(true)},
                           {"nhwc_rows", py::bool_(false)},
                           {"leaves", py::none()}},
                          [](const std::string& kind, int64_t cin, int64_t channels, int64_t size, bool ceil_mode,
                             bool fuses_pool, bool nhwc_rows, const std::optional<std::string>& leaves) {
                            Layer layer{kind_named(kind), cin, channels, size, ceil_mode, fuses_pool, nhwc_rows};
                            if (leaves) layer.leaves = dtype_named(*leaves);
                            return layer;
                          })));
  py::class_<Activation>(m, "Activation")
      .def_property_readonly("shape", [](const Activation& a) { return tuple_of(a.shape); })
      .def_property_readonly("dtype", [](const Activation& a) { return name_of(a.dtype); })
      .def_readonly("offset", &Activation::offset)
      .def_readonly("output", &Activation::output);
  py::class_<Step>(m, "Step")
      .def_readonly("first", &Step::first)
      .def_readonly("last", &Step::last)
      .def_readonly("relu", &Step::relu)
      .def_readonly("pool", &Step::pool)
      .def_readonly("block1", &Step::block1)
      .def_readonly("in_place", &Step::in_place)
      .def_readonly("scratch_bytes", &Step::scratch_bytes)
      .def_readonly("scratch_offset", &Step::scratch_offset);
  py::class_<Plan>(m, "Plan")
      .def_readonly("steps", &Plan::steps)
      .def_readonly("activations", &Plan::activations)
      .def_readonly("bytes", &Plan::bytes);
}

}  // namespace

void bind_plan(py::module_ m) {
  bind_classes(m);
  m.def("fuse", named({"layers", "outputs", {"block1", py::bool_(false)}},
                      [](const std::vector<Layer>& layers, const std::vector<int64_t>& outputs, bool block1) {
                        return plan::fuse(layers, outputs, block1);
                      }));
  m.def("output_shapes", named({"layers", "images", "outputs"},
                               [](const std::vector<Layer>& layers, const std::array<int64_t, 4>& images,
                                  const std::vector<int64_t>& outputs) {
                                 py::list shapes;
                                 for (const Shape& shape : plan::output_shapes(layers, images_of(images), outputs)) {
                                   shapes.append(tuple_of(shape));
                                 }
                                 return shapes;
                               },
                               {.gil = true}));
  // A plan whose steps each take the whole batch, and whose outputs stay in the arena.
  m.def("make_plan",
        named({"layers", "images", "outputs", "dtype", "alignment", "block1", "scratch"},
              [](const std::vector<Layer>& layers, const std::array<int64_t, 4>& images,
                 const std::vector<int64_t>& outputs, const std::string& dtype, size_t alignment, bool block1,
                 const std::function<size_t(const Step&, const Activation&, const Activation&)>& scratch) {
                const DType made = dtype_named(dtype);
                VGGFAST_CHECK(alignment >= 1, "alignment must be at least 1, got 0");
                return plan::make_plan(
                    layers, images_of(images), outputs,
                    {.map = made,
                     .rows = made,
                     .alignment = alignment,
                     .keeps_outputs = true,
                     .block1 = block1,
                     .scratch = [&](const Step& step, const Activation& source, const Activation& target, int64_t) {
                       return scratch(step, source, target);
                     }});
              },
              {.gil = true}));
}

}  // namespace vggfast::python
