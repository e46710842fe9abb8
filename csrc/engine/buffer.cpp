#include "engine/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace vggfast::engine {

Buffer::Buffer(size_t bytes) {
  constexpr size_t huge_page = size_t{2} << 20;
  bytes_ = (bytes + huge_page - 1) / huge_page * huge_page;
  if (bytes_ == 0) return;
  data_ = std::aligned_alloc(huge_page, bytes_);
  if (!data_) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(data_, bytes_, MADV_HUGEPAGE);  // advice: without it, ordinary pages serve
#endif
}

Buffer::~Buffer() { std::free(data_); }

}  // namespace vggfast::engine
