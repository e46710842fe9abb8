// What the twins of csrc/cuda/ptx call for sm_90's instructions: mbarriers, TMA, clusters, wgmma.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vggfast::sim {

/// Where an instruction sees a place in the block's shared memory.
uint32_t shared_address(const void* pointer);

/// Of threads: whom what one did before it arrives is ordered for, once they have waited.
enum class Scope { block, cluster };

// ---- mbarrier.cpp
void mbarrier_init(uint64_t* barrier, unsigned count);
void mbarrier_inval(uint64_t* barrier);
void mbarrier_arrive(uint64_t* barrier, unsigned count);
/// On the barrier that lies in that block of the cluster where `barrier` lies in this.
void mbarrier_arrive_remote(uint64_t* barrier, unsigned rank, Scope release);
void mbarrier_expect_tx(uint64_t* barrier, uint32_t bytes);
void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes);
/// Waits until the phase of that parity is over.
void mbarrier_wait_parity(const uint64_t* barrier, uint32_t parity, Scope acquire);

// ---- cluster.cpp
/// `release`: what the thread did before is ordered for who has waited. Else only fence_mbarrier_init() counts.
void cluster_arrive(bool release);
void cluster_wait();
unsigned cluster_rank();
unsigned cluster_blocks();
/// What lies in that block of the cluster where `pointer` lies in this.
void* mapa(const void* pointer, unsigned rank);

// ---- tma_load.cpp, tma_store.cpp
struct TensorMap;
/// A box at `coordinates` (innermost first) to `shared` in this block, or in every block of `mask` if that is not 0.
void tma_load(void* shared, const TensorMap& map, uint64_t* barrier, unsigned rank, const int32_t* coordinates,
              uint16_t mask);
/// `offsets` from the base pixel: width, height.
void tma_load_im2col(void* shared, const TensorMap& map, uint64_t* barrier, unsigned rank, const int32_t* coordinates,
                     const uint16_t* offsets, uint16_t mask);
void tma_store(const TensorMap& map, const void* shared, unsigned rank, const int32_t* coordinates);
/// Adds to what is there, in no order.
void tma_reduce_add(const TensorMap& map, const void* shared, unsigned rank, const int32_t* coordinates);
void bulk_commit_group();
void bulk_wait_group(unsigned still_in_flight);
void bulk_wait_group_read(unsigned still_in_flight);

// ---- wgmma.cpp
enum class Narrow { bf16, f16, tf32, e4m3, e5m2 };
struct WgmmaForm {
  Narrow type;
  unsigned n;
  bool transposed_a = false, transposed_b = false;  // M or N contiguous in shared memory, not K
  bool negate_a = false, negate_b = false;
  bool operator==(const WgmmaForm&) const = default;
};
/// `a_registers` are A where they are not null, else the descriptor `a` is.
void wgmma(const WgmmaForm& form, float* d, const uint32_t* a_registers, uint64_t a, uint64_t b, bool scale_d);
void wgmma_fence();
void wgmma_commit_group();
void wgmma_wait_group(unsigned still_in_flight);

// ---- proxy.cpp
void fence_proxy_async();
void fence_mbarrier_init();
bool elect(uint32_t mask);
void setmaxnreg(unsigned registers, bool more);

}  // namespace vggfast::sim
