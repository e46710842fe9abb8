// Memory of an engine's own, in huge pages where the system has them: the first touch of ordinary pages is slow.
#pragma once

#include <cstddef>
#include <utility>

namespace vggfast::engine {

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

}  // namespace vggfast::engine
