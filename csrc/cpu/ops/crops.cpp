// Crops of pictures of differing sizes, on the CPU: checks, the filters' weights, a picture to a task. Kernel:
// cpu/kernels/crop.h.
#include <algorithm>
#include <cmath>

#include "core/checks.h"
#include "cpu/kernel_table.h"
#include "cpu/parallel.h"
#include "vggfast/images.h"

namespace vggfast {
namespace {

using cpu::Bf16;
using cpu::CropArgs;
using cpu::Taps;

/// Where a crop lies: rows and columns of the rescaled picture.
struct Geometry {
  int64_t height, width, top, left;
};

Geometry geometry_of(const Picture& picture, const Tensor* sizes, const Tensor* corners, int64_t n) {
  Geometry g{picture.height, picture.width, 0, 0};
  if (sizes) g.height = sizes->as<int32_t>()[2 * n], g.width = sizes->as<int32_t>()[2 * n + 1];
  if (corners) g.top = corners->as<int32_t>()[2 * n], g.left = corners->as<int32_t>()[2 * n + 1];
  return g;
}

/// One axis of a crop: the taps of `count` outputs from `first` on, of an axis of `in` inputs rescaled to `out`.
class Axis {
 public:
  /// With `as_it_is`, outputs are inputs, and there are no weights.
  void set(int64_t in, int64_t out, int64_t first, int64_t count, bool as_it_is) {
    const double scale = static_cast<double>(in) / static_cast<double>(out), reach = std::max(scale, 1.0);
    taps_.most = as_it_is ? 1 : static_cast<int64_t>(std::ceil(reach)) * 2 + 1;
    first_.resize(static_cast<size_t>(count));
    counts_.assign(static_cast<size_t>(count), 1);
    weights_.resize(as_it_is ? 0 : static_cast<size_t>(count * taps_.most));
    for (int64_t i = 0; i < count; ++i) {
      first_[static_cast<size_t>(i)] = static_cast<int32_t>(first + i);
      if (!as_it_is) weigh(in, (static_cast<double>(first + i) + 0.5) * scale, reach, static_cast<size_t>(i));
    }
    taps_.first = first_.data();
    taps_.count = counts_.data();
    taps_.weights = as_it_is ? nullptr : weights_.data();
  }
  const Taps& taps() const { return taps_; }
  /// The first input read, and the one behind the last.
  int64_t begin() const { return first_.front(); }
  int64_t end() const { return first_.back() + counts_.back(); }

 private:
  /// Output i lies at `centre` of the inputs; the filter falls to zero at `reach` from there.
  void weigh(int64_t in, double centre, double reach, size_t i) {
    const auto begin = static_cast<int64_t>(std::max(centre - reach + 0.5, 0.0));
    const int64_t end = std::min(static_cast<int64_t>(centre + reach + 0.5), in);
    float* weights = weights_.data() + i * static_cast<size_t>(taps_.most);
    const auto weight = [&](int64_t at) {
      return std::max(1.0 - std::fabs((static_cast<double>(at) + 0.5 - centre) / reach), 0.0);
    };
    double sum = 0;
    for (int64_t at = begin; at < end; ++at) sum += weight(at);
    for (int64_t at = begin; at < end; ++at) weights[at - begin] = static_cast<float>(weight(at) / sum);
    first_[i] = static_cast<int32_t>(begin);
    counts_[i] = static_cast<int32_t>(end - begin);
  }

