// wgmma: a warpgroup's products of operands in shared memory. A product is computed when the first of its threads waits
// for it; until a thread has waited, its accumulators hold a NaN that nobody else writes.
#include <algorithm>
#include <bit>
#include <cstring>

#include "sim/descriptor.h"
#include "sim/hopper.h"
#include "sim/instructions.h"
#include "sim/numbers.h"
#include "sim/products.h"
#include "sim/warp.h"

namespace vggfast::sim {
namespace {

constexpr unsigned rows = 64, warpgroup = 128, a_registers_of_a_thread = 4;
constexpr uint32_t poison = 0x7fa0dead;  // signalling: arithmetic changes it

/// The accumulators of products that follow each other in the same registers.
struct Accumulators {
  float* registers[warpgroup];
  std::vector<float> values;  // by thread, then register
};

unsigned element_bytes(Narrow type) {
  switch (type) {
    case Narrow::bf16:
    case Narrow::f16:
      return 2;
    case Narrow::tf32:
      return 4;
    case Narrow::e4m3:
    case Narrow::e5m2:
      return 1;
  }
  return 0;
}

float value_of(Narrow type, const char* bytes) {
  uint32_t bits = 0;
  std::memcpy(&bits, bytes, element_bytes(type));
  switch (type) {
    case Narrow::bf16:
      return from_bf16(static_cast<uint16_t>(bits));
    case Narrow::f16:
      return from_f16(static_cast<uint16_t>(bits));
    case Narrow::tf32:
      return from_tf32(bits);
    case Narrow::e4m3:
      return from_e4m3(static_cast<uint8_t>(bits));
    case Narrow::e5m2:
      return from_e5m2(static_cast<uint8_t>(bits));
  }
  return 0;
}

}  // namespace

struct Wgmma {
  WgmmaForm form;
  bool a_in_registers, scale_d;
  Descriptor a, b;
  uint32_t a_registers[warpgroup][a_registers_of_a_thread];
  std::shared_ptr<Accumulators> d;
  Block* block;
  std::shared_ptr<const Reading> reading;
  size_t reader;   // of the shared memory's readers: this warpgroup
  uint16_t agent;  // who reads
  bool done = false;
  Moment end;

