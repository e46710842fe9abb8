// Memory that is quick to touch: in huge pages where the system has them, and used again.
//
// Pages fresh from the system cost more than many a kernel that fills them, and an allocator that returns large blocks
// to the system pays that price on every call.
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
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/// A block from the process' cache, and back to it in the end. Blocks that nobody uses are freed, the one unused for
/// longest first, as soon as all together exceed what was ever in use at a time.
class CachedBuffer {
 public:
  explicit CachedBuffer(size_t bytes);
  ~CachedBuffer();
  CachedBuffer(const CachedBuffer&) = delete;
  CachedBuffer& operator=(const CachedBuffer&) = delete;

  void* data() const { return buffer_.as<void>(); }
  size_t bytes() const { return buffer_.bytes(); }

  /// Bytes that the cache holds, in use and not.
  static size_t held();
  /// Frees the blocks that nobody uses.
  static void release_unused();

 private:
  Buffer buffer_;
};

}  // namespace vggfast
