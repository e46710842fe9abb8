// Buffer and CachedBuffer: alignment, what is used again, and what is freed.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <vector>

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

  // Blocks of other sizes share its pages, the first ones first; a larger one takes more.
  auto again = std::make_unique<CachedBuffer>(3 * page - 5);
  auto beside = std::make_unique<CachedBuffer>(5 * page);
  CHECK(again->data() == place && again->bytes() == 3 * page);
  CHECK(beside->data() == static_cast<const char*>(place) + 3 * page);
  CHECK_EQUAL(CachedBuffer::held(), 8 * page);
  again.reset();
  auto large = std::make_unique<CachedBuffer>(4 * page);
  CHECK(large->data() == static_cast<const char*>(place) + 8 * page);
  std::memset(large->data(), 7, large->bytes());

  // What nobody uses makes room, so that no more is held than was in use at a time: here 5 + 4 pages.
  CHECK_EQUAL(CachedBuffer::held(), 9 * page);
  beside.reset();
  large.reset();
  CHECK_EQUAL(CachedBuffer::held(), 9 * page);
  const CachedBuffer small(page);
  CHECK(small.data() == place);
  CachedBuffer::release_unused();
  CHECK_EQUAL(CachedBuffer::held(), page);
  const CachedBuffer fresh(9 * page);  // pages given back are pages again
  std::memset(fresh.data(), 9, fresh.bytes());
  CHECK_EQUAL(CachedBuffer::held(), 10 * page);
  CHECK(CachedBuffer(0).bytes() == 0 && CachedBuffer(0).data() == nullptr);
}

/// What could not be had leaves no trace: neither in use, nor as the most that ever was.
void check_failure() {
  CachedBuffer::release_unused();
  for (size_t bytes : {size_t{1} << 60, ~size_t{0}}) {
    CHECK(runs_out([=] { Buffer{bytes}; }));
    CHECK(runs_out([=] { CachedBuffer{bytes}; }));
  }
  CHECK_EQUAL(CachedBuffer::held(), 0u);
  for (size_t pages = 1; pages < 40; ++pages) CachedBuffer(pages * page);
  CHECK_EQUAL(CachedBuffer::held(), 39 * page);
}

/// Random blocks: none overlaps another, and no more is held than was in use at a time.
void check_overlap() {
  CachedBuffer::release_unused();
  std::mt19937 random(1);
  std::vector<std::unique_ptr<CachedBuffer>> blocks(12);
  size_t used = 0, most = 39 * page;
  for (int turn = 0; turn < 400; ++turn) {
    const size_t i = random() % blocks.size();
    if (blocks[i]) {
      const auto* marks = static_cast<const unsigned char*>(blocks[i]->data());
      for (size_t at = 0; at < blocks[i]->bytes(); at += page / 2) CHECK(marks[at] == i, "block ", i, " at ", at);
      used -= blocks[i]->bytes();
      blocks[i].reset();
    }
    blocks[i] = std::make_unique<CachedBuffer>((1 + random() % 9) * page);
    used += blocks[i]->bytes();
    most = std::max(most, used);
    auto* marks = static_cast<unsigned char*>(blocks[i]->data());
    for (size_t at = 0; at < blocks[i]->bytes(); at += page / 2) marks[at] = static_cast<unsigned char>(i);
    CHECK(CachedBuffer::held() >= used && CachedBuffer::held() <= most, "turn ", turn);
  }
}

}  // namespace
}  // namespace vggfast::test

int main() {
  using namespace vggfast::test;
  check_buffers();
  check_cache();
  check_failure();
  check_overlap();
  return result();
}