  unsigned k() const { return 32 / element_bytes(form.type); }
};

struct WarpgroupMeeting {
  WgmmaForm form;
  bool a_in_registers, scale_d;
  uint64_t a, b;
  unsigned arrived = 0;
  Thread* threads[warpgroup] = {};
  const void* sites[warpgroup] = {};
  float* d[warpgroup] = {};
  const uint32_t* a_registers[warpgroup] = {};
};

namespace {

/// Where element (row, k) of an operand lies in the block's shared memory.
uint32_t offset_of(const Descriptor& at, bool transposed, unsigned bytes, unsigned row, unsigned k) {
  return (transposed ? at.mn_major(row, k) : at.k_major(row, k * bytes)) - SharedMemory::first_address;
}

/// One operand from shared memory as numbers, by row, then k; or by k, then row.
std::vector<float> load_operand(const Wgmma& product, const Descriptor& at, bool transposed, unsigned count,
                                bool k_first) {
  const unsigned k = product.k(), bytes = element_bytes(product.form.type);
  std::vector<float> values(size_t(count) * k);
  const char* shared = product.block->shared.data();
  for (unsigned row = 0; row < count; ++row) {
    for (unsigned i = 0; i < k; ++i) {
      const float value = value_of(product.form.type, shared + offset_of(at, transposed, bytes, row, i));
      values[k_first ? i * count + row : row * k + i] = value;
    }
  }
  return values;
}

std::vector<float> a_from_registers(const Wgmma& product) {
  const unsigned k = product.k(), bytes = element_bytes(product.form.type), per = 4 / bytes;
  std::vector<float> values(size_t(rows) * k);
  for (unsigned thread = 0; thread < warpgroup; ++thread) {
    const unsigned group = thread % 32 / 4, within = thread % 4;
    for (unsigned reg = 0; reg < a_registers_of_a_thread; ++reg) {
      const unsigned row = thread / 32 * 16 + group + reg % 2 * 8;
      for (unsigned i = 0; i < per; ++i) {
        const char* from = reinterpret_cast<const char*>(&product.a_registers[thread][reg]) + i * bytes;
        values[row * k + within * per + i + reg / 2 * 4 * per] = value_of(product.form.type, from);
      }
    }
  }
  return values;
}

void compute(Wgmma& product) {
  constexpr unsigned tile = Products::at_a_time;
  const WgmmaForm& form = product.form;
  const unsigned k = product.k(), per_thread = form.n / 2;
  const Products products(form.type,
                          product.a_in_registers ? a_from_registers(product)
                                                 : load_operand(product, product.a, form.transposed_a, rows, false),
                          load_operand(product, product.b, form.transposed_b, form.n, true), k,
                          form.negate_a != form.negate_b);
  for (unsigned row = 0; row < rows; ++row) {
    for (unsigned column = 0; column < form.n; column += tile) {
      float* places[tile];
      float d[tile];
      for (unsigned j = 0; j < tile; ++j) {
        const unsigned thread = row / 16 * 32 + row % 8 * 4 + j / 2;
        places[j] = &product.d->values[thread * per_thread + column / 2 + row % 16 / 8 * 2 + j % 2];
        d[j] = product.scale_d ? *places[j] : 0;
      }
      products.add(row, column, d);
      for (unsigned j = 0; j < tile; ++j) *places[j] = d[j];
    }
  }
  machine.counts.multiply_adds += int64_t(rows) * form.n * k;
}

/// The product is over: what it read may be written by who knows of this.
void finish(Wgmma& product) {
  if (product.done) return;
  product.done = true;
  compute(product);
  product.end = {++machine.time, product.agent};
  product.block->shared.release(product.reading, product.end, product.reader);
}

void add_chunks(std::vector<uint32_t>& chunks, const Wgmma& product, const Descriptor& at, bool transposed,
                unsigned count) {
  const unsigned bytes = element_bytes(product.form.type), per_chunk = SharedMemory::chunk / bytes, k = product.k();
  for (unsigned row = 0; row < count; row += transposed ? per_chunk : 1) {
    for (unsigned i = 0; i < k; i += transposed ? 1 : per_chunk) {
      chunks.push_back(offset_of(at, transposed, bytes, row, i) / SharedMemory::chunk);
    }
  }
}

std::shared_ptr<Accumulators> accumulators_in_flight(const Thread& t, const float* d) {
  const unsigned lane_of_group = t.index % t.block->threads % warpgroup;
  const auto find = [&](const auto& group) -> std::shared_ptr<Accumulators> {
    for (const auto& product : group) {
      if (product->d->registers[lane_of_group] == d) return product->d;
    }
    return nullptr;
  };
  if (auto found = find(t.open_products)) return found;
  for (const auto& group : t.product_groups) {
    if (auto found = find(group)) return found;
  }
  return nullptr;
}

void check_fenced(const Thread& t, const float* d, unsigned per_thread, const void* site) {
  if (t.wgmma_fenced) return;
  const auto left = t.accumulators.find(const_cast<float*>(d));
  if (left == t.accumulators.end()) {
    fault_of(t, site, "a first wgmma into these registers without wgmma.fence since the last wait");
  }
  if (left->second.size() != per_thread || std::memcmp(left->second.data(), d, per_thread * sizeof(float)) != 0) {
    fault_of(t, site, "wgmma after its accumulators were written without wgmma.fence between");
  }
}

/// The accumulators of all threads: those of a product in flight in the same registers, or what the registers hold.
std::shared_ptr<Accumulators> take_accumulators(const WarpgroupMeeting& meeting) {
  const unsigned per_thread = meeting.form.n / 2;
  const auto before = accumulators_in_flight(*meeting.threads[0], meeting.d[0]);
  for (unsigned i = 0; i < warpgroup; ++i) {
    if (accumulators_in_flight(*meeting.threads[i], meeting.d[i]) != before) {
      fault_of(*meeting.threads[i], meeting.sites[i],
               "divergent warpgroup: not all of it has waited for the same products");
    }
  }
  if (before && before->values.size() != size_t(warpgroup) * per_thread) {
    fault(meeting.sites[0], "wgmma with N = ", meeting.form.n, " into the registers of one in flight with another N");
  }
  if (before) return before;
  auto taken = std::make_shared<Accumulators>();
  taken->values.resize(size_t(warpgroup) * per_thread);
  for (unsigned i = 0; i < warpgroup; ++i) {
    float* d = taken->registers[i] = meeting.d[i];
    check_fenced(*meeting.threads[i], d, per_thread, meeting.sites[i]);
    std::copy_n(d, per_thread, taken->values.begin() + i * per_thread);
    std::fill_n(d, per_thread, std::bit_cast<float>(poison));
  }
  return taken;
}

void issue(const WarpgroupMeeting& meeting, const void* site) {
  Thread& me = self();
  Block& block = *me.block;
  const unsigned group = me.index % block.threads / warpgroup, warps = (block.threads + 31) / 32;
  const size_t reader = machine.meetings.size() + block.rank * ((warps + 3) / 4) + group;
  std::ostringstream name;
  name << "wgmma of warpgroup " << group << " of block rank " << block.rank;
  const uint16_t agent = agent_of(name.str());
  auto product = std::make_shared<Wgmma>(Wgmma{meeting.form,
                                               meeting.a_in_registers,
                                               meeting.scale_d,
                                               Descriptor(meeting.a),
                                               Descriptor(meeting.b),
                                               {},
                                               nullptr,
                                               &block,
                                               nullptr,
                                               reader,
                                               agent,
                                               false,
                                               {}});
  auto reading = std::make_shared<Reading>(Reading{"wgmma", &me, site, {}});
  if (meeting.a_in_registers) {
    for (unsigned i = 0; i < warpgroup; ++i) {
      std::copy_n(meeting.a_registers[i], a_registers_of_a_thread, product->a_registers[i]);
      if (!meeting.threads[i]->wgmma_fenced) {
        fault_of(*meeting.threads[i], meeting.sites[i],
                 "wgmma with A in registers without wgmma.fence since the last wait");
      }
    }
  } else {
    add_chunks(reading->chunks, *product, product->a, meeting.form.transposed_a, rows);
  }
  add_chunks(reading->chunks, *product, product->b, meeting.form.transposed_b, meeting.form.n);
  product->reading = reading;
  block.shared.hold(reading, meeting.threads);
  product->d = take_accumulators(meeting);
  for (Thread* t : meeting.threads) t->open_products.push_back(product);
}

void check_form(const WgmmaForm& form, bool a_in_registers, uint64_t a, uint64_t b, const void* site) {
  if (form.n == 0 || form.n % 8 || form.n > 256)
    fault(site, "wgmma must have as N a multiple of 8 up to 256, got ", form.n);
  if ((form.transposed_a || form.transposed_b) && element_bytes(form.type) != 2) {
    fault(site, "wgmma of an operand whose K is not contiguous: only 16-bit types may");
  }
  if (form.transposed_a && a_in_registers) fault(site, "wgmma with A transposed in registers");
  if ((!a_in_registers && !Descriptor(a).is_legal) || !Descriptor(b).is_legal) {
    fault(site, "wgmma with a descriptor that sets bits without meaning: ", std::hex, a, ", ", b);
  }
}

/// The products of the oldest groups but `still_in_flight`, which leave the running thread's list.
std::vector<std::shared_ptr<Wgmma>> take_groups(unsigned still_in_flight) {
  std::vector<std::shared_ptr<Wgmma>> over;
  auto& groups = self().product_groups;
  while (groups.size() > still_in_flight) {
    over.insert(over.end(), groups.front().begin(), groups.front().end());
    groups.pop_front();
  }
  return over;
}

/// Gives the running thread its part of the accumulators, if no later product has them.
void give_back(const Wgmma& product, const void* site) {
  Thread& me = self();
  const unsigned i = me.index % me.block->threads % warpgroup, per_thread = product.form.n / 2;
  float* d = product.d->registers[i];
  if (!d || accumulators_in_flight(me, d)) return;
  const float* values = product.d->values.data() + i * per_thread;
  for (unsigned r = 0; r < per_thread; ++r) {
    if (std::bit_cast<uint32_t>(d[r]) != poison) {
      fault(site, "register ", r, " of the accumulators was written while a wgmma was in flight, issued at ",
            where(product.reading->site));
    }
  }
  std::copy_n(values, per_thread, d);
  me.accumulators[d].assign(values, values + per_thread);
  product.d->registers[i] = nullptr;
}

void converge(const char* what, const void* site) {
  meet(what, all_lanes, nullptr, site, [](Thread* const*, void* const*, uint32_t) {});
}

}  // namespace

void wgmma(const WgmmaForm& form, float* d, const uint32_t* a_registers, uint64_t a, uint64_t b, bool scale_d) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  Thread& me = self();
  Block& block = *me.block;
  const unsigned index = me.index % block.threads, group = index / warpgroup, place = index % warpgroup;
  check_form(form, a_registers, a, b, site);
  if ((group + 1) * warpgroup > block.threads) fault(site, "wgmma in a warpgroup of fewer than four warps");
  auto& meeting = block.warpgroups[group];
  if (!meeting) meeting.reset(new WarpgroupMeeting{form, a_registers != nullptr, scale_d, a_registers ? 0 : a, b});
  if (meeting->form != form || meeting->a_in_registers != (a_registers != nullptr) ||
      (!a_registers && meeting->a != a) || meeting->b != b || meeting->scale_d != scale_d) {
    const auto other = std::find_if(meeting->threads, meeting->threads + warpgroup, [](auto* t) { return t; });
    fault(site, "divergent warpgroup: this thread's wgmma has another form or other descriptors than that of ",
          name_of(**other), " at ", where(meeting->sites[other - meeting->threads]));
  }
  meeting->threads[place] = &me;
  meeting->sites[place] = site;
  meeting->d[place] = d;
  meeting->a_registers[place] = a_registers;
  if (++meeting->arrived < warpgroup) return wait_for("wgmma, for all four warps of the warpgroup", site);
  const std::shared_ptr<WarpgroupMeeting> met = std::move(meeting);
  meeting = nullptr;
  issue(*met, site);
  for (Thread* t : met->threads) {
    if (t != &me) wake(*t);
  }
}

void wgmma_fence() {
  const void* site = SIM_SITE;
  const Quiet quiet;
  converge("wgmma.fence", site);
  self().wgmma_fenced = true;
}

void wgmma_commit_group() {
  const void* site = SIM_SITE;
  const Quiet quiet;
  converge("wgmma.commit_group", site);
  self().product_groups.push_back(std::move(self().open_products));
  self().open_products.clear();
}

void wgmma_wait_group(unsigned still_in_flight) {
  const void* site = SIM_SITE;
  const Quiet quiet;
  converge("wgmma.wait_group", site);
  Thread& me = self();
  const auto over = take_groups(still_in_flight);
  for (const auto& product : over) {
    finish(*product);
    if (me.clock.size() <= product->agent) me.clock.resize(product->agent + 1u);
    me.clock[product->agent] = std::max(me.clock[product->agent], product->end.time);
  }
  for (const auto& product : over) give_back(*product, site);
  if (!over.empty()) me.wgmma_fenced = false;
}

}  // namespace vggfast::sim
