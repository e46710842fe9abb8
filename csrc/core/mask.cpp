#include "vggfast/mask.h"

#include "vggfast/error.h"
#include "vggfast/pool.h"

namespace vggfast {

void check_mask(const Tensor& mask, Epilogue e, const Tensor& y, const char* name) {
  const int64_t planes = mask_planes(e);
  VGGFAST_CHECK(planes > 0, name, " is given, but there is neither ReLU nor pool to remember");
  check_like(mask, name, {y.size(0), planes, y.size(2), y.size(3), (y.size(1) + 7) / 8}, DType::u8, y.device);
  int64_t stride = 1;
  for (int axis = 4; axis >= 0; --axis) {
    VGGFAST_CHECK(mask.size(axis) <= 1 || mask.stride(axis) == stride, name, " is not contiguous");
    stride *= mask.size(axis);
  }
}

void check_pool_outputs(const Tensor& z, const Tensor& y, const Tensor* mask, Epilogue e) {
  check_nhwc(z, "z");
  check_nhwc(y, "y");
  std::vector<int64_t> shape = z.shape;
  for (size_t axis = 2; e.pool && axis < 4; ++axis) {
    shape[axis] = pooled(z.shape[axis], y.shape[axis] == pooled(z.shape[axis], true));
  }
  check_like(y, "y", shape, z.dtype, z.device);
  if (mask) check_mask(*mask, e, y);
}

}  // namespace vggfast
