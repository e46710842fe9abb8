// Input preparation on the CPU: crop, mirror, shift and normalise, an image to a task.
#include "vggfast/images.h"

#include <algorithm>
#include <array>

#include "core/checks.h"
#include "cpu/ops/dtypes.h"
#include "cpu/parallel.h"

namespace vggfast {
namespace {

/// What becomes of each of a channel's 256 values: dividing so often costs less than once for every pixel.
template <class T>
using Table = std::array<std::array<T, 256>, 3>;

template <class T>
Table<T> make_table(const Normalisation& normalisation, const float* shifts) {
  Table<T> table;
  for (size_t c = 0; c < 3; ++c) {
    const T offset = (shifts ? static_cast<T>(shifts[c]) : T(0)) - static_cast<T>(normalisation.mean[c]);
    for (size_t value = 0; value < 256; ++value) {
      table[c][value] = (static_cast<T>(value) + offset) / static_cast<T>(normalisation.std[c]);
    }
  }
  return table;
}

/// y (columns, 3): pixels `left` on of a row of `width`, from the last to the first where mirrored.
template <class T>
void prepare_row(const uint8_t* row, int64_t width, int64_t left, bool mirrored, const Table<T>& table, int64_t columns,
                 T* y) {
  const bool inside = left >= 0 && left + columns <= width;
  for (int64_t t = 0; t < columns; ++t) {
    const int64_t column = left + (mirrored ? columns - 1 - t : t);
    const uint8_t* pixel = row + 3 * (inside ? column : std::clamp<int64_t>(column, 0, width - 1));
    for (size_t c = 0; c < 3; ++c) y[3 * t + static_cast<int64_t>(c)] = table[c][pixel[c]];
  }
}

}  // namespace

void prepare_images(const Tensor& images, const Crops& crops, const Normalisation& normalisation, const Tensor& y,
                    Context context) {
  check_prepare_images(images, crops, y);
  cpu::for_float(y, "y", [&]<class T>() {
    if (y.numel() == 0) return;
    const int64_t h = images.size(1), w = images.size(2), rows = y.size(2), columns = y.size(3);
    cpu::parallel_for(y.size(0), context.threads, [&](int64_t n, int) {
      const int64_t top = crops.corners ? crops.corners->as<int32_t>()[2 * n] : 0;
      const int64_t left = crops.corners ? crops.corners->as<int32_t>()[2 * n + 1] : 0;
      const bool mirrored = crops.flips && crops.flips->as<uint8_t>()[n] != 0;
      const Table<T> table = make_table<T>(normalisation, crops.shifts ? crops.shifts->as<float>() + 3 * n : nullptr);
      for (int64_t s = 0; s < rows; ++s) {
        const int64_t row = std::clamp<int64_t>(top + s, 0, h - 1);
        prepare_row(images.as<uint8_t>() + (n * h + row) * w * 3, w, left, mirrored, table, columns,
                    y.as<T>() + (n * rows + s) * columns * 3);
      }
    });
  });
}

}  // namespace vggfast
