// Tensors as the core sees them: an address, a logical NCHW shape, strides, a dtype and a device.
// The core owns no memory: outputs and workspaces are allocated by the caller.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace vggfast {

enum class DType { f32, f64, u8, i8, bf16, f16, i32, e4m3 };
enum class Device { cpu, cuda };

constexpr size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::u8:
    case DType::i8:
    case DType::e4m3:
      return 1;
  }
  return 0;
}
constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "float64";
    case DType::f32:
      return "float32";
    case DType::i32:
      return "int32";
    case DType::bf16:
      return "bfloat16";
    case DType::f16:
      return "float16";
    case DType::u8:
      return "uint8";
    case DType::i8:
      return "int8";
    case DType::e4m3:
      return "float8_e4m3fn";
  }
  return "unknown";
}
constexpr const char* name_of(Device device) { return device == Device::cpu ? "cpu" : "cuda"; }

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  Device device = Device::cpu;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;  // in elements

  int64_t dim() const { return static_cast<int64_t>(shape.size()); }
  int64_t size(int axis) const { return shape[static_cast<size_t>(axis)]; }
  int64_t stride(int axis) const { return strides[static_cast<size_t>(axis)]; }
  int64_t numel() const {
    int64_t count = 1;
    for (int64_t extent : shape) count *= extent;
    return count;
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

/// Scratch memory that the caller owns. `bytes` must be at least what the op's *_workspace function says.
struct Workspace {
  void* data = nullptr;
  size_t bytes = 0;
};

/// A number of CPU threads: 0 and less mean 1. Throws where it is more than any machine has, and so a mistake.
class Threads {
 public:
  static constexpr int most = 1024;

  constexpr Threads(int count)
      : count_(count <= most ? std::max(count, 1) : refuse(count)) {}  // NOLINT: it is a number
  constexpr operator int() const { return count_; }

 private:
  [[noreturn]] static int refuse(int count);

  int count_;
};

/// How a call runs: the number of CPU threads, and whether convolutions on the CPU are as with "direct" or as with
/// "auto", whatever set_conv_algorithm says, which unset follows; or the CUDA stream (a cudaStream_t) to launch on,
/// whether convolutions of float32 may round their factors to TF32, and whether nothing that may still run on the
/// stream writes their weights and biases: then they are read while the kernel before still runs.
struct Context {
  Threads threads = 1;
  void* stream = nullptr;
  bool tf32 = false;
  std::optional<bool> exact = {};
  bool fixed_weights = false;
};

std::string describe(const std::vector<int64_t>& shape);

/// Throws where an extent is negative, or there are more values than any memory holds: their products would overflow.
void check_extents(const std::vector<int64_t>& shape, const char* name);
/// Throws unless `t` is a dense 4-D tensor that lies as NHWC in memory (an axis of extent 1 may have any stride).
void check_nhwc(const Tensor& t, const char* name);
/// Throws unless `t` has this shape, dtype and device.
void check_like(const Tensor& t, const char* name, const std::vector<int64_t>& shape, DType dtype, Device device);

}  // namespace vggfast
