// TMA loads: boxes of a tensor, cut as the map says, that land in shared memory at any moment and then count on an
// mbarrier.
#include <algorithm>
#include <cstring>

#include "sim/global_memory.h"
#include "sim/hopper.h"
#include "sim/mbarrier.h"
#include "sim/numbers.h"
#include "sim/tma.h"

namespace vggfast::sim {
namespace {

/// The part of [first, first + count) that lies in a tensor of `dim` elements, for the row that starts at `row`.
BoxRow cut_row(const TensorMap& map, uint32_t linear, const char* row, int64_t first, uint32_t count) {
  const int64_t begin = std::max<int64_t>(first, 0), end = std::min<int64_t>(first + count, int64_t(map.dims[0]));
  if (begin >= end) return {linear, nullptr, 0, 0};
  const unsigned size = map.element_bytes;
  return {linear, row + begin * size, uint32_t(begin - first) * size, uint32_t(end - begin) * size};
}

/// A load on its way to one block.
struct Load {
  Block* block;
  uint32_t offset;
  size_t barrier_offset;
  uint16_t agent;
  const Thread* by;
  Moment asked;
  const void* site;
  std::shared_ptr<const BoxRows> box;
};

void round_to_tf32(char* values, size_t bytes) {
  for (uint32_t bits; bytes > 0; bytes -= sizeof(bits), values += sizeof(bits)) {
    std::memcpy(&bits, values, sizeof(bits));
    bits = to_tf32_even(bits);
    std::memcpy(values, &bits, sizeof(bits));
  }
}

template <class Visit>
void for_chunks(const BoxRows& box, uint32_t offset, Visit visit) {
  for (const BoxRow& row : box.rows) {
    for (uint32_t at = 0; at < box.row_bytes; at += SharedMemory::chunk) {
      visit(swizzled_offset(offset + row.linear + at, box.swizzle), row, at);
    }
  }
}

void land(const Load& load) {
  Block& block = *load.block;
  if (block.running == 0) fault_of(*load.by, load.site, "a TMA load lands in a block that has come to its end");
  --block.loads_in_flight;
  const auto barrier = block.mbarriers.find(load.barrier_offset);
  if (barrier == block.mbarriers.end() || barrier->second.agent != load.agent) {
    fault_of(*load.by, load.site, "a TMA load completes on an mbarrier that has been invalidated");
  }
  const Moment now{++machine.time, load.agent};
  std::vector<char> line(load.box->row_bytes);
  const BoxRow* current = nullptr;
  for_chunks(*load.box, load.offset, [&](uint32_t to, const BoxRow& row, uint32_t at) {
    if (&row != current) {
      current = &row;
      std::fill(line.begin(), line.end(), 0);
      if (row.bytes) std::memcpy(line.data() + row.skip, row.global, row.bytes);
      if (load.box->rounded) round_to_tf32(line.data(), line.size());
    }
    std::memcpy(block.shared.data() + to, line.data() + at, SharedMemory::chunk);
    block.shared.landed(block.shared.data() + to, SharedMemory::chunk, now);
  });
  complete_transaction(barrier->second, load.box->bytes(), load.asked, now, *load.by, load.site);
}

void issue(Block& block, void* shared, uint64_t* barrier, const std::shared_ptr<const BoxRows>& box, const void* site) {
  check_peer(block, block.arrivals, site);
  const MBarrier& counts = mbarrier_of_load(block, barrier, site);
  const uint32_t offset = box_offset(block, shared, site);
  for_chunks(*box, offset, [&](uint32_t to, const BoxRow&, uint32_t) {
    block.shared.expect_through_proxy(block.shared.data() + to, SharedMemory::chunk, site);
  });
  ++block.loads_in_flight;
  block.load_site = site;
  const Load load{&block, offset, counts.offset, counts.agent, &self(), {self().now(), self().index}, site, box};
  machine.in_flight.push_back([load] { land(load); });
}

void load(void* shared, uint64_t* barrier, BoxRows&& rows, uint16_t mask, const void* site) {
  const auto box = std::make_shared<const BoxRows>(std::move(rows));
  for (const BoxRow& row : box->rows) {
    if (row.bytes) read_global(row.global, row.bytes, site);
  }
  if (mask == 0) return issue(*self().block, shared, barrier, box, site);
  for (unsigned rank = 0; rank < 16; ++rank) {
    if (!(mask >> rank & 1)) continue;
    uint64_t* const there = static_cast<uint64_t*>(peer_address(barrier, rank, site));
    issue(*machine.blocks[rank], peer_address(shared, rank, site), there, box, site);
  }
}

}  // namespace

void check_map(const TensorMap& map, unsigned rank, bool im2col, const void* site) {
  if (map.im2col != im2col)
    fault(site, "uses ", map.im2col ? "an im2col" : "a tiled", " tensor map for the other kind");
  if (map.rank != rank) fault(site, "uses a tensor map of rank ", map.rank, " with ", rank, " coordinates");
}

uint32_t box_offset(const Block& block, const void* shared, const void* site) {
  constexpr uint32_t alignment = 128;
  const size_t offset = block.shared.offset_of(shared);
  if (!block.shared.owns(shared)) fault(site, "a TMA box at ", shared, ", outside the block's shared memory");
  if (offset % alignment) {
    fault(site, "a TMA box must begin at a multiple of ", alignment, " bytes of shared memory, got byte ", offset);
  }
  return static_cast<uint32_t>(offset);
}

BoxRows tiled_rows(const TensorMap& map, const int32_t* coordinates) {
  BoxRows box{{}, map.box[0] * map.element_bytes, map.swizzle, map.element == TensorMap::Element::tf32};
  uint32_t at[5] = {};
  uint32_t linear = 0;
  for (bool more = true; more; linear += box.row_bytes) {
    const char* row = map.data;
    bool is_inside = true;
    for (unsigned d = 1; d < map.rank; ++d) {
      const int64_t place = int64_t(coordinates[d]) + at[d];
      is_inside = is_inside && place >= 0 && place < int64_t(map.dims[d]);
      row += place * int64_t(map.strides[d]);
    }
    box.rows.push_back(is_inside ? cut_row(map, linear, row, coordinates[0], map.box[0])
                                 : BoxRow{linear, nullptr, 0, 0});
    more = false;
    for (unsigned d = 1; d < map.rank && !more; ++d) {
      more = ++at[d] < map.box[d];
      if (!more) at[d] = 0;
    }
  }
  return box;
}

BoxRows im2col_rows(const TensorMap& map, const int32_t* coordinates, const uint16_t* offsets, const void* site) {
  constexpr unsigned w = 1, h = 2, n = 3;
  BoxRows box{{}, map.channels * map.element_bytes, map.swizzle, map.element == TensorMap::Element::tf32};
  const int64_t first[] = {map.lower[0], map.lower[1]};
  const int64_t last[] = {int64_t(map.dims[w]) + map.upper[0] - 1, int64_t(map.dims[h]) + map.upper[1] - 1};
  int64_t x = coordinates[w], y = coordinates[h], image = coordinates[n];
  if (x < first[0] || x > last[0] || y < first[1] || y > last[1]) {
    fault(site, "an im2col load starts at pixel (", x, ", ", y, "), outside the box (", first[0], ", ", first[1],
          ") to (", last[0], ", ", last[1], ")");
  }
  if (offsets[0] > 255 || offsets[1] > 255)
    fault(site, "im2col offsets must be 0 to 255, got ", offsets[0], " and ", offsets[1]);
  for (uint32_t pixel = 0; pixel < map.pixels; ++pixel) {
    const int64_t column = x + offsets[0], line = y + offsets[1];
    const bool is_inside = column >= 0 && column < int64_t(map.dims[w]) && line >= 0 && line < int64_t(map.dims[h]) &&
                           image >= 0 && image < int64_t(map.dims[n]);
    const uint32_t linear = pixel * box.row_bytes;
    const char* row =
        map.data + column * int64_t(map.strides[w]) + line * int64_t(map.strides[h]) + image * int64_t(map.strides[n]);
    box.rows.push_back(is_inside ? cut_row(map, linear, row, coordinates[0], map.channels)
                                 : BoxRow{linear, nullptr, 0, 0});
    if (++x <= last[0]) continue;
    x = first[0];
    if (++y <= last[1]) continue;
    y = first[1];
    ++image;
  }
  return box;
}

void tma_load(void* shared, const TensorMap& map, uint64_t* barrier, unsigned rank, const int32_t* coordinates,
              uint16_t mask) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  check_map(map, rank, false, site);
  load(shared, barrier, tiled_rows(map, coordinates), mask, site);
}

void tma_load_im2col(void* shared, const TensorMap& map, uint64_t* barrier, unsigned rank, const int32_t* coordinates,
                     const uint16_t* offsets, uint16_t mask) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  check_map(map, rank, true, site);
  load(shared, barrier, im2col_rows(map, coordinates, offsets, site), mask, site);
}

}  // namespace vggfast::sim
