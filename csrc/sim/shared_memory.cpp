#include "sim/shared_memory.h"

#include <algorithm>
#include <cstring>

#include "sim/machine.h"

namespace vggfast::sim {

namespace {

/// Whether `reader` knows of a fence by which the writer let asynchronous operations see what it wrote.
bool is_fenced(const Thread& reader, Moment written) {
  if (written.thread >= machine.threads.size()) return true;  // a TMA load did
  const std::vector<uint32_t>& fences = machine.threads[written.thread]->fences;
  const auto fence = std::upper_bound(fences.begin(), fences.end(), written.time);
  return fence != fences.end() && reader.after({*fence, written.thread});
}

/// What `me` lacks to come after that moment.
const char* missing_order(const Thread& me, Moment moment) {
  return me.knows(moment) ? "nothing at the cluster's scope to order the two" : "nothing to order the two";
}

}  // namespace

void SharedMemory::reset(size_t bytes, size_t readers) {
  constexpr size_t alignment = 1024;
  room_.resize(most_shared_bytes + 2 * margin + alignment);
  char* const begin = room_.data() + margin;
  data_ = begin + (alignment - reinterpret_cast<uintptr_t>(begin) % alignment);
  std::memset(data_, 0xff, bytes);  // NaN in every format
  bytes_ = bytes;
  readers_ = readers;
  cells_.assign((bytes + granule - 1) / granule, {});
  reads_.assign(cells_.size() * readers, {});
  readings_.clear();
}

SharedMemory::Range SharedMemory::granules(const void* address, size_t bytes, const void* site) const {
  const size_t offset = offset_of(address);
  if (offset >= bytes_ || offset + bytes > bytes_) {
    fault(site, "touches bytes ", static_cast<int64_t>(offset), " to ", static_cast<int64_t>(offset + bytes),
          " of shared memory: the launch asked for ", bytes_);
  }
  return {offset / granule, (offset + bytes - 1) / granule};
}

uint8_t SharedMemory::bytes_of(size_t granule_index, size_t offset, size_t bytes) {
  uint8_t bits = 0;
  for (size_t i = 0; i < granule; ++i) {
    const size_t byte = granule_index * granule + i;
    if (byte >= offset && byte < offset + bytes) bits |= uint8_t(1u << i);
  }
  return bits;
}

void SharedMemory::read(const void* address, size_t bytes, const void* site) {
  const auto [first, last] = granules(address, bytes, site);
  const Thread& me = self();
  const size_t offset = offset_of(address);
  machine.counts.shared_read += static_cast<int64_t>(bytes);
  for (size_t i = first; i <= last; ++i) {
    const Cell& cell = cells_[i];
    if (cell.barrier) fault(site, "loads byte ", i * granule, " of shared memory, which is an mbarrier's");
    if (cell.awaited) {
      fault(site, "reads byte ", i * granule,
            " of shared memory, where an asynchronous copy has yet to land; issued at ", where(cell.site));
    }
    if (const uint8_t expected = bytes_of(i, offset, bytes); (cell.initialised & expected) != expected) {
      fault(site, "reads byte ", i * granule, " of shared memory, which nobody has written");
    }
    if (!me.after(cell.written)) {
      fault(site, "reads byte ", i * granule, " of shared memory, which ", name_of(cell.written.thread), " wrote with ",
            missing_order(me, cell.written), "; written at ", where(cell.site));
    }
    reads_[i * readers_ + me.warp] = {me.now(), me.index};
  }
}

void SharedMemory::check_write(size_t i, const void* site) const {
  const Thread& me = self();
  const Cell& cell = cells_[i];
  if (cell.barrier) fault(site, "stores to byte ", i * granule, " of shared memory, which is an mbarrier's");
  if (cell.readings) report_reading(i, site);
  if (cell.awaited) {
    fault(site, "writes byte ", i * granule,
          " of shared memory, where an asynchronous copy has yet to land; issued at ", where(cell.site));
  }
  if (!me.after(cell.written)) {
    fault(site, "writes byte ", i * granule, " of shared memory, which ", name_of(cell.written.thread), " wrote with ",
          missing_order(me, cell.written), "; written at ", where(cell.site));
  }
  for (size_t reader = 0; reader < readers_; ++reader) {
    const Moment read = reads_[i * readers_ + reader];
    if (!me.after(read)) {
      fault(site, "overwrites byte ", i * granule, " of shared memory, which ", name_of(read.thread), " has read with ",
            missing_order(me, read));
    }
  }
}

void SharedMemory::write(const void* address, size_t bytes, const void* site) {
  const auto [first, last] = granules(address, bytes, site);
  const Thread& me = self();
  const size_t offset = offset_of(address);
  machine.counts.shared_written += static_cast<int64_t>(bytes);
  for (size_t i = first; i <= last; ++i) {
    check_write(i, site);
    Cell& cell = cells_[i];
    cell.written = {me.now(), me.index};
    cell.initialised |= bytes_of(i, offset, bytes);
    cell.site = site;
  }
}

void SharedMemory::expect(const void* address, size_t bytes, const void* site) {
  const auto [first, last] = granules(address, bytes, site);
  for (size_t i = first; i <= last; ++i) {
    check_write(i, site);
    cells_[i].awaited = true;
    cells_[i].site = site;
  }
}

void SharedMemory::expect_through_proxy(const void* address, size_t bytes, const void* site) {
  const auto [first, last] = granules(address, bytes, site);
  for (size_t i = first; i <= last; ++i) {
    const Cell& cell = cells_[i];
    if (cell.initialised && !cell.awaited && self().after(cell.written) && !is_fenced(self(), cell.written)) {
      fault(site, "has TMA write byte ", i * granule,
            " of shared memory, where a generic write is not yet fenced: ", name_of(cell.written.thread),
            " wrote it and did no fence.proxy.async; written at ", where(cell.site));
    }
  }
  expect(address, bytes, site);
}

void SharedMemory::landed(const void* address, size_t bytes) { landed(address, bytes, {self().now(), self().index}); }

void SharedMemory::landed(const void* address, size_t bytes, Moment by) {
  const size_t offset = offset_of(address);
  machine.counts.shared_written += static_cast<int64_t>(bytes);
  for (size_t i = offset / granule; i <= (offset + bytes - 1) / granule; ++i) {
    cells_[i].awaited = false;
    cells_[i].written = by;
    cells_[i].initialised |= bytes_of(i, offset, bytes);
  }
}

void SharedMemory::report_reading(size_t i, const void* site) const {
  const uint32_t expected = static_cast<uint32_t>(i * granule / chunk);
  for (const auto& reading : readings_) {
    if (std::find(reading->chunks.begin(), reading->chunks.end(), expected) == reading->chunks.end()) continue;
    fault(site, "overwrites byte ", i * granule, " of shared memory, which ", reading->what, " in flight of ",
          name_of(*reading->by), " still reads; issued at ", where(reading->site));
  }
  fault(site, "overwrites byte ", i * granule, " of shared memory, which is still read");
}

void SharedMemory::check_proxy_read(size_t i, const Reading& reading, std::span<Thread* const> threads) const {
  constexpr uint8_t all_bytes = (1u << granule) - 1;
  const Cell& cell = cells_[i];
  const char* what = reading.what;
  if (cell.barrier) fault(reading.site, what, " reads byte ", i * granule, " of shared memory, which is an mbarrier's");
  if (cell.awaited) {
    fault(reading.site, what, " reads byte ", i * granule,
          " of shared memory, where an asynchronous copy has yet to land; issued at ", where(cell.site));
  }
  if (cell.initialised != all_bytes) {
    fault(reading.site, what, " reads byte ", i * granule, " of shared memory, which nobody has written");
  }
  for (const Thread* t : threads) {
    if (!t->after(cell.written)) {
      fault_of(*t, reading.site, what, " reads byte ", i * granule, " of shared memory, which ",
               name_of(cell.written.thread), " wrote with ", missing_order(*t, cell.written), "; written at ",
               where(cell.site));
    }
    if (!is_fenced(*t, cell.written)) {
      fault_of(*t, reading.site, what, " reads byte ", i * granule,
               " of shared memory, where a generic write is not yet fenced: ", name_of(cell.written.thread),
               " wrote it and did no fence.proxy.async before the two were ordered; written at ", where(cell.site));
    }
  }
}

void SharedMemory::hold(const std::shared_ptr<const Reading>& reading, std::span<Thread* const> threads) {
  Moment checked;  // most of it has one writer
  for (const uint32_t at : reading->chunks) {
    const auto [first, last] = granules(data_ + at * chunk, chunk, reading->site);
    for (size_t i = first; i <= last; ++i) {
      const Cell& cell = cells_[i];
      const bool known = cell.written == checked && checked.time != 0;
      check_proxy_read(i, *reading, known ? std::span<Thread* const>() : threads);
      checked = cell.written;
      ++cells_[i].readings;
    }
  }
  machine.counts.shared_read += static_cast<int64_t>(reading->chunks.size() * chunk);
  readings_.push_back(reading);
}

void SharedMemory::release(const std::shared_ptr<const Reading>& reading, Moment end, size_t reader) {
  const auto held = std::find(readings_.begin(), readings_.end(), reading);
  if (held == readings_.end()) return;
  for (const uint32_t at : reading->chunks) {
    for (size_t i = at * chunk / granule; i < (at + 1) * chunk / granule; ++i) {
      --cells_[i].readings;
      reads_[i * readers_ + reader] = end;
    }
  }
  readings_.erase(held);
}

void SharedMemory::make_barrier(const void* address, const void* site) {
  constexpr size_t bytes = 8;
  write(address, bytes, site);
  for (size_t i = offset_of(address) / granule, n = 0; n < bytes / granule; ++i, ++n) cells_[i].barrier = true;
}

void SharedMemory::drop_barrier(const void* address, const void* site) {
  constexpr size_t bytes = 8;
  for (size_t i = offset_of(address) / granule, n = 0; n < bytes / granule; ++i, ++n) {
    cells_[i] = {};
    cells_[i].written = {self().now(), self().index};
    cells_[i].site = site;
  }
}

}  // namespace vggfast::sim
