// ldmatrix, stmatrix and mma.sync: fragments as the PTX manual lays them out over the lanes.
#include <cstring>

#include "sim/instructions.h"
#include "sim/numbers.h"
#include "sim/warp.h"

namespace vggfast::sim {
namespace {

struct Rows {
  uint32_t* fragment;
  char* row;
  unsigned matrices;
  bool transposed;
};

/// Element (row, column) of a matrix of 8 x 8 16-bit values, spread over the warp: which lane has it, in which half.
struct Spot {
  unsigned lane, half;
};
Spot spot_of(unsigned row, unsigned column, bool transposed) {
  if (transposed) std::swap(row, column);
  return {row * 4 + column / 2, column % 2};
}

template <class Move>
void for_elements(void* const* operands, Move move) {
  const Rows& first = *static_cast<Rows*>(operands[0]);
  for (unsigned matrix = 0; matrix < first.matrices; ++matrix) {
    for (unsigned row = 0; row < 8; ++row) {
      char* line = static_cast<Rows*>(operands[matrix * 8 + row])->row;
      for (unsigned column = 0; column < 8; ++column) {
        const auto [lane, half] = spot_of(row, column, first.transposed);
        char* to = reinterpret_cast<char*>(static_cast<Rows*>(operands[lane])->fragment + matrix) + half * 2;
        move(to, line + column * 2);
      }
    }
  }
}

void check_row(const void* row, const void* site) {
  if (reinterpret_cast<uintptr_t>(row) % 16)
    fault(site, "a matrix row must begin at a multiple of 16 bytes, got ", row);
}

struct Product {
  Operand type;
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

/// The value of element `i` of a register, of `per` elements.
float element(Operand type, uint32_t reg, unsigned i) {
  switch (type) {
    case Operand::bf16:
      return from_bf16(static_cast<uint16_t>(reg >> (16 * i)));
    case Operand::f16:
      return from_f16(static_cast<uint16_t>(reg >> (16 * i)));
    case Operand::tf32:
      return from_tf32(reg);
  }
  return 0;
}

template <Operand Type>
void multiply(void* const* operands) {
  constexpr unsigned per = Type == Operand::tf32 ? 1 : 2, k = 8 * per;
  float a[16][k], b[k][8];
  for (unsigned lane = 0; lane < 32; ++lane) {
    const Product& p = *static_cast<Product*>(operands[lane]);
    const unsigned group = lane / 4, within = lane % 4;
    for (unsigned i = 0; i < per; ++i) {
      for (unsigned reg = 0; reg < 4; ++reg) {
        a[group + 8 * (reg % 2)][within * per + i + 4 * per * (reg / 2)] = element(Type, p.a[reg], i);
      }
      for (unsigned reg = 0; reg < 2; ++reg) b[within * per + i + 4 * per * reg][group] = element(Type, p.b[reg], i);
    }
  }
  for (unsigned row = 0; row < 16; ++row) {
    double sums[8] = {};
    for (unsigned i = 0; i < k; ++i) {
      for (unsigned column = 0; column < 8; ++column) sums[column] += double(a[row][i]) * b[i][column];
    }
    for (unsigned column = 0; column < 8; ++column) {
      const Product& p = *static_cast<Product*>(operands[row % 8 * 4 + column / 2]);
      float& d = p.d[row / 8 * 2 + column % 2];
      d = static_cast<float>(d + sums[column]);
    }
  }
  machine.counts.multiply_adds += 16 * 8 * k;
}

}  // namespace

void ldmatrix(uint32_t* fragment, unsigned matrices, bool transposed, const void* row) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  Thread& me = self();
  if (me.lane < 8 * matrices) {
    check_row(row, site);
    me.block->shared.read(row, 16, site);
  }
  Rows mine{fragment, static_cast<char*>(const_cast<void*>(row)), matrices, transposed};
  meet("ldmatrix", all_lanes, &mine, site, [](Thread* const*, void* const* operands, uint32_t) {
    for_elements(operands, [](char* reg, const char* memory) { std::memcpy(reg, memory, 2); });
  });
}

void stmatrix(const uint32_t* fragment, unsigned matrices, bool transposed, void* row) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  Thread& me = self();
  if (me.lane < 8 * matrices) {
    check_row(row, site);
    me.block->shared.write(row, 16, site);
  }
  Rows mine{const_cast<uint32_t*>(fragment), static_cast<char*>(row), matrices, transposed};
  meet("stmatrix", all_lanes, &mine, site, [](Thread* const*, void* const* operands, uint32_t) {
    for_elements(operands, [](const char* reg, char* memory) { std::memcpy(memory, reg, 2); });
  });
}

void mma(Operand type, float* d, const uint32_t* a, const uint32_t* b) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  Product mine{type, d, a, b};
  meet("mma", all_lanes, &mine, site, [](Thread* const*, void* const* operands, uint32_t) {
    switch (static_cast<Product*>(operands[0])->type) {
      case Operand::bf16:
        return multiply<Operand::bf16>(operands);
      case Operand::f16:
        return multiply<Operand::f16>(operands);
      case Operand::tf32:
        return multiply<Operand::tf32>(operands);
    }
  });
}

}  // namespace vggfast::sim
