// What a wgmma computes, apart from where its operands and its sums lie.
#pragma once

#include <vector>

#include "sim/hopper.h"

namespace vggfast::sim {

/// A's rows and B's columns as numbers.
class Products {
 public:
  static constexpr unsigned at_a_time = 8;

  /// a: by row, then k; b: by k, then column.
  Products(Narrow type, std::vector<float> a, std::vector<float> b, unsigned k, bool negative);

  /// Adds a row of A times columns of B, from `column` on, to d.
  void add(unsigned row, unsigned column, float (&d)[at_a_time]) const;

 private:
  void add_short(unsigned row, unsigned column, const float (&d)[at_a_time], float (&sums)[at_a_time]) const;

  std::vector<float> a_, b_;
  std::vector<int> a_exponents_, b_exponents_;  // of 8-bit values alone
  const unsigned k_, n_;
  const bool is_short_;  // whether values have 8 bits
  const double sign_;
};

}  // namespace vggfast::sim
