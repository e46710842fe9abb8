// Memory that is quick to touch: in huge pages where the system has them, and used again.
//
// Pages fresh from the system cost more than most kernels that fill them (in a virtual machine, touching 4 GiB took 9.1
// s in pages of 4 KiB and 2.3 s in pages of 2 MiB), and an allocator that returns large blocks to the system pays that
// price on every call.
#pragma once

#include <cstddef>
#include <utility>

namespace vggfast {

/// A block of one's own, aligned to huge pages.
class Buffer {
 public:
  Buffer() = default;
  /// Throws std::bad_alloc where there is no such memory.
  explicit Buffer(size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  size_t bytes() const { return bytes_; }
  /// What bytes() of a block is that was asked for so many.
  static size_t whole_pages(size_t bytes);
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/// A block of the process' pool, and back to it in the end. Pages that nobody uses stay for the next block, but never
/// more than make up, with those in use, the most that was ever in use at a time.
class CachedBuffer {
 public:
  /// Throws std::bad_alloc where there is no such memory.
  explicit CachedBuffer(size_t bytes);
  ~CachedBuffer();
  CachedBuffer(const CachedBuffer&) = delete;
  CachedBuffer& operator=(const CachedBuffer&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

  /// Bytes of the pool's pages, in use and not.
  static size_t held();
  /// Gives the pages that nobody uses back to the system.
  static void release_unused();

 private:
  size_t bytes_;
  Buffer own_;  // where the pool has no room
  void* data_ = nullptr;
};

}  // namespace vggfast
