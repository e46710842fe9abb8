// Tensors for the C++ tests: exactly sized, poisoned memory, and the plain arrays of doubles they are compared with.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "vggfast/cpu.h"
#include "vggfast/tensor.h"

#if defined(__SANITIZE_ADDRESS__)  // GCC
#define VGGFAST_TEST_ASAN
#elif defined(__has_feature)  // Clang
#if __has_feature(address_sanitizer)
#define VGGFAST_TEST_ASAN
#endif
#endif

namespace vggfast::test {

/// Exactly `bytes` bytes of 0xFF (a NaN in either dtype). Under AddressSanitizer a heap block, with its red zones; else
/// the end of the block touches a page that nobody may touch, which sees masked vector loads and stores too.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes) {
#if defined(VGGFAST_TEST_ASAN)
    base_ = static_cast<unsigned char*>(::operator new(bytes));
    data_ = base_;
#else
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = (bytes + page - 1) / page * page + page;
    void* base = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    VGGFAST_CHECK(base != MAP_FAILED, "mmap of ", mapped_, " bytes failed");
    base_ = static_cast<unsigned char*>(base);
    data_ = base_ + mapped_ - page - bytes;
    VGGFAST_CHECK(mprotect(base_ + mapped_ - page, page, PROT_NONE) == 0, "mprotect failed");
    std::memset(base_, 0xFF, mapped_ - page - bytes);
#endif
    std::memset(data_, 0xFF, bytes);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
#if defined(VGGFAST_TEST_ASAN)
    ::operator delete(base_);
#else
    for (const unsigned char* p = base_; p < data_; ++p) CHECK(*p == 0xFF, "written ", data_ - p, " bytes before");
    munmap(base_, mapped_);
#endif
  }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  [[maybe_unused]] size_t mapped_ = 0;
  unsigned char *base_ = nullptr, *data_ = nullptr;
};

/// A tensor and the memory that it views.
struct Held {
  std::unique_ptr<Buffer> memory;
  Tensor view;

  operator const Tensor&() const { return view; }
  bool same_bytes(const Held& other) const {
    return memory->bytes() == other.memory->bytes() &&
           (memory->bytes() == 0 || std::memcmp(memory->data(), other.memory->data(), memory->bytes()) == 0);
  }
};

using Order = std::vector<size_t>;  // axes, the outermost in memory first
inline const Order nhwc_order{0, 2, 3, 1};

/// A poisoned tensor whose axes lie in memory in `order`, every stride `gap` times that of a dense one.
inline Held make(DType dtype, const std::vector<int64_t>& shape, const Order& order, int64_t gap = 1) {
  Tensor view{.dtype = dtype, .shape = shape, .strides = std::vector<int64_t>(shape.size())};
  int64_t stride = gap, last = 0;
  for (size_t i = order.size(); i-- > 0;) {
    view.strides[order[i]] = stride;
    last += (shape[order[i]] - 1) * stride;
    stride *= shape[order[i]];
  }
  auto memory = std::make_unique<Buffer>(view.numel() == 0 ? 0 : static_cast<size_t>(last + 1) * size_of(dtype));
  view.data = view.numel() == 0 ? nullptr : memory->data();  // as torch has it
  return {std::move(memory), std::move(view)};
}
inline Held make_vector(DType dtype, int64_t extent) { return make(dtype, {extent}, {0}); }
inline Held make_nhwc(DType dtype, int64_t n, int64_t c, int64_t h, int64_t w) {
  return make(dtype, {n, c, h, w}, nhwc_order);
}

/// Workspaces of exactly `bytes` bytes.
struct HeldWorkspace {
  Buffer memory;
  explicit HeldWorkspace(size_t bytes) : memory(bytes) {}
  operator Workspace() const { return {memory.bytes() == 0 ? nullptr : memory.data(), memory.bytes()}; }
};

/// Doubles by (n, c, h, w): what is computed by naive loops. A vector of C is (1, C, 1, 1).
struct Array {
  int64_t n = 0, c = 0, h = 0, w = 0;
  std::vector<double> values;

  Array(int64_t n_, int64_t c_, int64_t h_, int64_t w_)
      : n(n_), c(c_), h(h_), w(w_), values(static_cast<size_t>(n_ * c_ * h_ * w_)) {}
  double& at(int64_t in, int64_t ic, int64_t iy, int64_t ix) {
    return values[static_cast<size_t>(((in * c + ic) * h + iy) * w + ix)];
  }
  double at(int64_t in, int64_t ic, int64_t iy, int64_t ix) const {
    return const_cast<Array*>(this)->at(in, ic, iy, ix);
  }
  std::vector<int64_t> shape() const { return {n, c, h, w}; }
};