  Taps taps_{};
  std::vector<int32_t> first_, counts_;
  std::vector<float> weights_;
};

void check_geometry(const Picture& picture, const Geometry& g, int64_t n, int64_t rows, int64_t columns) {
  constexpr int64_t most = 1 << 24;  // so that positions are exact, and fit 32 bits
  VGGFAST_CHECK(picture.height >= 1 && picture.width >= 1 && picture.height <= most && picture.width <= most,
                "pictures[", n, "] must have sides of 1 to ", most, " pixels, got ", picture.height, " x ",
                picture.width);
  VGGFAST_CHECK(g.height >= 1 && g.width >= 1 && g.height <= most && g.width <= most, "sizes[", n,
                "] must be sides of 1 to ", most, " pixels, got ", g.height, " x ", g.width);
  VGGFAST_CHECK(g.top >= 0 && g.left >= 0 && g.top + rows <= g.height && g.left + columns <= g.width, "corners[", n,
                "] must put the crop of ", rows, " x ", columns, " pixels within the picture of ", g.height, " x ",
                g.width, ", got (", g.top, ", ", g.left, ")");
}

void check_crop_images(const std::vector<Picture>& pictures, const Tensor* sizes, const Crops& crops, const Tensor& y) {
  check_nhwc(y, "y");
  const auto n = static_cast<int64_t>(pictures.size());
  VGGFAST_CHECK(y.size(0) == n && y.size(1) == 3, "y must have shape (", n, ", 3, S, T), got ", describe(y.shape));
  VGGFAST_CHECK(y.device == Device::cpu, "y must be on cpu, got ", name_of(y.device));
  VGGFAST_CHECK(y.dtype == DType::f32 || y.dtype == DType::bf16, "y must be float32 or bfloat16, got ",
                name_of(y.dtype));
  const auto check_optional = [&](const Tensor* t, const char* name, const std::vector<int64_t>& shape, DType dtype) {
    if (!t) return;
    check_like(*t, name, shape, dtype, y.device);
    check_contiguous(*t, name);
  };
  check_optional(sizes, "sizes", {n, 2}, DType::i32);
  check_optional(crops.corners, "corners", {n, 2}, DType::i32);
  check_optional(crops.flips, "flips", {n}, DType::u8);
  check_optional(crops.shifts, "shifts", {n, 3}, DType::f32);
  for (int64_t i = 0; i < n; ++i) {
    const Picture& picture = pictures[static_cast<size_t>(i)];
    check_geometry(picture, geometry_of(picture, sizes, crops.corners, i), i, y.size(2), y.size(3));
  }
}

/// One picture's crop into its rows of y.
template <class T>
void crop(const Picture& picture, const Geometry& g, CropArgs args, int64_t rows, T* y) {
  Axis down, across;
  const bool as_it_is = g.height == picture.height && g.width == picture.width;
  down.set(picture.height, g.height, g.top, rows, as_it_is);
  across.set(picture.width, g.width, g.left, args.columns, as_it_is);
  args.down = down.taps();
  args.across = across.taps();
  args.column_begin = across.begin();
  args.column_end = across.end();
  std::vector<float> scratch(static_cast<size_t>(3 * (args.columns + args.column_end - args.column_begin) + 8));
  cpu::kernels().crop_rows<T>()(args, 0, rows, y, scratch.data());
}

template <class T>
void crop_all(const std::vector<Picture>& pictures, const Tensor* sizes, const Crops& crops,
              const Normalisation& normalisation, const Tensor& y, int threads) {
  const int64_t rows = y.size(2), columns = y.size(3);
  const bool stream = cpu::streams(y.as<T>(), y.numel(), 3 * columns);
  cpu::parallel_for(y.size(0), threads, [&](int64_t n, int) {
    const Picture& picture = pictures[static_cast<size_t>(n)];
    CropArgs args{.pixels = picture.pixels,
                  .width = picture.width,
                  .columns = columns,
                  .mirrored = crops.flips && crops.flips->as<uint8_t>()[n] != 0,
                  .stream = stream};
    for (int64_t c = 0; c < 3; ++c) {
      const float shift = crops.shifts ? crops.shifts->as<float>()[3 * n + c] : 0.0f;
      args.scale[c] = 1 / normalisation.std[c];
      args.offset[c] = (shift - normalisation.mean[c]) / normalisation.std[c];
    }
    crop<T>(picture, geometry_of(picture, sizes, crops.corners, n), args, rows, y.as<T>() + n * rows * columns * 3);
  });
}

}  // namespace

void crop_images(const std::vector<Picture>& pictures, const Tensor* sizes, const Crops& crops,
                 const Normalisation& normalisation, const Tensor& y, Context context) {
  check_crop_images(pictures, sizes, crops, y);
  if (y.numel() == 0) return;
  if (y.dtype == DType::f32) {
    crop_all<float>(pictures, sizes, crops, normalisation, y, context.threads);
  } else {
    crop_all<Bf16>(pictures, sizes, crops, normalisation, y, context.threads);
  }
}

}  // namespace vggfast
