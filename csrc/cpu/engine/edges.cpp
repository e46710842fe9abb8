#include "cpu/engine/edges.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "cpu/parallel.h"

namespace vggfast::engine {
namespace {

using cpu::Bf16;

float value_of(float x) { return x; }
float value_of(Bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

constexpr int64_t grain = 1 << 14;  // values that make a piece of work worth a thread

}  // namespace

template <class S>
void load_images(const Tensor& x, S* to, int threads) {
  const int64_t c = x.size(1), h = x.size(2), w = x.size(3), row_values = w * c;
  std::vector<float> lines(static_cast<size_t>(row_values) * static_cast<size_t>(threads));
  cpu::parallel_ranges(x.size(0) * h, 1 + grain / (1 + row_values), threads,
                       [&](int64_t begin, int64_t end, int worker) {
                         float* const line = lines.data() + worker * row_values;
                         for (int64_t row = begin; row < end; ++row) {
                           const float* from = x.as<float>() + row / h * x.stride(0) + row % h * x.stride(2);
                           for (int64_t i = 0; i < c; ++i) {
                             for (int64_t j = 0; j < w; ++j) line[j * c + i] = from[i * x.stride(1) + j * x.stride(3)];
                           }
                           if constexpr (sizeof(S) == sizeof(float)) {
                             std::copy_n(line, row_values, to + row * row_values);
                           } else {
                             cpu::kernels().to_bf16(line, row_values, to + row * row_values);
                           }
                         }
                       });
}

void unblock(const cpu::BlockedMap<Bf16>& from, const cpu::Extent& e, float* to, int threads) {
  cpu::parallel_for(e.n * e.h, threads, [&](int64_t row, int) {
    const Bf16* line = from.data + row / e.h * from.image + (row % e.h + 1) * from.row + from.channels;
    for (int64_t x = 0; x < e.w; ++x) {
      for (int64_t block = 0; block < from.blocks; ++block) {
        const int64_t first = block * from.channels, count = std::min(e.c - first, from.channels);
        cpu::kernels().to_float(line + block * from.plane + x * from.channels, count,
                                to + (row * e.w + x) * e.c + first);
      }
    }
  });
}

template <class S>
void flatten(const S* from, const cpu::Extent& in, int64_t size, float* rows, int threads) {
  cpu::parallel_for(in.n * size * size, threads, [&](int64_t task, int) {
    const int64_t n = task / (size * size), i = task / size % size, j = task % size;
    const int64_t y_begin = i * in.h / size, y_end = cpu::ceil_div((i + 1) * in.h, size);
    const int64_t x_begin = j * in.w / size, x_end = cpu::ceil_div((j + 1) * in.w, size);
    const double cells = static_cast<double>((y_end - y_begin) * (x_end - x_begin));
    for (int64_t c = 0; c < in.c; ++c) {
      double sum = 0;
      for (int64_t y = y_begin; y < y_end; ++y) {
        for (int64_t x = x_begin; x < x_end; ++x) sum += value_of(from[((n * in.h + y) * in.w + x) * in.c + c]);
      }
      rows[((n * in.c + c) * size + i) * size + j] = static_cast<float>(sum / cells);
    }
  });
}

template <class S>
void windows(const S* from, const cpu::Extent& in, int64_t size, float* rows, int threads) {
  const int64_t down = in.h - size + 1, across = in.w - size + 1, row_values = in.c * size * size;
  cpu::parallel_for(in.n * down * across, threads, [&](int64_t row, int) {
    const int64_t n = row / (down * across), top = row / across % down, left = row % across;
    for (int64_t c = 0; c < in.c; ++c) {
      for (int64_t place = 0; place < size * size; ++place) {
        const int64_t y = top + place / size, x = left + place % size;
        rows[row * row_values + c * size * size + place] = value_of(from[((n * in.h + y) * in.w + x) * in.c + c]);
      }
    }
  });
}

void row_mean(const float* from, const cpu::Extent& in, int64_t images, float* to) {
  const int64_t places = in.n / images;
  for (int64_t n = 0; n < images; ++n) {
    for (int64_t c = 0; c < in.c; ++c) {
      double sum = 0;
      for (int64_t place = 0; place < places; ++place) sum += from[(n * places + place) * in.c + c];
      to[n * in.c + c] = static_cast<float>(sum / static_cast<double>(places));
    }
  }
}

void relu(const float* from, int64_t count, float* to, int threads) {
  cpu::parallel_ranges(count, grain, threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) to[i] = from[i] <= 0 ? 0 : from[i];
  });
}

template void load_images(const Tensor&, float*, int);
template void load_images(const Tensor&, Bf16*, int);
template void flatten(const float*, const cpu::Extent&, int64_t, float*, int);
template void flatten(const Bf16*, const cpu::Extent&, int64_t, float*, int);
template void windows(const float*, const cpu::Extent&, int64_t, float*, int);
template void windows(const Bf16*, const cpu::Extent&, int64_t, float*, int);

}  // namespace vggfast::engine
