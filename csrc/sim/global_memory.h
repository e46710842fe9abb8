// Global memory as the kernels see it: the ranges that a Global announced. Blocks of a launch are in no order, so that
// within one launch what one thread writes no other may read or write. Nor are two launches in an order, if the second
// is a dependent one, until its thread has waited (dependent_launch.cpp).
#pragma once

#include <cstddef>

namespace vggfast::sim {

void read_global(const void* address, size_t bytes, const void* site);
void write_global(const void* address, size_t bytes, const void* site);
/// An atomic operation: may meet others of its kind, but no plain access.
void update_global(const void* address, size_t bytes, const void* site);

}  // namespace vggfast::sim
