// TMA stores: they read shared memory at any moment after their issue, and write the tensor at any later one.
#include <algorithm>
#include <bit>
#include <cstring>

#include "sim/global_memory.h"
#include "sim/hopper.h"
#include "sim/numbers.h"
#include "sim/tma.h"

namespace vggfast::sim {

struct BulkStore {
  Block* block;
  uint32_t offset;
  BoxRows box;
  TensorMap::Element element;
  bool adds;
  std::shared_ptr<const Reading> reading;
  std::vector<char> data;  // the box's rows, once they are read
  bool read = false, written = false;
};

namespace {

void read_shared(BulkStore& store) {
  if (store.read) return;
  store.read = true;
  store.data.resize(store.box.bytes());
  const char* shared = store.block->shared.data();
  for (size_t at = 0; at < store.data.size(); at += SharedMemory::chunk) {
    const uint32_t from = swizzled_offset(store.offset + static_cast<uint32_t>(at), store.box.swizzle);
    std::memcpy(store.data.data() + at, shared + from, SharedMemory::chunk);
  }
}

template <class Bits, class From, class To>
void add(char* to, const char* from, size_t bytes, From wide, To narrow) {
  for (size_t at = 0; at < bytes; at += sizeof(Bits)) {
    Bits a, b;
    std::memcpy(&a, to + at, sizeof a);
    std::memcpy(&b, from + at, sizeof b);
    const Bits sum = narrow(wide(a) + wide(b));
    std::memcpy(to + at, &sum, sizeof sum);
  }
}

void add(TensorMap::Element element, char* to, const char* from, size_t bytes) {
  switch (element) {
    case TensorMap::Element::u8:
      return add<uint8_t>(
          to, from, bytes, [](uint8_t b) { return unsigned(b); }, [](unsigned v) { return uint8_t(v); });
    case TensorMap::Element::f16:
      return add<uint16_t>(to, from, bytes, from_f16, to_f16);
    case TensorMap::Element::bf16:
      return add<uint16_t>(to, from, bytes, from_bf16, to_bf16);
    case TensorMap::Element::f32:
    case TensorMap::Element::tf32:  // of loads alone
      return add<float>(to, from, bytes, [](float v) { return v; }, [](float v) { return v; });
  }
}

void write_tensor(BulkStore& store) {
  read_shared(store);
  if (store.written) return;
  store.written = true;
  for (const BoxRow& row : store.box.rows) {
    if (row.bytes == 0) continue;
    char* to = const_cast<char*>(row.global);
    const char* from = store.data.data() + row.linear + row.skip;
    store.adds ? add(store.element, to, from, row.bytes) : (void)std::memcpy(to, from, row.bytes);
  }
}

void store(const TensorMap& map, const void* shared, unsigned rank, const int32_t* coordinates, bool adds,
           const void* site) {
  Thread& me = self();
  check_map(map, rank, false, site);
  if (map.element == TensorMap::Element::tf32) fault(site, "a TMA store by a map of TF32, which is for loads");
  const uint32_t offset = box_offset(*me.block, shared, site);
  auto work = std::make_shared<BulkStore>(
      BulkStore{me.block, offset, tiled_rows(map, coordinates), map.element, adds, nullptr, {}});
  auto reading = std::make_shared<Reading>(Reading{"a TMA store", &me, site, {}});
  for (const BoxRow& row : work->box.rows) {
    if (row.bytes == 0) continue;
    adds ? update_global(row.global, row.bytes, site) : write_global(row.global, row.bytes, site);
    constexpr uint32_t chunk = SharedMemory::chunk;
    for (uint32_t at = row.skip / chunk * chunk; at < row.skip + row.bytes; at += chunk) {
      reading->chunks.push_back(swizzled_offset(offset + row.linear + at, work->box.swizzle) / chunk);
    }
  }
  Thread* const readers[] = {&me};
  me.block->shared.hold(reading, readers);
  work->reading = reading;
  me.open_stores.push_back(work);
  machine.in_flight.push_back([work] {
    if (work->block->running) read_shared(*work);
    machine.in_flight.push_back([work] { write_tensor(*work); });
  });
}

/// Of the running thread's groups but the `still_in_flight` last ones: they have read, or have written too.
template <class Finish>
void wait_groups(unsigned still_in_flight, Finish finish) {
  Thread& me = self();
  const size_t groups = me.store_groups.size();
  for (size_t i = 0; i + still_in_flight < groups; ++i) {
    for (const auto& work : me.store_groups[i]) {
      finish(*work);
      work->block->shared.release(work->reading, {me.now(), me.index}, me.warp);
      work->reading = nullptr;
    }
  }
  const auto is_over = [](const auto& work) { return work->written; };
  while (me.store_groups.size() > still_in_flight &&
         std::all_of(me.store_groups.front().begin(), me.store_groups.front().end(), is_over)) {
    me.store_groups.pop_front();
  }
}

}  // namespace

void check_stores_are_read() {
  const Thread& me = self();
  const auto check = [](const auto& group) {
    for (const auto& work : group) {
      if (work->reading) {
        fault(work->reading->site,
              "ends while its TMA store may still read shared memory: no cp.async.bulk.wait_group, "
              "here:");
      }
    }
  };
  check(me.open_stores);
  for (const auto& group : me.store_groups) check(group);
}

void tma_store(const TensorMap& map, const void* shared, unsigned rank, const int32_t* coordinates) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  store(map, shared, rank, coordinates, false, site);
}

void tma_reduce_add(const TensorMap& map, const void* shared, unsigned rank, const int32_t* coordinates) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  store(map, shared, rank, coordinates, true, site);
}

void bulk_commit_group() {
  const Quiet quiet;
  self().store_groups.push_back(std::move(self().open_stores));
  self().open_stores.clear();
}

void bulk_wait_group(unsigned still_in_flight) {
  const Quiet quiet;
  wait_groups(still_in_flight, write_tensor);
}

void bulk_wait_group_read(unsigned still_in_flight) {
  const Quiet quiet;
  wait_groups(still_in_flight, read_shared);
}

}  // namespace vggfast::sim
