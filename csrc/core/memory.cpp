#include "vggfast/memory.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

namespace vggfast {
namespace {

constexpr size_t huge_page = size_t{2} << 20;

/// Asks the system for huge pages; where it has none, ordinary pages are used.
void advise([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
  madvise(data, bytes, MADV_HUGEPAGE);
#endif
}

size_t machine_bytes() {
  return static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

/// A range of addresses as large as the machine's memory, handed out in huge pages, the lowest first, so that blocks of
/// all sizes share the same pages and the unused pages lie at the end.
class Pool {
 public:
  Pool() {
    const size_t bytes = machine_bytes();
    void* mapped = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return;  // addresses are limited: each block is then a mapping of its own
    const size_t before = (huge_page - reinterpret_cast<uintptr_t>(mapped) % huge_page) % huge_page;
    base_ = static_cast<std::byte*>(mapped) + before;
    room_ = (bytes - before) / huge_page;
  }

  /// Returns null where there is no room.
  void* take(size_t count) {
    size_t begin = 0;
    for (size_t i = 0; i < pages_.size() && i < begin + count; ++i) {
      if (pages_[i].used) begin = i + 1;
    }
    if (count > room_ || begin > room_ - count || !extend(begin + count)) return nullptr;
    for (size_t i = begin; i < begin + count; ++i) {
      held_ += !pages_[i].held;
      pages_[i] = {true, true};
    }
    used_ += count;
    most_used_ = std::max(most_used_, used_);
    shrink(most_used_);
    return base_ + begin * huge_page;
  }

  void give_back(void* data, size_t count) {
    const size_t begin = static_cast<size_t>(static_cast<std::byte*>(data) - base_) / huge_page;
    for (size_t i = begin; i < begin + count; ++i) pages_[i].used = false;
    used_ -= count;
  }

  size_t held() const { return held_ * huge_page; }

  void release_unused() { shrink(used_); }

 private:
  struct Page {
    bool used = false, held = false;
  };

  /// Makes the first `count` pages accessible.
  bool extend(size_t count) {
    if (count <= pages_.size()) return true;
    std::byte* const end = base_ + pages_.size() * huge_page;
    const size_t bytes = (count - pages_.size()) * huge_page;
    if (mprotect(end, bytes, PROT_READ | PROT_WRITE) != 0) return false;
    advise(end, bytes);
    pages_.resize(count);
    return true;
  }

  /// Gives unused pages back to the system, the last ones first, until `limit` are held.
  void shrink(size_t limit) {
    for (size_t i = pages_.size(); i-- > 0 && held_ > limit;) {
      if (pages_[i].used || !pages_[i].held) continue;
      madvise(base_ + i * huge_page, huge_page, MADV_DONTNEED);
      pages_[i].held = false;
      --held_;
    }
  }

  std::byte* base_ = nullptr;
  size_t room_ = 0, used_ = 0, held_ = 0, most_used_ = 0;  // pages
  std::vector<Page> pages_;                                // up to the last that was ever used
};

constinit std::mutex pool_mutex;

Pool& pool_of_holder() {
  static Pool* const instance = new Pool;  // never destroyed: buffers may come back while the process ends
  return *instance;
}

/// A child by fork finds the pool whole, and its lock free. Before all others, so that theirs come first at a fork, and
/// none waits with the lock held for a thread that wants it.
[[gnu::constructor(1000)]] void lock_pool_at_fork() {
  pthread_atfork([] { pool_mutex.lock(); }, [] { pool_mutex.unlock(); }, [] { pool_mutex.unlock(); });
}

/// What `use` returns of the pool, which no other thread uses meanwhile.
template <class Use>
auto with_pool(Use use) {
  const std::lock_guard lock(pool_mutex);
  return use(pool_of_holder());
}

}  // namespace

size_t Buffer::whole_pages(size_t bytes) { return (bytes + huge_page - 1) / huge_page * huge_page; }

// Each Buffer is a mapping of its own, because an allocator may keep memory that is given back to its heap.
Buffer::Buffer(size_t bytes) : bytes_(whole_pages(bytes)) {
  if (bytes == 0) return;
  // Where the system promises more than it has, it would end the process later.
  void* mapped = bytes_ < bytes || bytes_ > machine_bytes()
                     ? MAP_FAILED
                     : mmap(nullptr, bytes_ + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw NoMemory(bytes);
  const size_t before = (huge_page - reinterpret_cast<uintptr_t>(mapped) % huge_page) % huge_page;
  data_ = static_cast<std::byte*>(mapped) + before;
  if (before > 0) munmap(mapped, before);
  munmap(static_cast<std::byte*>(data_) + bytes_, huge_page - before);
  advise(data_, bytes_);
}

Buffer::~Buffer() {
  if (data_) munmap(data_, bytes_);
}

CachedBuffer::CachedBuffer(size_t bytes) : bytes_(Buffer::whole_pages(bytes)) {
  if (bytes == 0) return;
  if (bytes_ >= bytes) data_ = with_pool([&](Pool& pool) { return pool.take(bytes_ / huge_page); });
  if (data_) return;
  own_ = Buffer(bytes);
  data_ = own_.as<void>();
}

CachedBuffer::~CachedBuffer() {
  if (data_ && !own_.as<void>()) with_pool([&](Pool& pool) { pool.give_back(data_, bytes_ / huge_page); });
}

size_t CachedBuffer::held() {
  return with_pool([](Pool& pool) { return pool.held(); });
}

void CachedBuffer::release_unused() {
  with_pool([](Pool& pool) { pool.release_unused(); });
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace vggfast
