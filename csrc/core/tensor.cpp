#include "vggfast/tensor.h"

#include "vggfast/error.h"

namespace vggfast {

std::string describe(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

void check_nhwc(const Tensor& t, const char* name) {
  VGGFAST_CHECK(t.dim() == 4, name, " has shape ", describe(t.shape), ": 4 axes (N, C, H, W) are wanted");
  const int64_t wanted[4] = {t.size(1) * t.size(2) * t.size(3), 1, t.size(1) * t.size(3), t.size(1)};
  for (int axis = 0; axis < 4; ++axis) {
    VGGFAST_CHECK(t.size(axis) >= 0, name, " has shape ", describe(t.shape), ": extents are 0 or more");
    VGGFAST_CHECK(t.size(axis) <= 1 || t.numel() == 0 || t.stride(axis) == wanted[axis], name, " has strides ",
                  describe(t.strides), " for shape ", describe(t.shape), ": dense NHWC (channels_last) is wanted");
  }
}

void check_like(const Tensor& t, const char* name, const std::vector<int64_t>& shape, DType dtype, Device device) {
  VGGFAST_CHECK(t.shape == shape, name, " has shape ", describe(t.shape), ": ", describe(shape), " is wanted");
  VGGFAST_CHECK(t.dtype == dtype, name, " is ", name_of(t.dtype), ": ", name_of(dtype), " is wanted");
  VGGFAST_CHECK(t.device == device, name, " is on ", name_of(t.device), ": ", name_of(device), " is wanted");
}

}  // namespace vggfast
