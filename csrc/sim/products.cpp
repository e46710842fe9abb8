// Products of 16-bit values and of TF32 are added exactly and rounded once. Of 8-bit values, Hopper's wgmma was seen to
// keep less (DeepSeek-V3's report, section 3.5.2; github.com/microsoft/MMA-Sim, which says that it agrees with hardware
// to the bit): the k products of an instruction and the sum so far are aligned to the greatest exponent among them,
// each is cut off 13 bits below it, and what they add up to is cut off after 13 bits of fraction.
#include "sim/products.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <utility>

namespace vggfast::sim {
namespace {

constexpr int kept_bits = 13, none = -10000;  // none: the exponent of 0, to which nothing is aligned

double power_of_2(int exponent) { return std::bit_cast<double>(uint64_t(1023 + exponent) << 52); }

/// Towards zero. Of what is not finite no answer is used.
int whole(double value) { return static_cast<int>(std::fabs(value) < 1 << 16 ? value : 0); }

/// Of 1 <= |value| / 2^exponent < 2; subnormal values have `least`.
int exponent_of(float value, int least) {
  const int exponent = static_cast<int>(std::bit_cast<uint32_t>(value) >> 23 & 255) - 127;
  return value == 0 ? none : std::max(exponent, least);
}

std::vector<int> exponents_of(const std::vector<float>& values, Narrow type) {
  const int least = type == Narrow::e4m3 ? -6 : -14;
  std::vector<int> exponents(values.size());
  std::transform(values.begin(), values.end(), exponents.begin(), [&](float v) { return exponent_of(v, least); });
  return exponents;
}

}  // namespace

Products::Products(Narrow type, std::vector<float> a, std::vector<float> b, unsigned k, bool negative)
    : a_(std::move(a)),
      b_(std::move(b)),
      k_(k),
      n_(static_cast<unsigned>(b_.size()) / k),
      is_short_(type == Narrow::e4m3 || type == Narrow::e5m2),
      sign_(negative ? -1 : 1) {
  if (!is_short_) return;
  a_exponents_ = exponents_of(a_, type);
  b_exponents_ = exponents_of(b_, type);
}

void Products::add(unsigned row, unsigned column, float (&d)[at_a_time]) const {
  const float* const a = &a_[row * k_];
  double sums[at_a_time] = {};
  for (unsigned i = 0; i < k_; ++i) {
    const double left = a[i];
    for (unsigned j = 0; j < at_a_time; ++j) sums[j] += left * b_[i * n_ + column + j];
  }
  float short_sums[at_a_time];
  if (is_short_) add_short(row, column, d, short_sums);
  for (unsigned j = 0; j < at_a_time; ++j) {
    const double exact = d[j] + sign_ * sums[j];
    d[j] = is_short_ && std::isfinite(exact) ? short_sums[j] : static_cast<float>(exact);
  }
}

void Products::add_short(unsigned row, unsigned column, const float (&d)[at_a_time], float (&sums)[at_a_time]) const {
  const float *const a = &a_[row * k_], *const b = &b_[column];
  const int *const a_exponents = &a_exponents_[row * k_], *const b_exponents = &b_exponents_[column];
  int greatest[at_a_time], products[at_a_time] = {};
  for (unsigned j = 0; j < at_a_time; ++j) greatest[j] = exponent_of(d[j], -126);
  for (unsigned i = 0; i < k_; ++i) {
    for (unsigned j = 0; j < at_a_time; ++j) {
      greatest[j] = std::max(greatest[j], a_exponents[i] + b_exponents[i * n_ + j]);
    }
  }
  double scale[at_a_time];
  for (unsigned j = 0; j < at_a_time; ++j) scale[j] = power_of_2(kept_bits - std::max(greatest[j], -126));
  for (unsigned i = 0; i < k_; ++i) {
    // Under 4 * 2^greatest, a product is a whole number of at most 15 bits once it is cut off.
    for (unsigned j = 0; j < at_a_time; ++j) products[j] += whole(double(a[i]) * b[i * n_ + j] * scale[j]);
  }
  for (unsigned j = 0; j < at_a_time; ++j) {
    const int sum = whole(d[j] * scale[j]) + (sign_ < 0 ? -products[j] : products[j]);
    constexpr uint32_t beyond = (1 << (23 - kept_bits)) - 1;
    sums[j] = std::bit_cast<float>(std::bit_cast<uint32_t>(static_cast<float>(sum / scale[j])) & ~beyond);
  }
}

}  // namespace vggfast::sim
