// Linear layers on the CPU: checks, and how threads divide outputs or inputs. Kernels: cpu/kernels/linear.h, and for
// bfloat16 those of cpu/algorithms/tiles_linear.h.
#include "vggfast/linear.h"

#include <algorithm>

#include "core/conv_checks.h"
#include "cpu/algorithms/tiles_linear.h"
#include "cpu/kernel_table.h"
#include "cpu/parallel.h"
#include "vggfast/cpu.h"
#include "vggfast/error.h"

namespace vggfast {
namespace {

using cpu::Bf16;

constexpr int64_t least_outputs = 96;                      // to a task
constexpr int64_t least_inputs = 256, most_inputs = 1024;  // to a task; the gradients of more would leave the cache

/// Throws unless `t` is a matrix of a dtype that the kernels take.
void check_taken(const Tensor& t, const char* name) {
  VGGFAST_CHECK(t.dim() == 2, name, " must have 2 axes, got shape ", describe(t.shape));
  VGGFAST_CHECK(t.dtype == DType::f32 || (t.dtype == DType::bf16 && cpu::kernels().tiles), name,
                " must be float32, or bfloat16 on instruction set amx or amx-emulated, got ", name_of(t.dtype), " on ",
                cpu_isa());
}

void check_matrix(const Tensor& t, const char* name, int64_t rows, int64_t columns, DType dtype) {
  check_like(t, name, {rows, columns}, dtype, Device::cpu);
  VGGFAST_CHECK((t.stride(1) == 1 || columns <= 1) && (t.stride(0) == columns || rows <= 1), name,
                " is not contiguous");
}

/// The sizes of x or gx, weight or gw, and y or gy, whichever way the product goes.
cpu::LinearArgs args_of(const Tensor& x, const char* x_name, const Tensor& weight, const char* weight_name,
                        const Tensor& y, const char* y_name) {
  check_taken(x, x_name);
  VGGFAST_CHECK(y.dim() == 2, y_name, " must have 2 axes, got shape ", describe(y.shape));
  check_matrix(x, x_name, x.size(0), x.size(1), x.dtype);
  check_matrix(y, y_name, x.size(0), y.size(1), x.dtype);
  check_matrix(weight, weight_name, y.size(1), x.size(1), x.dtype);
  return {.rows = x.size(0), .inputs = x.size(1), .outputs = y.size(1)};
}

cpu::TileLinear on_tiles(const cpu::LinearArgs& a, Context context) {
  return {a.rows, a.inputs, a.outputs, context.threads};
}

/// fprop's workspace for bfloat16: y before it is rounded, the bias in float, and what the product takes.
struct FpropRoom {
  size_t y, bias, product;

