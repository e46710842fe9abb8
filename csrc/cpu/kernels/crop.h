// One crop of one picture, from uint8 HWC to (rows, columns, 3): resampled by a triangle filter, mirrored, normalised.
// The crop is made row by row. First the rows of the picture that a row reads are summed with their weights, a vector
// of values at a time. Then the columns are summed in four lanes to a pixel, of which the next pixel overwrites the
// fourth. Where the picture is not resampled, its values are converted and normalised, a vector at a time. All of this
// stays in the first cache.
#pragma once

#include "cpu/isa/simd.h"
#include "cpu/kernel_table.h"

namespace vggfast::cpu::VGGFAST_ISA {
namespace {

struct Crop {
  using V = Vec<float>;
  typedef uint8_t Bytes __attribute__((vector_size(VGGFAST_VECTOR_BYTES / 4)));
  typedef float Pixel __attribute__((vector_size(16)));

  static V::Value widen(const uint8_t* p) {
    Bytes bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, V::Mask), V::Value);
  }

  /// Writes `to` (columns, 3): the pixels of `from` from the last to the first. All but the first are copied with a
  /// fourth byte, which the next pixel overwrites.
  static void mirror(const uint8_t* from, int64_t columns, uint8_t* to) {
    for (int64_t c = 0; c < 3; ++c) to[c] = from[3 * (columns - 1) + c];
    for (int64_t t = 1; t < columns; ++t) __builtin_memcpy(to + 3 * t, from + 3 * (columns - 1 - t), 4);
  }

  /// to[i] = from[i] * scale + offset of channel i % 3.
  static void normalise(const uint8_t* from, int64_t values, const CropArgs& a, float* to) {
    typename V::Value scale[3]{}, offset[3]{};
    for (int64_t i = 0; i < 3 * V::lanes; ++i) {
      scale[i / V::lanes][i % V::lanes] = a.scale[i % 3];
      offset[i / V::lanes][i % V::lanes] = a.offset[i % 3];
    }
    int64_t i = 0;
    for (; i + 3 * V::lanes <= values; i += 3 * V::lanes) {
      for (int64_t part = 0; part < 3; ++part) {
        V::store(to + i + part * V::lanes, widen(from + i + part * V::lanes) * scale[part] + offset[part]);
      }
    }
    for (; i < values; ++i) to[i] = (float)from[i] * a.scale[i % 3] + a.offset[i % 3];
  }

  /// Writes `to` (values): the weighted sum of the picture's rows that row `s` of the crop reads.
  static void sum_rows(const CropArgs& a, int64_t s, int64_t values, float* to) {
    const Taps& taps = a.down;
    const float* weights = taps.weights + s * taps.most;
    const uint8_t* first = a.pixels + (taps.first[s] * a.width + a.column_begin) * 3;
    const int64_t count = taps.count[s], pitch = a.width * 3;
    int64_t i = 0;
    for (; i + V::lanes <= values; i += V::lanes) {
      typename V::Value sum = widen(first + i) * V::set1(weights[0]);
      for (int64_t k = 1; k < count; ++k) sum = V::fma(weights[k], widen(first + k * pitch + i), sum);
      V::store(to + i, sum);
    }
    for (; i < values; ++i) {
      float sum = weights[0] * (float)first[i];
      for (int64_t k = 1; k < count; ++k) sum += weights[k] * (float)first[k * pitch + i];
      to[i] = sum;
    }
  }

  /// Writes `to` (columns, 3): the weighted sums along `row`, normalised. Both have a spare value at their end.
  static void sum_columns(const CropArgs& a, const float* row, float* to) {
    const Taps& taps = a.across;
    const Pixel scale = {a.scale[0], a.scale[1], a.scale[2], 0}, offset = {a.offset[0], a.offset[1], a.offset[2], 0};
    for (int64_t t = 0; t < a.columns; ++t) {
      const int64_t column = a.mirrored ? a.columns - 1 - t : t;
      const float* weights = taps.weights + column * taps.most;
      const float* from = row + (taps.first[column] - a.column_begin) * 3;
      Pixel sum{};
      for (int64_t k = 0; k < taps.count[column]; ++k) {
        Pixel pixel;
        __builtin_memcpy(&pixel, from + 3 * k, sizeof pixel);
        sum += weights[k] * pixel;
      }
      sum = sum * scale + offset;
      __builtin_memcpy(to + 3 * t, &sum, sizeof sum);
    }
  }

  /// Makes row `s` of the crop, as floats in `scratch`, and returns it. CropArgs says how large `scratch` is.
  static float* make_row(const CropArgs& a, int64_t s, float* scratch) {
    const int64_t values = 3 * a.columns;
    if (a.across.weights == nullptr) {
      const uint8_t* from = a.pixels + (a.down.first[s] * a.width + a.column_begin) * 3;
      if (a.mirrored) {
        uint8_t* turned = (uint8_t*)(scratch + values + 4);
        mirror(from, a.columns, turned);
        from = turned;
      }
      normalise(from, values, a, scratch);
    } else {
      const int64_t read = 3 * (a.column_end - a.column_begin);
      float* summed = scratch + values + 4;
      sum_rows(a, s, read, summed);
      summed[read] = 0;  // the fourth lane of the last pixel: any number will do, but old memory may hold a NaN
      sum_columns(a, summed, scratch);
    }
    return scratch;
  }
};

/// Writes rows [begin, end) of a crop to y (rows, columns, 3).
template <class T>
void crop_rows(const CropArgs& a, int64_t begin, int64_t end, T* y, float* scratch) {
  using V = Vec<float>;
  const int64_t values = 3 * a.columns;
  for (int64_t s = begin; s < end; ++s) {
    const float* row = Crop::make_row(a, s, scratch);
    T* to = y + s * values;
    int64_t i = 0;
    for (; i + V::lanes <= values; i += V::lanes) {
      if constexpr (sizeof(T) == 4) {
        a.stream ? V::stream(to + i, V::load(row + i)) : V::store(to + i, V::load(row + i));
      } else {
        V::store(to + i, V::load(row + i));
      }
    }
    if (i < values) V::store(to + i, V::load(row + i, values - i), values - i);
  }
  if (a.stream) V::end_stream();
}

}  // namespace
}  // namespace vggfast::cpu::VGGFAST_ISA
