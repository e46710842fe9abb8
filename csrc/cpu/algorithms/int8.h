// One layer of 8 bits, a convolution or a linear layer, on the CPU: sizes, packing, and how threads divide the work.
// Kernels: cpu/kernels/int8.h, on vectors; cpu/kernels/tile_int8.h, on tiles.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>

#include "cpu/int8_kernels.h"

namespace vggfast::cpu {

struct Int8Shape {
  Extent in;  // as expected: calls may have others, of as many channels
  int64_t cout;
  int64_t kernel = 1;
  bool rows = false;  // a linear layer, else a convolution
};

class Int8Layer {
 public:
  /// Inputs of an output, kernel * kernel * cin, whose sum cannot leave int32.
  static constexpr int64_t most_terms = (int64_t{1} << 31) / (255 * 128);

  virtual ~Int8Layer() = default;

  virtual const char* name() const = 0;
  /// Whether it is a convolution whose input lies in blocks, and whose output may (cpu/tile_kernels.h).
  virtual bool takes_blocks() const = 0;
  /// Of the weights with unit and bias.
  virtual size_t packed_bytes() const = 0;
  /// `unit`: positive, of each output channel; `bias` may be null. Both dense.
  virtual void pack(const WeightView<int8_t>& weight, const float* unit, const float* bias, void* packed,
                    int threads) const = 0;

  virtual size_t conv_workspace(const Extent& in, bool pool, int threads) const = 0;
  virtual void conv(const uint8_t* x, const Extent& in, const void* packed, const Int8Output& out, void* workspace,
                    int threads) const = 0;

  /// Of an algorithm for linear layers.
  virtual size_t linear_workspace(int64_t rows, int threads) const;
  /// x: (rows, cin).
  virtual void linear(const uint8_t* x, int64_t rows, const void* packed, const Int8Output& out, void* workspace,
                      int threads) const;

 protected:
  /// Packs unit and bias, each filled up with zeros to `padded` values.
  static void pack_epilogue(const float* unit, const float* bias, int64_t cout, int64_t padded, float* to) {
    std::fill_n(to, 2 * padded, 0.0f);
    std::copy_n(unit, cout, to);
    if (bias) std::copy_n(bias, cout, to + padded);
  }
};

/// By the instruction set in use, and what is faster there of the algorithms that sum these weights exactly.
std::unique_ptr<const Int8Layer> make_int8_layer(const Int8Shape& shape, const WeightView<int8_t>& weight);
/// By direct sums on vectors.
std::unique_ptr<const Int8Layer> make_direct_int8_layer(const Int8Shape& shape);
std::unique_ptr<const Int8Layer> make_tile_int8_layer(const Int8Shape& shape);
/// For a 3x3 convolution whose weights int8_winograd_is_exact, by F(4 x 4, 3 x 3).
std::unique_ptr<const Int8Layer> make_winograd_int8_layer(const Int8Shape& shape);
/// Whether no sum of inputs by these weights can leave +-2^25.
bool int8_winograd_is_exact(const WeightView<int8_t>& weight);

}  // namespace vggfast::cpu
