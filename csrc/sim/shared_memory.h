// A block's shared memory and what is known of every two bytes of it: who wrote and read them last, and when.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace vggfast::sim {

struct Thread;

/// A point in a thread's life, on the clock that all threads share. At time 0 nothing has happened.
struct Moment {
  uint32_t time = 0;
  uint16_t thread = 0;  // or an agent
  bool operator==(const Moment&) const = default;
};

/// What an asynchronous operation reads of a shared memory, in chunks of 16 bytes, from its issue until its end is
/// known.
struct Reading {
  const char* what;
  Thread* by;
  const void* site;
  std::vector<uint32_t> chunks;
};

class SharedMemory {
 public:
  static constexpr size_t granule = 2;
  static constexpr size_t margin = 64 << 10;
  static constexpr size_t chunk = 16;
  static constexpr uint32_t first_address = 1024;  // the system keeps what lies before

  /// Forgets everything; all bytes count as never written. `readers` are told apart: warps and warpgroups.
  void reset(size_t bytes, size_t readers);

  char* data() { return data_; }
  /// Whether an address is meant to lie here: within, or shortly before or behind.
  bool owns(const void* address) const {
    return static_cast<size_t>(static_cast<const char*>(address) - room_.data()) < room_.size();
  }
  size_t offset_of(const void* address) const { return static_cast<size_t>(static_cast<const char*>(address) - data_); }
  size_t bytes() const { return bytes_; }

  /// The running thread loads or stores these bytes. Each faults where another thread's access is not ordered with it.
  void read(const void* address, size_t bytes, const void* site);
  void write(const void* address, size_t bytes, const void* site);

  /// An asynchronous copy of the running thread's will write these bytes: until landed(), nobody may touch them.
  void expect(const void* address, size_t bytes, const void* site);
  /// Likewise by TMA, which does not see plain stores that no fence.proxy.async follows.
  void expect_through_proxy(const void* address, size_t bytes, const void* site);
  void landed(const void* address, size_t bytes);
  void landed(const void* address, size_t bytes, Moment by);

  /// All of `threads` are to read these chunks through the async proxy: from now until release(), nobody may write
  /// there.
  void hold(const std::shared_ptr<const Reading>& reading, std::span<Thread* const> threads);
  /// The reading was over at `end`, for `reader` of reset()'s.
  void release(const std::shared_ptr<const Reading>& reading, Moment end, size_t reader);

  /// The running thread makes these 8 bytes an mbarrier, or no longer one: nobody may load or store them meanwhile.
  void make_barrier(const void* address, const void* site);
  void drop_barrier(const void* address, const void* site);

 private:
  struct Cell {
    Moment written;
    uint8_t initialised = 0;  // a bit for each byte
    bool awaited = false;     // a copy to here is in flight
    bool barrier = false;     // part of an mbarrier
    uint8_t readings = 0;     // asynchronous ones that go on
    const void* site = nullptr;
  };
  struct Range {
    size_t first, last;
  };
  /// The granules of an access that lies in this memory; faults where it does not.
  Range granules(const void* address, size_t bytes, const void* site) const;
  void check_write(size_t granule_index, const void* site) const;
  void check_proxy_read(size_t granule_index, const Reading& reading, std::span<Thread* const> threads) const;
  [[noreturn]] void report_reading(size_t granule_index, const void* site) const;
  static uint8_t bytes_of(size_t granule_index, size_t offset, size_t bytes);

  std::vector<char> room_;
  char* data_ = nullptr;
  size_t bytes_ = 0, readers_ = 0;
  std::vector<Cell> cells_;
  std::vector<Moment> reads_;  // by granule, then reader: its last read
  std::vector<std::shared_ptr<const Reading>> readings_;
};

}  // namespace vggfast::sim
