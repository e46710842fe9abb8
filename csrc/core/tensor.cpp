#include "vggfast/tensor.h"

#include "vggfast/error.h"

namespace vggfast {

std::string describe(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

int Threads::refuse(int count) { fail("threads must be at most ", most, ", got ", count); }

void check_extents(const std::vector<int64_t>& shape, const char* name) {
  constexpr int64_t most = int64_t{1} << 56;
  int64_t values = 1;
  for (const int64_t extent : shape) {
    VGGFAST_CHECK(extent >= 0, name, " must have extents of at least 0, got ", describe(shape));
    VGGFAST_CHECK(extent <= most / values, name, " must be of fewer than 2^56 values, got ", describe(shape));
    values *= std::max<int64_t>(extent, 1);
  }
}

void check_nhwc(const Tensor& t, const char* name) {
  VGGFAST_CHECK(t.dim() == 4, name, " must have 4 axes (N, C, H, W), got shape ", describe(t.shape));
  const int64_t expected[4] = {t.size(1) * t.size(2) * t.size(3), 1, t.size(1) * t.size(3), t.size(1)};
  for (int axis = 0; axis < 4; ++axis) {
    VGGFAST_CHECK(t.size(axis) >= 0, name, " must have extents of at least 0, got shape ", describe(t.shape));
    VGGFAST_CHECK(t.size(axis) <= 1 || t.numel() == 0 || t.stride(axis) == expected[axis], name,
                  " must be dense NHWC (channels_last), got strides ", describe(t.strides), " for shape ",
                  describe(t.shape));
  }
}

void check_like(const Tensor& t, const char* name, const std::vector<int64_t>& shape, DType dtype, Device device) {
  VGGFAST_CHECK(t.shape == shape, name, " must have shape ", describe(shape), ", got ", describe(t.shape));
  VGGFAST_CHECK(t.dtype == dtype, name, " must be ", name_of(dtype), ", got ", name_of(t.dtype));
  VGGFAST_CHECK(t.device == device, name, " must be on ", name_of(device), ", got ", name_of(t.device));
}

}  // namespace vggfast
