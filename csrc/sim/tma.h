// What TMA's loads and stores share: the rows of a box, and where its 16-byte chunks lie in shared memory.
#pragma once

#include <vector>

#include "sim/machine.h"
#include "sim/tensor_map.h"

namespace vggfast::sim {

/// One innermost row of a box.
struct BoxRow {
  uint32_t linear;       // from the box's start in shared memory, before the swizzle
  const char* global;    // of the part that lies in the tensor
  uint32_t skip, bytes;  // that part within the row
};

struct BoxRows {
  std::vector<BoxRow> rows;
  uint32_t row_bytes;
  unsigned swizzle;
  bool rounded;  // to TF32
  size_t bytes() const { return rows.size() * row_bytes; }
};

BoxRows tiled_rows(const TensorMap& map, const int32_t* coordinates);
BoxRows im2col_rows(const TensorMap& map, const int32_t* coordinates, const uint16_t* offsets, const void* site);

/// The chunk of 16 bytes at `address`, as instructions see shared memory, is where?
inline uint32_t swizzled(uint32_t address, unsigned span) {
  return address ^ (address >> 3 & (span >= 32 ? span - 16 : 0));
}
/// The same of offsets in a block's shared memory.
inline uint32_t swizzled_offset(uint32_t offset, unsigned span) {
  return swizzled(offset + SharedMemory::first_address, span) - SharedMemory::first_address;
}

void check_map(const TensorMap& map, unsigned rank, bool im2col, const void* site);
/// The offset of a box in `block`'s shared memory.
uint32_t box_offset(const Block& block, const void* shared, const void* site);

/// Faults where the running thread ends before its stores have read shared memory.
void check_stores_are_read();

}  // namespace vggfast::sim