inline Array absolute(Array a) {
  for (double& v : a.values) v = std::fabs(v);
  return a;
}

/// Values that either dtype holds exactly: `integers` so small that every sum of products is exact too, or `reals`.
enum class Fill { integers, reals };

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  Array array(Fill fill, int64_t n, int64_t c, int64_t h, int64_t w) {
    Array out(n, c, h, w);
    for (double& v : out.values) v = fill == Fill::integers ? integer(-3, 3) : static_cast<float>(real());
    return out;
  }
  int integer(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
  double real() { return std::uniform_real_distribution<double>(-1, 1)(engine_); }

 private:
  std::mt19937 engine_;
};

/// Calls visit(element offset of the tensor, index into Array::values) for each element of a tensor of rank 1, 2 or 4.
template <class Visit>
void for_each_element(const Tensor& t, Visit visit) {
  std::array<int64_t, 4> shape{1, 1, 1, 1}, strides{};
  const size_t first = t.dim() == 1 ? 1 : 0;
  for (size_t i = 0; i < t.shape.size(); ++i) {
    shape[first + i] = t.shape[i];
    strides[first + i] = t.strides[i];
  }
  size_t index = 0;
  for (int64_t n = 0; n < shape[0]; ++n)
    for (int64_t c = 0; c < shape[1]; ++c)
      for (int64_t h = 0; h < shape[2]; ++h)
        for (int64_t w = 0; w < shape[3]; ++w)
          visit(n * strides[0] + c * strides[1] + h * strides[2] + w * strides[3], index++);
}

inline void write(const Tensor& t, const Array& a) {
  for_each_element(t, [&](int64_t at, size_t i) {
    if (t.dtype == DType::f32) {
      t.as<float>()[at] = static_cast<float>(a.values[i]);
    } else {
      t.as<double>()[at] = a.values[i];
    }
  });
}
inline double read(const Tensor& t, int64_t at) {
  return t.dtype == DType::f32 ? t.as<float>()[at] : t.as<double>()[at];
}

inline Held put(DType dtype, const Array& a, const Order& order = nhwc_order, int64_t gap = 1) {
  Held held = make(dtype, {a.n, a.c, a.h, a.w}, order, gap);
  write(held, a);
  return held;
}
inline Held put_vector(DType dtype, const Array& a) {
  Held held = make_vector(dtype, a.c);
  write(held, a);
  return held;
}

inline double epsilon(DType dtype) {
  return dtype == DType::f32 ? std::numeric_limits<float>::epsilon() : std::numeric_limits<double>::epsilon();
}

/// Whether `value` is at most `allowed` off from `want`. Infinities must be equal, and NaN is near NaN alone.
inline bool is_near(double value, double want, double allowed) {
  return value == want || (std::isnan(value) && std::isnan(want)) ||
         (std::isfinite(want) && std::fabs(value - want) <= allowed);
}

/// Compares each element; it may be `roundings` epsilons of `magnitude` off (0: equal, and NaN where NaN is expected).
template <class... Parts>
void check_tensor(const char* file, int line, const Tensor& got, const Array& wanted, double roundings,
                  const Array& magnitude, const Parts&... parts) {
  size_t seen = 0;
  bool reported = false;
  for_each_element(got, [&](int64_t at, size_t i) {
    ++checks;
    ++seen;
    const double value = read(got, at), want = wanted.values.at(i);
    const double allowed = roundings * epsilon(got.dtype) * magnitude.values.at(i);
    if (!is_near(value, want, allowed) && !std::exchange(reported, true)) {
      report(file, line, "element ", i, " of ", describe(got.shape), " is ", value, ", expected ", want, " +- ",
             allowed, "; ", parts...);
    }
  });
  if (seen != wanted.values.size()) report(file, line, "shape ", describe(got.shape), " is not the reference's");
}

#define CHECK_SAME(got, wanted, ...) \
  ::vggfast::test::check_tensor(__FILE__, __LINE__, got, wanted, 0.0, wanted, __VA_ARGS__)
#define CHECK_NEAR(got, wanted, roundings, magnitude, ...) \
  ::vggfast::test::check_tensor(__FILE__, __LINE__, got, wanted, roundings, magnitude, __VA_ARGS__)

/// Calls body(dtype, name) for each instruction set of this machine, put in use, and each dtype.
template <class Body>
void for_each_setting(Body body) {
  for (const std::string& isa : cpu_isas()) {
    set_cpu_isa(isa);
    for (DType dtype : {DType::f32, DType::f64}) body(dtype, isa + " " + name_of(dtype));
  }
}

}  // namespace vggfast::test
