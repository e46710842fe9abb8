// cp.async.bulk.tensor (TMA): boxes of a tensor between global and shared memory. Coordinates run from the innermost
// dimension; outside the tensor, loads bring zeros and stores write nothing. A load counts the whole box's bytes on its
// mbarrier. One thread issues; boxes in shared memory start at multiples of 128.
#pragma once

#include "cuda/ptx/common.h"
#ifdef VGGFAST_SIM
#include "sim/hopper.h"
#include "sim/tensor_map.h"
#else
#include <cuda.h>
#endif

namespace vggfast {

/// Made by csrc/cuda/tensor_map.h; a kernel takes it as `const __grid_constant__ TensorMap`.
#ifdef VGGFAST_SIM
using TensorMap = sim::TensorMap;
#else
using TensorMap = CUtensorMap;
#endif

}  // namespace vggfast

namespace vggfast::ptx {

VGGFAST_PTX void prefetch_tensormap([[maybe_unused]] const TensorMap& map) {
#ifndef VGGFAST_SIM
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#endif
}

#ifdef VGGFAST_SIM
#define VGGFAST_TMA(rank, places_of_load, places_of_multicast, places_of_store, ...)                                 \
  VGGFAST_PTX void cp_async_bulk_tensor_load(void* shared, const TensorMap& map, uint64_t* barrier,                  \
                                             const int32_t (&at)[rank]) {                                            \
    sim::tma_load(shared, map, barrier, rank, at, 0);                                                                \
  }                                                                                                                  \
  VGGFAST_PTX void cp_async_bulk_tensor_load_multicast(void* shared, const TensorMap& map, uint64_t* barrier,        \
                                                       const int32_t (&at)[rank], uint16_t blocks) {                 \
    sim::tma_load(shared, map, barrier, rank, at, blocks);                                                           \
  }                                                                                                                  \
  VGGFAST_PTX void cp_async_bulk_tensor_store(const TensorMap& map, const void* shared, const int32_t (&at)[rank]) { \
    sim::tma_store(map, shared, rank, at);                                                                           \
  }                                                                                                                  \
  VGGFAST_PTX void cp_reduce_async_bulk_tensor_add(const TensorMap& map, const void* shared,                         \
                                                   const int32_t (&at)[rank]) {                                      \
    sim::tma_reduce_add(map, shared, rank, at);                                                                      \
  }
#else
#define VGGFAST_TMA_LOAD(rank) \
  "cp.async.bulk.tensor." #rank "d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
#define VGGFAST_TMA(rank, places_of_load, places_of_multicast, places_of_store, ...)                                 \
  VGGFAST_PTX void cp_async_bulk_tensor_load(void* shared, const TensorMap& map, uint64_t* barrier,                  \
                                             const int32_t (&at)[rank]) {                                            \
    asm volatile(VGGFAST_TMA_LOAD(rank) " [%0], [%1, {" places_of_load "}], [%2];" ::"r"(shared_address(shared)),    \
                 "l"(&map), "r"(shared_address(barrier)), __VA_ARGS__                                                \
                 : "memory");                                                                                        \
  }                                                                                                                  \
  VGGFAST_PTX void cp_async_bulk_tensor_load_multicast(void* shared, const TensorMap& map, uint64_t* barrier,        \
                                                       const int32_t (&at)[rank], uint16_t blocks) {                 \
    asm volatile(VGGFAST_TMA_LOAD(rank) ".multicast::cluster [%0], [%1, {" places_of_multicast                       \
                                        "}], [%2], %3;" ::"r"(shared_address(shared)),                               \
                 "l"(&map), "r"(shared_address(barrier)), "h"(blocks), __VA_ARGS__                                   \
                 : "memory");                                                                                        \
  }                                                                                                                  \
  VGGFAST_PTX void cp_async_bulk_tensor_store(const TensorMap& map, const void* shared, const int32_t (&at)[rank]) { \
    asm volatile("cp.async.bulk.tensor." #rank "d.global.shared::cta.tile.bulk_group [%0, {" places_of_store         \
                 "}], [%1];" ::"l"(&map),                                                                            \
                 "r"(shared_address(shared)), __VA_ARGS__                                                            \
                 : "memory");                                                                                        \
  }                                                                                                                  \
  VGGFAST_PTX void cp_reduce_async_bulk_tensor_add(const TensorMap& map, const void* shared,                         \
                                                   const int32_t (&at)[rank]) {                                      \
    asm volatile("cp.reduce.async.bulk.tensor." #rank                                                                \
                 "d.global.shared::cta.add.tile.bulk_group [%0, {" places_of_store "}], [%1];" ::"l"(&map),          \
                 "r"(shared_address(shared)), __VA_ARGS__                                                            \
                 : "memory");                                                                                        \
  }
#endif

/// Overloads by rank. The multicast lands in every block of the cluster that has a bit in `blocks`, at this block's own
/// place and on the barrier that lies there. Stores and additions belong to the thread's next bulk group.
VGGFAST_TMA(2, "%3, %4", "%4, %5", "%2, %3", "r"(at[0]), "r"(at[1]))
VGGFAST_TMA(3, "%3, %4, %5", "%4, %5, %6", "%2, %3, %4", "r"(at[0]), "r"(at[1]), "r"(at[2]))
VGGFAST_TMA(4, "%3, %4, %5, %6", "%4, %5, %6, %7", "%2, %3, %4, %5", "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]))
VGGFAST_TMA(5, "%3, %4, %5, %6, %7", "%4, %5, %6, %7, %8", "%2, %3, %4, %5, %6", "r"(at[0]), "r"(at[1]), "r"(at[2]),
            "r"(at[3]), "r"(at[4]))
#undef VGGFAST_TMA
#undef VGGFAST_TMA_LOAD

/// Pixels from the base pixel `at` = {channel, x, y, image} on, along x, y, image within the map's box of base pixels;
/// each fetched at `offset` = {x, y} from there.
VGGFAST_PTX void cp_async_bulk_tensor_im2col(void* shared, const TensorMap& map, uint64_t* barrier,
                                             const int32_t (&at)[4], const uint16_t (&offset)[2]) {
#ifdef VGGFAST_SIM
  sim::tma_load_im2col(shared, map, barrier, 4, at, offset, 0);
#else
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
      "%6}], "
      "[%2], {%7, %8};" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "h"(offset[0]),
      "h"(offset[1])
      : "memory");
#endif
}

VGGFAST_PTX void cp_async_bulk_tensor_im2col_multicast(void* shared, const TensorMap& map, uint64_t* barrier,
                                                       const int32_t (&at)[4], const uint16_t (&offset)[2],
                                                       uint16_t blocks) {
#ifdef VGGFAST_SIM
  sim::tma_load_im2col(shared, map, barrier, 4, at, offset, blocks);
#else
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%3, %4, %5, %6}], [%2], {%7, %8}, %9;" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "h"(offset[0]),
      "h"(offset[1]), "h"(blocks)
      : "memory");
#endif
}

VGGFAST_PTX void cp_async_bulk_commit_group() {
#ifdef VGGFAST_SIM
  sim::bulk_commit_group();
#else
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}

/// Until at most `StillInFlight` of this thread's groups have yet to write.
template <int StillInFlight>
VGGFAST_PTX void cp_async_bulk_wait_group() {
#ifdef VGGFAST_SIM
  sim::bulk_wait_group(StillInFlight);
#else
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(StillInFlight) : "memory");
#endif
}

/// Until at most `StillInFlight` of this thread's groups have yet to read shared memory.
template <int StillInFlight>
VGGFAST_PTX void cp_async_bulk_wait_group_read() {
#ifdef VGGFAST_SIM
  sim::bulk_wait_group_read(StillInFlight);
#else
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(StillInFlight) : "memory");
#endif
}

}  // namespace vggfast::ptx
