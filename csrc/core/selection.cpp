#include "vggfast/selection.h"

#include "vggfast/error.h"
#include "vggfast/pool.h"

namespace vggfast {

void check_selection(const Tensor& selection, Epilogue e, const Tensor& y) {
  const int64_t planes = selection_planes(e);
  VGGFAST_CHECK(planes > 0, "selection is given, but there is neither ReLU nor pool to remember");
  check_like(selection, "selection", {y.size(0), planes, y.size(2), y.size(3), (y.size(1) + 7) / 8}, DType::u8,
             y.device);
  int64_t stride = 1;
  for (int axis = 4; axis >= 0; --axis) {
    VGGFAST_CHECK(selection.size(axis) <= 1 || selection.stride(axis) == stride, "selection is not contiguous");
    stride *= selection.size(axis);
  }
}

void check_pool_outputs(const Tensor& z, const Tensor& y, const Tensor* selection, Epilogue e) {
  check_nhwc(z, "z");
  check_nhwc(y, "y");
  std::vector<int64_t> shape = z.shape;
  for (size_t axis = 2; e.pool && axis < 4; ++axis) {
    shape[axis] = pooled(z.shape[axis], y.shape[axis] == pooled(z.shape[axis], true));
  }
  check_like(y, "y", shape, z.dtype, z.device);
  if (selection) check_selection(*selection, e, y);
}

}  // namespace vggfast
