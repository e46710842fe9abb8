// The pybind11 module _sim, for tests: the CUDA back end's ops on the simulated GPU. Tensors are CPU tensors that say
// "cuda"; a kernel may touch those of its call and nothing else.
#include "sim/sim.h"

#include <pybind11/stl.h>

#include "python/ops.h"

namespace py = pybind11;
using namespace vggfast;

namespace {

std::shared_ptr<void> announce(const Tensor& t) {
  if (t.numel() == 0) return nullptr;
  int64_t last = 0;
  for (int axis = 0; axis < static_cast<int>(t.dim()); ++axis) last += (t.size(axis) - 1) * t.stride(axis);
  return std::make_shared<sim::Global>(t.data, static_cast<size_t>(last + 1) * size_of(t.dtype));
}

py::dict counters() {
  py::dict all;
  for (const auto& [kernel, c] : sim::counters()) {
    all[py::str(kernel)] =
        py::dict(py::arg("launches") = c.launches, py::arg("blocks") = c.blocks, py::arg("threads") = c.threads,
                 py::arg("global_read") = c.global_read, py::arg("global_written") = c.global_written,
                 py::arg("global_distinct") = c.global_distinct, py::arg("shared_read") = c.shared_read,
                 py::arg("shared_written") = c.shared_written, py::arg("multiply_adds") = c.multiply_adds,
                 py::arg("barriers") = c.barriers, py::arg("launching") = c.launching);
  }
  return all;
}

}  // namespace

PYBIND11_MODULE(_sim, m) {
  m.doc() = "The CUDA kernels on a simulated GPU.";
  py::register_exception<sim::Fault>(m, "Fault", PyExc_RuntimeError);
  python::bind_tensors(m, announce);
  python::bind_cuda(m.def_submodule("cuda"));
  m.def("counters", &counters, "What each kernel asked for since clear_counters().");
  m.def("clear_counters", [] { sim::counters().clear(); });
  m.def("synchronize", &sim::synchronize, "All launches so far have ended; so has what torch did on CPU tensors.");
  m.def("set_seed", [](uint64_t seed) { sim::settings().seed = seed; });
  m.def(
      "set_num_sms", [](int count) { sim::settings().num_sms = count; },
      "How many the GPU has, 132 unless told; blocks that stay compute more tiles where there are few.");
  m.def(
      "set_clusters", [](std::map<int, int> clusters) { sim::settings().clusters = std::move(clusters); },
      "How many clusters of so many blocks run at once: {2: 66, 4: 32, 8: 15} unless told, or fewer on fewer SMs.");
  m.def(
      "set_blocks", [](int64_t blocks) { sim::settings().blocks = blocks; },
      "How many blocks of a launch are run; counters are scaled up to all.");
  m.def(
      "set_late_warp", [](int warp) { sim::settings().late_warp = warp; },
      "Of each block, the warp that runs only when nobody else can; -1: none.");
}
