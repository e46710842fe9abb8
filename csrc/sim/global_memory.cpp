#include "sim/global_memory.h"

#include <algorithm>

#include "sim/machine.h"

namespace vggfast::sim {
namespace {

struct Writer {
  uint32_t launch = 0;
  uint32_t thread = 0;
};
constexpr uint32_t atomics = ~0u;  // in place of a thread

struct Range {
  uintptr_t begin, end;
  int uses;
  std::vector<Writer> writers;   // of every byte; empty until the first write
  uint32_t last_written_by = 0;  // a launch
};

std::vector<Range> ranges;     // by address
std::vector<Range> forgotten;  // that were given to no launch since the last one wrote to them
size_t last_hit = 0;

Range* range_of(uintptr_t address, size_t bytes) {
  const auto holds = [&](const Range& r) { return address >= r.begin && address + bytes <= r.end; };
  if (last_hit < ranges.size() && holds(ranges[last_hit])) return &ranges[last_hit];
  for (size_t i = 0; i < ranges.size(); ++i) {
    if (holds(ranges[i])) return &ranges[last_hit = i];
  }
  return nullptr;
}

uint32_t grid_index() {
  const Thread& t = self();
  const dim3 at = t.block->place, grid = machine.launch.grid;
  const uint32_t block = (at.z * grid.y + at.y) * grid.x + at.x;
  return block * t.block->threads + t.index % t.block->threads;
}

Range& checked(uintptr_t address, size_t bytes, const char* verb, const void* site) {
  if (Range* range = range_of(address, bytes)) return *range;
  const Range* nearest = nullptr;
  for (const Range& r : ranges) {
    if (address + bytes > r.begin && (!nearest || r.begin > nearest->begin)) nearest = &r;
  }
  if (!nearest) fault(site, verb, " ", bytes, " bytes of global memory that the launch was not given");
  fault(site, verb, " ", bytes, " bytes of global memory, ", static_cast<int64_t>(address - nearest->begin),
        " bytes from the start of a tensor of ", nearest->end - nearest->begin);
}

void check_writer(const Range& range, uintptr_t address, size_t bytes, uint32_t me, const char* verb,
                  const void* site) {
  if (range.writers.empty()) return;
  for (size_t i = address - range.begin; i < address - range.begin + bytes; ++i) {
    const Writer writer = range.writers[i];
    if (writer.launch == machine.launches && writer.thread != me) {
      fault(site, verb, " byte ", i, " of a tensor, which another thread of this launch has written",
            writer.thread == atomics ? " by an atomic operation" : "");
    }
  }
}

/// Faults where the launch before may have written to this, and the running thread has not waited for it.
void check_published(uintptr_t address, size_t bytes, const void* site) {
  if (is_after_predecessors()) return;
  const auto check = [&](const Range& range) {
    if (range.last_written_by + 1 < machine.launches || range.writers.empty()) return;
    const uintptr_t begin = std::max(address, range.begin), end = std::min(address + bytes, range.end);
    for (uintptr_t at = begin; at < end; ++at) {
      if (range.writers[at - range.begin].launch + 1 != machine.launches) continue;
      fault(site, "reads byte ", at - range.begin, " of a tensor, which kernel ", machine.predecessor,
            " has written, before griddepcontrol.wait: it may not have ended");
    }
  };
  std::for_each(ranges.begin(), ranges.end(), check);
  std::for_each(forgotten.begin(), forgotten.end(), check);
}

void record(uintptr_t address, size_t bytes, uint32_t me, const char* verb, const void* site) {
  Range& range = checked(address, bytes, verb, site);
  if (!is_after_predecessors()) {
    fault(site, verb, " ", bytes,
          " bytes of global memory before griddepcontrol.wait: kernels before this one may not ",
          "have ended, and may read and write them");
  }
  check_writer(range, address, bytes, me, verb, site);
  range.last_written_by = machine.launches;
  if (range.writers.empty()) range.writers.resize(range.end - range.begin);
  const size_t offset = address - range.begin;
  std::fill_n(range.writers.begin() + static_cast<ptrdiff_t>(offset), bytes, Writer{machine.launches, me});
  machine.counts.global_written += static_cast<int64_t>(bytes);
}

}  // namespace

Global::Global(const void* data, size_t bytes) : begin_(reinterpret_cast<uintptr_t>(data)), end_(begin_ + bytes) {
  const auto at =
      std::find_if(ranges.begin(), ranges.end(), [&](const Range& r) { return r.begin == begin_ && r.end == end_; });
  if (at != ranges.end()) {
    ++at->uses;
  } else {
    ranges.push_back({begin_, end_, 1, {}, 0});
  }
}

Global::~Global() {
  const auto at =
      std::find_if(ranges.begin(), ranges.end(), [&](const Range& r) { return r.begin == begin_ && r.end == end_; });
  if (--at->uses > 0) return;
  std::erase_if(forgotten, [](const Range& r) { return r.last_written_by != machine.launches; });
  if (at->last_written_by == machine.launches) forgotten.push_back(std::move(*at));
  ranges.erase(at);
}

void read_global(const void* address, size_t bytes, const void* site) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  check_writer(checked(at, bytes, "reads", site), at, bytes, grid_index(), "reads", site);
  check_published(at, bytes, site);
  machine.counts.global_read += static_cast<int64_t>(bytes);
  if (settings().blocks == INT64_MAX) return;
  for (uintptr_t s = at / sector; s <= (at + bytes - 1) / sector; ++s) self().block->sectors.insert(s);
}

void write_global(const void* address, size_t bytes, const void* site) {
  record(reinterpret_cast<uintptr_t>(address), bytes, grid_index(), "writes", site);
}

void update_global(const void* address, size_t bytes, const void* site) {
  record(reinterpret_cast<uintptr_t>(address), bytes, atomics, "updates", site);
}

}  // namespace vggfast::sim
