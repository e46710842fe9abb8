#include "cpu/algorithms/quantise.h"

#include <algorithm>
#include <cstring>

#include "cpu/algorithms/tiles.h"
#include "cpu/int8_kernels.h"
#include "cpu/parallel.h"

namespace vggfast::cpu {
namespace {

constexpr int64_t grain_values = 1 << 14;  // that make a piece of work worth a thread

void zero(uint8_t* to, int64_t bytes) { std::memset(to, 0, static_cast<size_t>(bytes)); }

/// Line `line` of the n * h of a map in blocks, and what it has of the ring.
void quantise_line(const float* from, int64_t line, const Extent& e, float inverse, const BlockedMap<uint8_t>& to) {
  constexpr int64_t channels = BlockedMap<uint8_t>::channels;
  const int64_t n = line / e.h, y = line % e.h;
  for (int64_t c = 0; c < e.c; c += channels, from += channels) {
    uint8_t* const row = to.data + n * to.image + c / channels * to.plane + (y + 1) * to.row;
    if (y == 0) zero(row - to.row, to.row);
    if (y + 1 == e.h) zero(row + to.row, to.row);
    zero(row, channels);
    zero(row + to.row - channels, channels);
    const bool whole = e.c == channels;  // then the line is one run here and there
    const int64_t count = whole ? e.w * channels : std::min(e.c - c, channels);
    for (int64_t x = 0; x < (whole ? 1 : e.w); ++x) {
      kernels().int8->quantise(from + x * e.c, count, inverse, row + (x + 1) * channels);
    }
  }
}

}  // namespace

void quantise_lines(const float* from, int64_t begin, int64_t end, const Extent& e, float inverse, uint8_t* to,
                    bool blocked) {
  const int64_t values = e.w * e.c;
  if (!blocked) return kernels().int8->quantise(from, (end - begin) * values, inverse, to + begin * values);
  for (int64_t line = begin; line < end; ++line, from += values) {
    quantise_line(from, line, e, inverse, blocked_map<uint8_t>(to, e));
  }
}

void quantise(const float* from, const Extent& e, float inverse, uint8_t* to, bool blocked, int threads) {
  const int64_t values = e.w * e.c;
  parallel_ranges(e.n * e.h, 1 + grain_values / (1 + values), threads, [&](int64_t begin, int64_t end, int) {
    quantise_lines(from + begin * values, begin, end, e, inverse, to, blocked);
  });
}

}  // namespace vggfast::cpu