  FpropRoom(const cpu::TileLinear& layer)
      : y(floats(layer.rows * layer.outputs)), bias(floats(layer.outputs)), product(layer.fprop_bytes()) {}
  static size_t floats(int64_t count) { return (static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64; }
  size_t bytes() const { return y + bias + product; }
};

void fprop_on_tiles(const cpu::TileLinear& layer, const Tensor& x, const Tensor& weight, const Tensor* bias,
                    const Tensor& y, Workspace workspace) {
  const FpropRoom room(layer);
  check_workspace(workspace, room.bytes());
  auto* const sums = static_cast<std::byte*>(workspace.data);
  auto *const wide = reinterpret_cast<float*>(sums), *wide_bias = reinterpret_cast<float*>(sums + room.y);
  if (bias) cpu::kernels().to_float(bias->as<Bf16>(), layer.outputs, wide_bias);
  layer.fprop(x.as<Bf16>(), layer.matrix(weight.as<Bf16>()), bias ? wide_bias : nullptr, false, wide,
              sums + room.y + room.bias);
  cpu::kernels().to_bf16(wide, layer.rows * layer.outputs, y.as<Bf16>());
}

}  // namespace

size_t linear_fprop_workspace(const Tensor& x, const Tensor& weight, Context context) {
  check_taken(x, "x");
  check_taken(weight, "weight");
  if (x.dtype == DType::f32) return 0;
  return FpropRoom({x.size(0), x.size(1), weight.size(0), context.threads}).bytes();
}

size_t linear_dgrad_workspace(const Tensor& gy, const Tensor& weight, Context context) {
  check_taken(gy, "gy");
  check_taken(weight, "weight");
  if (gy.dtype == DType::f32) return 0;
  return cpu::TileLinear{gy.size(0), weight.size(1), gy.size(1), context.threads}.dgrad_bytes();
}

size_t linear_wgrad_workspace(const Tensor& x, const Tensor& gy, Context context) {
  check_taken(x, "x");
  check_taken(gy, "gy");
  if (x.dtype == DType::f32) return 0;
  return cpu::TileLinear{x.size(0), x.size(1), gy.size(1), context.threads}.wgrad_bytes();
}

void linear_fprop(const Tensor& x, const Tensor& weight, const Tensor* bias, const Tensor& y, Workspace workspace,
                  Context context) {
  cpu::LinearArgs args = args_of(x, "x", weight, "weight", y, "y");
  if (bias) check_like(*bias, "bias", {args.outputs}, x.dtype, Device::cpu);
  VGGFAST_CHECK(!bias || bias->stride(0) == 1 || args.outputs == 1, "bias is not contiguous");
  if (x.dtype == DType::bf16) return fprop_on_tiles(on_tiles(args, context), x, weight, bias, y, workspace);
  args.x = x.as<float>();
  args.weight = weight.as<float>();
  args.bias = bias ? bias->as<float>() : nullptr;
  args.y = y.as<float>();
  cpu::parallel_ranges(args.outputs, least_outputs, context.threads,
                       [&](int64_t begin, int64_t end, int) { cpu::kernels().linear_fprop(args, begin, end); });
}

void linear_dgrad(const Tensor& gy, const Tensor& weight, const Tensor& gx, Workspace workspace, Context context) {
  cpu::LinearArgs args = args_of(gx, "gx", weight, "weight", gy, "gy");
  if (gy.dtype == DType::bf16) {
    const cpu::TileLinear layer = on_tiles(args, context);
    check_workspace(workspace, layer.dgrad_bytes());
    return layer.dgrad(gy.as<Bf16>(), weight.as<Bf16>(), gx.as<Bf16>(), workspace.data);
  }
  args.y = gy.as<float>();
  args.weight = weight.as<float>();
  args.gx = gx.as<float>();
  if (args.outputs == 0) std::fill_n(args.gx, args.rows * args.inputs, 0.0f);
  const int64_t even = cpu::ceil_div(args.inputs, int64_t{context.threads});
  const int64_t each = std::clamp(cpu::ceil_div(even, least_inputs) * least_inputs, least_inputs, most_inputs);
  cpu::parallel_for(cpu::ceil_div(args.inputs, each), context.threads, [&](int64_t task, int) {
    cpu::kernels().linear_dgrad(args, task * each, std::min((task + 1) * each, args.inputs));
  });
}

void linear_wgrad(const Tensor& x, const Tensor& gy, const Tensor& gw, Workspace workspace, Context context) {
  cpu::LinearArgs args = args_of(x, "x", gw, "gw", gy, "gy");
  if (x.dtype == DType::bf16) {
    const cpu::TileLinear layer = on_tiles(args, context);
    check_workspace(workspace, layer.wgrad_bytes());
    return layer.wgrad(x.as<Bf16>(), gy.as<Bf16>(), gw.as<Bf16>(), workspace.data);
  }
  args.x = x.as<float>();
  args.y = gy.as<float>();
  args.gw = gw.as<float>();
  args.stream = cpu::streams(args.gw, args.outputs * args.inputs, args.inputs);
  cpu::parallel_ranges(args.outputs, least_outputs, context.threads,
                       [&](int64_t begin, int64_t end, int) { cpu::kernels().linear_wgrad(args, begin, end); });
}

}  // namespace vggfast
