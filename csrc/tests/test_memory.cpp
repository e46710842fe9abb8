// Buffer and CachedBuffer: alignment, what is used again, and what is freed.
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include "check.h"
#include "vggfast/memory.h"

namespace vggfast::test {
namespace {

constexpr size_t page = size_t{2} << 20;

bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % page == 0; }

void check_buffers() {
  CHECK_EQUAL(Buffer().bytes(), 0u);
  CHECK(Buffer(0).as<char>() == nullptr);
  Buffer a(1), b(page + 1);
  CHECK_EQUAL(a.bytes(), page);
  CHECK_EQUAL(b.bytes(), 2 * page);
  CHECK(aligned(a.as<char>()) && aligned(b.as<char>()));
  std::memset(a.as<char>(), 1, a.bytes());
  char* const kept = b.as<char>();
  const Buffer moved = std::move(b);
  CHECK(moved.as<char>() == kept && b.as<char>() == nullptr && b.bytes() == 0);
  a = Buffer();
  CHECK_EQUAL(a.bytes(), 0u);
}

template <class Body>
bool runs_out(Body body) {
  try {
    body();
  } catch (const std::bad_alloc&) {
    return true;
  }
  return false;
}

void check_cache() {
  CHECK_EQUAL(CachedBuffer::held(), 0u);
  auto first = std::make_unique<CachedBuffer>(8 * page);
  CHECK(aligned(first->data()) && first->bytes() == 8 * page);
  std::memset(first->data(), 7, first->bytes());
  const void* const place = first->data();
  first.reset();
  CHECK_EQUAL(CachedBuffer::held(), 8 * page);

  // A block serves again where it is not much too large; else it makes room.
  auto again = std::make_unique<CachedBuffer>(7 * page - 5);
  CHECK(again->data() == place);
  auto other = std::make_unique<CachedBuffer>(8 * page);
  CHECK(other->data() != place);
  CHECK_EQUAL(CachedBuffer::held(), 16 * page);
  again.reset();
  other.reset();
  const CachedBuffer small(page);
  CHECK(small.bytes() <= page + page / 4);
  CHECK(CachedBuffer::held() <= 16 * page + 16 * page / 4, CachedBuffer::held());
  CachedBuffer::release_unused();
  CHECK_EQUAL(CachedBuffer::held(), small.bytes());
  CHECK(CachedBuffer(0).bytes() == 0);
}

/// What could not be had leaves no trace: neither in use, nor as the most that ever was.
void check_failure() {
  CachedBuffer::release_unused();
  CHECK(runs_out([] { Buffer(size_t{1} << 60); }));
  CHECK(runs_out([] { CachedBuffer(size_t{1} << 60); }));
  CHECK_EQUAL(CachedBuffer::held(), 0u);
  for (size_t pages = 1; pages < 40; ++pages) CachedBuffer(pages * page);
  CHECK(CachedBuffer::held() <= 40 * page + 40 * page / 4, CachedBuffer::held() / page, " pages are held");
}

}  // namespace
}  // namespace vggfast::test

int main() {
  using namespace vggfast::test;
  check_buffers();
  check_cache();
  check_failure();
  return result();
}
