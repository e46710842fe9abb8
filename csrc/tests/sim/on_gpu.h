// Tensors of the simulated GPU, of any floating dtype: poisoned, announced to it, read and written as doubles.
#pragma once

#include <algorithm>

#include "../reference.h"
#include "cuda/launch.h"
#include "sim/numbers.h"

namespace vggfast::test {

inline const DType gpu_dtypes[] = {DType::bf16, DType::f16, DType::f32, DType::f64};
inline bool is_narrow(DType dtype) { return size_of(dtype) == 2; }

inline double get(const Tensor& t, int64_t at) {
  switch (t.dtype) {
    case DType::bf16:
      return sim::from_bf16(t.as<uint16_t>()[at]);
    case DType::f16:
      return sim::from_f16(t.as<uint16_t>()[at]);
    default:
      return read(t, at);
  }
}
inline void set(const Tensor& t, int64_t at, double value) {
  switch (t.dtype) {
    case DType::bf16:
      t.as<uint16_t>()[at] = sim::to_bf16(static_cast<float>(value));
      return;
    case DType::f16:
      t.as<uint16_t>()[at] = sim::to_f16(static_cast<float>(value));
      return;
    case DType::f32:
      t.as<float>()[at] = static_cast<float>(value);
      return;
    default:
      t.as<double>()[at] = value;
  }
}

/// A tensor that kernels may touch as long as this lives.
struct OnGpu {
  Held held;
  std::unique_ptr<sim::Global> memory;

  explicit OnGpu(Held tensor) : held(std::move(tensor)) {
    held.view.device = Device::cuda;
    if (held.memory->bytes() > 0) memory = std::make_unique<sim::Global>(held.memory->data(), held.memory->bytes());
  }
  OnGpu(DType dtype, const std::vector<int64_t>& shape, const Order& order) : OnGpu(make(dtype, shape, order)) {}
  operator const Tensor&() const { return held.view; }
  const Tensor* pointer() const { return &held.view; }
  void poison() const {
    if (held.memory->bytes() > 0) std::memset(held.memory->data(), 0xff, held.memory->bytes());
  }
};

inline OnGpu gpu_nhwc(DType dtype, int64_t n, int64_t c, int64_t h, int64_t w) {
  return {dtype, {n, c, h, w}, nhwc_order};
}
inline OnGpu gpu_nhwc(DType dtype, const Array& values) {
  OnGpu out = gpu_nhwc(dtype, values.n, values.c, values.h, values.w);
  for_each_element(out, [&](int64_t at, size_t i) { set(out, at, values.values[i]); });
  return out;
}
/// A copy for the CPU, its axes in order.
inline Held copy_for_cpu(const OnGpu& t) {
  const Tensor& from = t;
  Order order(from.shape.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  Held out = make(from.dtype, from.shape, order);
  if (out.memory->bytes() > 0) std::memcpy(out.memory->data(), from.data, out.memory->bytes());
  return out;
}
/// The same values for the CPU, in float64: what narrow dtypes made of them.
inline Held on_cpu(const OnGpu& t) {
  const Tensor& from = t;
  Held out = make(DType::f64, from.shape, from.dim() == 4 ? nhwc_order : Order{0, 1});
  for_each_element(from, [&](int64_t at, size_t) { set(out, at, get(from, at)); });
  return out;
}

/// Calls body(seed), with the simulator's threads in another order each time; a fault is a failed check.
template <class Body>
void in_orders(const std::string& name, Body body) {
  for (int seed = 0; seed < 2; ++seed) {
    sim::settings().seed = static_cast<uint64_t>(seed) * 1000;
    try {
      body();
    } catch (const sim::Fault& fault) {
      CHECK(false, name, ": ", fault.what());
    }
  }
}

/// Whether `got` is `wanted`, float64's result of the same layout, to some roundings (of float32, for float64 its own)
/// of a magnitude, and one of `got`'s dtype where that is narrow. 0 roundings: equal but for that.
inline void check_close(const Tensor& got, const Tensor& wanted, double roundings, double magnitude,
                        const std::string& name) {
  const double unit = got.dtype == DType::bf16 ? std::ldexp(1, -8) : got.dtype == DType::f16 ? std::ldexp(1, -11) : 0;
  const double least = got.dtype == DType::f16 ? std::ldexp(1, -25) : 0;
  const double eps = epsilon(got.dtype == DType::f64 ? DType::f64 : DType::f32);
  bool reported = false;
  for_each_element(got, [&](int64_t at, size_t i) {
    ++checks;
    const double value = get(got, at), want = get(wanted, at);
    const double off = roundings * eps * magnitude;
    const double allowed = off + (std::fabs(want) + off) * unit + least * (roundings > 0);
    const bool same = value == want || (std::isnan(value) && std::isnan(want)) || std::fabs(value - want) <= allowed;
    if (!same && !std::exchange(reported, true)) {
      report(__FILE__, __LINE__, name, ": element ", i, " of ", describe(got.shape), " ", name_of(got.dtype), " is ",
             value, ", expected ", want, " +- ", allowed);
    }
  });
}
inline void check_equal_bytes(const Tensor& got, const Tensor& wanted, const std::string& name) {
  const size_t bytes = static_cast<size_t>(got.numel()) * size_of(got.dtype);
  CHECK(bytes == 0 || std::memcmp(got.data, wanted.data, bytes) == 0, name);
}

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace vggfast::test
