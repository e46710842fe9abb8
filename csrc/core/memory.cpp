#include "vggfast/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <list>
#include <mutex>
#include <new>

namespace vggfast {
namespace {

constexpr size_t huge_page = size_t{2} << 20;

size_t whole_pages(size_t bytes) { return (bytes + huge_page - 1) / huge_page * huge_page; }

struct Cache {
  std::mutex mutex;
  std::list<Buffer> unused;  // the one given back last comes first
  size_t used_bytes = 0, unused_bytes = 0, most_used_bytes = 0;

  /// The unused block that fits best, or none: one of at most a quarter more than asked for.
  Buffer take(size_t bytes) {
    auto best = unused.end();
    for (auto it = unused.begin(); it != unused.end(); ++it) {
      if (it->bytes() >= bytes && it->bytes() <= bytes + bytes / 4 &&
          (best == unused.end() || it->bytes() < best->bytes())) {
        best = it;
      }
    }
    if (best == unused.end()) return {};
    Buffer found = std::move(*best);
    unused.erase(best);
    unused_bytes -= found.bytes();
    return found;
  }

  void shrink(size_t limit) {
    while (!unused.empty() && used_bytes + unused_bytes > limit) {
      unused_bytes -= unused.back().bytes();
      unused.pop_back();
    }
  }
};

Cache& cache() {
  static Cache* const instance = new Cache;  // never destroyed: buffers may come back while the process ends
  return *instance;
}

}  // namespace

// Mappings of their own: what an allocator's heap is given back, it may keep.
Buffer::Buffer(size_t bytes) : bytes_(whole_pages(bytes)) {
  if (bytes_ == 0) return;
  void* mapped = bytes_ < bytes
                     ? MAP_FAILED
                     : mmap(nullptr, bytes_ + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  const size_t before = (huge_page - reinterpret_cast<uintptr_t>(mapped) % huge_page) % huge_page;
  data_ = static_cast<std::byte*>(mapped) + before;
  if (before > 0) munmap(mapped, before);
  munmap(static_cast<std::byte*>(data_) + bytes_, huge_page - before);
#ifdef MADV_HUGEPAGE
  madvise(data_, bytes_, MADV_HUGEPAGE);  // advice: without it, ordinary pages serve
#endif
}

Buffer::~Buffer() {
  if (data_) munmap(data_, bytes_);
}

CachedBuffer::CachedBuffer(size_t bytes) {
  const std::lock_guard lock(cache().mutex);
  const size_t wanted = whole_pages(bytes);
  buffer_ = cache().take(wanted);
  if (buffer_.bytes() == 0 && wanted > 0) {
    cache().shrink(std::max(cache().most_used_bytes, cache().used_bytes + wanted) - wanted);
    buffer_ = Buffer(wanted);
  }
  cache().used_bytes += buffer_.bytes();
  cache().most_used_bytes = std::max(cache().most_used_bytes, cache().used_bytes);
}

CachedBuffer::~CachedBuffer() {
  const std::lock_guard lock(cache().mutex);
  cache().used_bytes -= buffer_.bytes();
  cache().unused_bytes += buffer_.bytes();
  if (buffer_.bytes() > 0) cache().unused.push_front(std::move(buffer_));
}

size_t CachedBuffer::held() {
  const std::lock_guard lock(cache().mutex);
  return cache().used_bytes + cache().unused_bytes;
}

void CachedBuffer::release_unused() {
  const std::lock_guard lock(cache().mutex);
  cache().shrink(cache().used_bytes);
}

}  // namespace vggfast
