// Linear layers on the CPU: checks, and how threads divide outputs or inputs. Kernels: cpu/kernels/linear.h.
#include "vggfast/linear.h"

#include <algorithm>

#include "cpu/kernel_table.h"
#include "cpu/parallel.h"
#include "vggfast/error.h"

namespace vggfast {
namespace {

constexpr int64_t least_outputs = 96;                      // to a task
constexpr int64_t least_inputs = 256, most_inputs = 1024;  // to a task; the gradients of more would leave the cache

void check_matrix(const Tensor& t, const char* name, int64_t rows, int64_t columns) {
  check_like(t, name, {rows, columns}, DType::f32, Device::cpu);
  VGGFAST_CHECK((t.stride(1) == 1 || columns <= 1) && (t.stride(0) == columns || rows <= 1), name,
                " is not contiguous");
}

/// Of x or gx, weight or gw, and y or gy, whichever way the product goes.
cpu::LinearArgs args_of(const Tensor& x, const char* x_name, const Tensor& weight, const char* weight_name,
                        const Tensor& y, const char* y_name) {
  VGGFAST_CHECK(x.dim() == 2, x_name, " must have 2 axes, got shape ", describe(x.shape));
  VGGFAST_CHECK(y.dim() == 2, y_name, " must have 2 axes, got shape ", describe(y.shape));
  check_matrix(x, x_name, x.size(0), x.size(1));
  check_matrix(y, y_name, x.size(0), y.size(1));
  check_matrix(weight, weight_name, y.size(1), x.size(1));
  return {.rows = x.size(0), .inputs = x.size(1), .outputs = y.size(1)};
}

}  // namespace

void linear_fprop(const Tensor& x, const Tensor& weight, const Tensor* bias, const Tensor& y, Context context) {
  cpu::LinearArgs args = args_of(x, "x", weight, "weight", y, "y");
  if (bias) check_like(*bias, "bias", {args.outputs}, DType::f32, Device::cpu);
  VGGFAST_CHECK(!bias || bias->stride(0) == 1 || args.outputs == 1, "bias is not contiguous");
  args.x = x.as<float>();
  args.weight = weight.as<float>();
  args.bias = bias ? bias->as<float>() : nullptr;
  args.y = y.as<float>();
  cpu::parallel_ranges(args.outputs, least_outputs, context.threads,
                       [&](int64_t begin, int64_t end, int) { cpu::kernels().linear_fprop(args, begin, end); });
}

void linear_dgrad(const Tensor& gy, const Tensor& weight, const Tensor& gx, Context context) {
  cpu::LinearArgs args = args_of(gx, "gx", weight, "weight", gy, "gy");
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

void linear_wgrad(const Tensor& x, const Tensor& gy, const Tensor& gw, Context context) {
  cpu::LinearArgs args = args_of(x, "x", gw, "gw", gy, "gy");
  args.x = x.as<float>();
  args.y = gy.as<float>();
  args.gw = gw.as<float>();
  args.stream = cpu::streams(args.gw, args.outputs * args.inputs, args.inputs);
  cpu::parallel_ranges(args.outputs, least_outputs, context.threads,
                       [&](int64_t begin, int64_t end, int) { cpu::kernels().linear_wgrad(args, begin, end); });
}

}  // namespace vggfast
