// What the twins of csrc/cuda/ptx call: one function for each instruction or family of instructions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vggfast::sim {

constexpr uint32_t all_lanes = 0xffffffff;

char* shared_memory();

// ---- sync.cpp
void sync_threads();
void barrier_sync(unsigned barrier, unsigned threads);
void barrier_arrive(unsigned barrier, unsigned threads);
void sync_warp(uint32_t mask);

// ---- warp.cpp
uint32_t shuffle_xor(uint32_t mask, uint32_t value, unsigned lanes);
uint32_t shuffle(uint32_t mask, uint32_t value, unsigned lane);
uint32_t ballot(uint32_t mask, bool vote);

// ---- matrix.cpp
/// `matrices` (1, 2 or 4) of 8 rows of 16 bytes; lane 8 i + r points at row r of matrix i.
void ldmatrix(uint32_t* fragment, unsigned matrices, bool transposed, const void* row);
void stmatrix(const uint32_t* fragment, unsigned matrices, bool transposed, void* row);
enum class Operand { bf16, f16, tf32 };
/// d (16 x 8) += a (16 x k) b (k x 8), k = 32 bytes of operands.
void mma(Operand type, float* d, const uint32_t* a, const uint32_t* b);

// ---- cp_async.cpp
/// Copies `bytes` (4, 8 or 16), of which those beyond `source_bytes` become 0.
void cp_async(void* to, const void* from, unsigned bytes, unsigned source_bytes);
void cp_async_commit_group();
void cp_async_wait_group(unsigned still_in_flight);

// ---- dependent_launch.cpp
void griddepcontrol_wait();
void griddepcontrol_launch_dependents();

// ---- atomics.cpp
unsigned atomic_add(unsigned* address, unsigned value);

}  // namespace vggfast::sim
