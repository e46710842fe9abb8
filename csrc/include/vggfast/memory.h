// Memory that is quick to touch: it lies in huge pages, where the system has them, and is kept and used again.
//
// Fresh pages from the system often cost more than the kernel that fills them, and an allocator that returns large
// blocks to the system pays that price on every call: in a virtual machine, touching 4 GiB took 9.1 s in pages of 4
// KiB, and 2.3 s in pages of 2 MiB.
#pragma once

#include <cstddef>
#include <new>
#include <string>
#include <utility>

namespace vggfast {

/// There is no memory for so many bytes.
class NoMemory : public std::bad_alloc {
 public:
  explicit NoMemory(size_t bytes) : text_("there is no memory for " + std::to_string(bytes) + " bytes") {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

/// A block of memory mapped for one owner alone, aligned to huge pages.
class Buffer {
 public:
  Buffer() = default;
  /// Throws NoMemory.
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
  /// What bytes() returns for a block made with `bytes`: they are rounded up to whole huge pages.
  static size_t whole_pages(size_t bytes);
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/// A block from the pool of the process; the destructor gives it back. The pool keeps pages that nobody uses for the
/// next block, but holds no more pages, used and unused together, than were ever in use at one time.
class CachedBuffer {
 public:
  /// Throws NoMemory.
  explicit CachedBuffer(size_t bytes);
  ~CachedBuffer();
  CachedBuffer(const CachedBuffer&) = delete;
  CachedBuffer& operator=(const CachedBuffer&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

  /// Bytes of all pages that the pool holds, used and unused.
  static size_t held();
  /// Gives the pages that nobody uses back to the system, and those of the heap.
  static void release_unused();

 private:
  size_t bytes_;
  Buffer own_;  // the block itself, where the pool has no room
  void* data_ = nullptr;
};

}  // namespace vggfast
