// Binding crop_images: its pictures come as objects with Python's buffer protocol, so that arrays that may not be
// written, as those of mapped files, are taken as they are.
#include <pybind11/stl.h>

#include "python/define.h"
#include "python/ops.h"
#include "vggfast/error.h"

namespace py = pybind11;

namespace vggfast::python {
namespace {

Picture picture_of(const py::buffer_info& info, size_t n) {
  VGGFAST_CHECK(info.item_type_is_equivalent_to<uint8_t>() && info.ndim == 3 && info.shape[2] == 3, "pictures[", n,
                "] must be uint8 of shape (H, W, 3), got buffer format ", info.format, " and shape ",
                describe({info.shape.begin(), info.shape.end()}));
  const bool dense = info.size == 0 || (info.strides[2] == 1 && (info.shape[1] == 1 || info.strides[1] == 3) &&
                                        (info.shape[0] == 1 || info.strides[0] == 3 * info.shape[1]));
  VGGFAST_CHECK(dense, "pictures[", n, "] is not contiguous");
  return {static_cast<const uint8_t*>(info.ptr), info.shape[0], info.shape[1]};
}

}  // namespace

void bind_crops(py::module_& m) {
  m.def("crop_images", named({"pictures", "sizes", "corners", "flips", "shifts", "mean", "std", "y", "context"},
                             [](const std::vector<py::buffer>& pictures, const Tensor* sizes, const Tensor* corners,
                                const Tensor* flips, const Tensor* shifts, std::array<float, 3> mean,
                                std::array<float, 3> std, const Tensor& y, const Context& context) {
                               std::vector<py::buffer_info> held;
                               std::vector<Picture> views;
                               for (const py::buffer& picture : pictures) {
                                 held.push_back(picture.request());
                                 views.push_back(picture_of(held.back(), held.size() - 1));
                               }
                               const Normalisation by{{mean[0], mean[1], mean[2]}, {std[0], std[1], std[2]}};
                               const py::gil_scoped_release no_gil;
                               crop_images(views, sizes, {corners, flips, shifts}, by, y, context);
                             },
                             {.gil = true}));
}

}  // namespace vggfast::python
