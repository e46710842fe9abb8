#include "core/checks.h"

namespace vggfast {

void check_contiguous(const Tensor& t, const char* name) {
  int64_t stride = 1;
  for (int axis = static_cast<int>(t.dim()) - 1; axis >= 0 && t.numel() > 0; --axis) {
    VGGFAST_CHECK(t.size(axis) == 1 || t.stride(axis) == stride, name, " is not contiguous");
    stride *= t.size(axis);
  }
}

void check_sum_pool(const Tensor& x, const Tensor& y) {
  check_nhwc(x, "x");
  check_like(y, "y", {x.size(0), x.size(1)}, x.dtype, x.device);
  check_contiguous(y, "y");
}

void check_mean_posteriors(const Tensor& maps, int64_t views, const Tensor& scores, const char* scores_name) {
  check_nhwc(maps, "maps");
  VGGFAST_CHECK(views >= 1, "views must be at least 1, got ", views);
  VGGFAST_CHECK(maps.size(0) % views == 0, "maps must have a first axis of ", views,
                " (views) times the number of images, got shape ", describe(maps.shape));
  check_like(scores, scores_name, {maps.size(0) / views, maps.size(1)}, maps.dtype, maps.device);
  check_contiguous(scores, scores_name);
}

void check_lrn(const Tensor& x, LrnParams p, const Tensor& out, const char* out_name) {
  check_nhwc(x, "x");
  check_nhwc(out, out_name);
  check_like(out, out_name, x.shape, x.dtype, x.device);
  VGGFAST_CHECK(p.size >= 1, "size must be at least 1, got ", p.size);
}

void check_prepare_images(const Tensor& images, const Crops& crops, const Tensor& y) {
  check_nhwc(y, "y");
  VGGFAST_CHECK(y.size(1) == 3, "y must have shape (N, 3, S, T), got ", describe(y.shape));
  const int64_t n = y.size(0);
  VGGFAST_CHECK(images.dim() == 4 && images.size(0) == n && images.size(3) == 3, "images must have shape (", n,
                ", H, W, 3), got ", describe(images.shape));
  check_like(images, "images", images.shape, DType::u8, y.device);
  check_contiguous(images, "images");
  VGGFAST_CHECK(y.numel() == 0 || images.numel() > 0, "images must have at least one pixel, got shape ",
                describe(images.shape));
  const auto check_optional = [&](const Tensor* t, const char* name, const std::vector<int64_t>& shape, DType dtype) {
    if (!t) return;
    check_like(*t, name, shape, dtype, y.device);
    check_contiguous(*t, name);
  };
  check_optional(crops.corners, "corners", {n, 2}, DType::i32);
  check_optional(crops.flips, "flips", {n}, DType::u8);
  check_optional(crops.shifts, "shifts", {n, 3}, DType::f32);
}

}  // namespace vggfast
