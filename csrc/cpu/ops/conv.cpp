// Convolution on the CPU: checks, the choice of an algorithm, and what both directions share.
#include "vggfast/conv.h"

#include "core/conv_checks.h"
#include "cpu/algorithms/direct.h"
#include "cpu/ops/dtypes.h"
#include "cpu/algorithms/choose.h"
#include "cpu/algorithms/stem.h"
#include "cpu/algorithms/wgrad.h"
#include "cpu/algorithms/winograd.h"
#include "vggfast/error.h"

namespace vggfast {
namespace {

using cpu::ConvInput;
using cpu::ConvOutput;
using cpu::Extent;
using cpu::extent_of;
using cpu::Pass;
using cpu::WeightView;

/// The algorithm that a call is to use: float64 is always direct, and so is a pool behind or before a 1x1 convolution,
/// whose tile is one pixel.
template <class T>
int algorithm_of(Pass pass, Extent in, int64_t cout, int64_t kernel, bool pool) {
  if constexpr (sizeof(T) == 8) {
    return cpu::direct;
  } else {
    return kernel == 1 && pool ? cpu::direct : cpu::choose_algorithm(pass, in, cout, kernel, false);
  }
}

/// `pool`: whether one is involved on either side. `masked`: whether the input comes with a mask.
template <class T>
size_t fprop_workspace(Pass pass, Extent in, int64_t cout, int64_t kernel, bool pool, bool masked, int threads) {
  const int algorithm = algorithm_of<T>(pass, in, cout, kernel, pool);
  int64_t values;
  if (algorithm == cpu::stem) {
    const cpu::Stem layer(cout);
    values = layer.packed_values() + layer.scratch_values(in, threads);
  } else if (algorithm != cpu::direct) {
    values = cpu::Winograd(algorithm, in.c, cout).workspace_values(in, !(pool && masked), threads);
  } else {
    values = cpu::Direct<T>(in.c, cout, kernel).packed_values() + (masked ? in.n * in.h * in.w * in.c : 0);
  }
  return static_cast<size_t>(values) * sizeof(T);
}

template <class T>
Tensor nhwc_tensor(const T* data, Extent e) {
  return {const_cast<T*>(data),
          sizeof(T) == 4 ? DType::f32 : DType::f64,
          Device::cpu,
          {e.n, e.c, e.h, e.w},
          {e.h * e.w * e.c, 1, e.w * e.c, e.c}};
}

/// `in` itself, or what mask_scatter makes of it, at `to`: the direct kernels read no mask.
template <class T>
ConvInput<T> scattered(const ConvInput<T>& in, T* to, Context context) {
  if (!in.mask) return in;
  const Extent e = in.extent;
  const Epilogue epilogue{in.relu, in.pool};
  const int64_t bytes = (e.c + 7) / 8, row = in.stored_w * bytes, plane = in.stored_h * row;
  const int64_t planes = mask_planes(epilogue);
  const Tensor mask{const_cast<uint8_t*>(in.mask),
                    DType::u8,
                    Device::cpu,
                    {e.n, planes, in.stored_h, in.stored_w, bytes},
                    {planes * plane, plane, row, bytes, 1}};
  mask_scatter(nhwc_tensor(in.data, {e.n, in.stored_h, in.stored_w, e.c}), mask, epilogue, nhwc_tensor(to, e), context);
  return {.data = to, .extent = e};
}

/// fprop for weights of any view, so that dgrad is the same code.
template <class T>
void run_fprop(Pass pass, const ConvInput<T>& in, const WeightView<T>& weight, const T* bias, const ConvOutput<T>& out,
               Workspace workspace, Context context) {
  check_workspace(workspace, fprop_workspace<T>(pass, in.extent, weight.out, weight.kernel, in.pool || out.pool,
                                                in.mask, context.threads));
  T* packed = static_cast<T*>(workspace.data);
  const int algorithm = algorithm_of<T>(pass, in.extent, weight.out, weight.kernel, in.pool || out.pool);
  if (algorithm != cpu::direct) {
    if constexpr (sizeof(T) == 4) {
      if (algorithm == cpu::stem) {
        const cpu::Stem layer(weight.out);
        layer.pack(weight, bias, packed, context.threads);
        layer.fprop(in, packed, out, packed + layer.packed_values(), context.threads);
      } else {
        cpu::Winograd(algorithm, weight.in, weight.out).fprop(in, weight, bias, out, packed, context.threads);
      }
    }
  } else {
    const cpu::Direct<T> layer(weight.in, weight.out, weight.kernel);
    layer.pack(weight, bias, packed, context.threads);
    layer.fprop(scattered(in, packed + layer.packed_values(), context), packed, out, context.threads);
  }
}

template <class T>
size_t wgrad_workspace(Extent in, int64_t cout, int64_t kernel, const Masked& masked, int threads) {
  const int algorithm = algorithm_of<T>(Pass::wgrad, in, cout, kernel, masked.pooled());
  int64_t values;
  if (algorithm == cpu::stem) {
    values = cpu::Stem(cout).wgrad_values(in, threads);
  } else if (algorithm != cpu::direct) {
    values = cpu::WinogradWgrad(algorithm, in, cout, !masked.pooled()).workspace_values(threads);
  } else {
    values = cpu::DirectWgrad<T>(in, cout, kernel).workspace_values() + (masked.mask ? in.n * in.h * in.w * cout : 0);
  }
  return static_cast<size_t>(values) * sizeof(T);
}

template <class T>
WeightView<T> view_of(const Tensor& weight) {
  return {weight.as<T>(),   weight.size(0),   weight.size(1),   weight.size(2),
          weight.stride(0), weight.stride(1), weight.stride(2), weight.stride(3)};
}

constexpr uint8_t no_bits = 0;  // what an empty mask points at: a map of one pixel has no window

/// gy as the convolution's own output would have its gradient: of extents h x w, through the mask where there is
/// one.
template <class T>
ConvInput<T> gradient_of(const Tensor& gy, const Masked& masked, int64_t h, int64_t w) {
  const Extent extent{gy.size(0), h, w, gy.size(1)};
  if (!masked.mask) return {.data = gy.as<T>(), .extent = extent};
  return {.data = gy.as<T>(),
          .extent = extent,
          .mask = masked.mask->data ? masked.mask->as<uint8_t>() : &no_bits,
          .relu = masked.epilogue.relu,
          .pool = masked.epilogue.pool,
          .stored_h = gy.size(2),
          .stored_w = gy.size(3)};
}

}  // namespace

size_t conv_fprop_workspace(const Tensor& x, const Tensor& weight, Epilogue e, Context context) {
  check_nhwc(x, "x");
  check_kernel(weight, x.size(1), 1, "x");
  return cpu::for_float(x, "x", [&]<class T>() {
    return fprop_workspace<T>(Pass::fprop, extent_of(x), weight.size(0), weight.size(2), e.pool, false,
                              context.threads);
  });
}

size_t conv_dgrad_workspace(const Tensor& gy, const Masked& masked, const Tensor& weight, int64_t h, int64_t w,
                            Context context) {
  check_gradient(gy, masked, h, w);
  check_kernel(weight, gy.size(1), 0, "gy");
  return cpu::for_float(gy, "gy", [&]<class T>() {
    return fprop_workspace<T>(Pass::dgrad, {gy.size(0), h, w, gy.size(1)}, weight.size(1), weight.size(2),
                              masked.pooled(), masked.mask, context.threads);
  });
}

size_t conv_wgrad_workspace(const Tensor& x, const Tensor& gy, const Masked& masked, int64_t kernel, Context context) {
  check_nhwc(x, "x");
  check_gradient(gy, masked, x.size(2), x.size(3));
  VGGFAST_CHECK(kernel == 1 || kernel == 3, "kernel is ", kernel, ": 1 or 3 is wanted");
  return cpu::for_float(
      x, "x", [&]<class T>() { return wgrad_workspace<T>(extent_of(x), gy.size(1), kernel, masked, context.threads); });
}

void conv_fprop(const Tensor& x, const Tensor& weight, const Tensor* bias, Epilogue e, const Tensor& y,
                const Tensor* mask, Workspace workspace, Context context) {
  check_fprop(x, weight, bias, e, y, mask);
  cpu::for_float(x, "x", [&]<class T>() {
    const ConvOutput<T> out{.y = y.as<T>(),
                            .h = y.size(2),
                            .w = y.size(3),
                            .c = y.size(1),
                            .relu = e.relu,
                            .pool = e.pool,
                            .mask = mask ? mask->as<uint8_t>() : nullptr};
    run_fprop<T>(Pass::fprop, {.data = x.as<T>(), .extent = extent_of(x)}, view_of<T>(weight),
                 bias ? bias->as<T>() : nullptr, out, workspace, context);
  });
}

void conv_dgrad(const Tensor& gy, const Masked& masked, const Tensor& weight, const Tensor& gx, Workspace workspace,
                Context context) {
  check_dgrad(gy, masked, weight, gx);
  cpu::for_float(gy, "gy", [&]<class T>() {
    const int64_t last = weight.size(2) - 1;
    const T* last_tap = weight.as<T>() + last * (weight.stride(2) + weight.stride(3));
    const WeightView<T> flipped{last_tap,         weight.size(1),   weight.size(0),    weight.size(2),
                                weight.stride(1), weight.stride(0), -weight.stride(2), -weight.stride(3)};
    const ConvOutput<T> out{.y = gx.as<T>(), .h = gx.size(2), .w = gx.size(3), .c = gx.size(1)};
    run_fprop<T>(Pass::dgrad, gradient_of<T>(gy, masked, gx.size(2), gx.size(3)), flipped, nullptr, out, workspace,
                 context);
  });
}

void conv_wgrad(const Tensor& x, const Tensor& gy, const Masked& masked, const Tensor& gw, const Tensor* gb,
                Workspace workspace, Context context) {
  check_wgrad(x, gy, masked, gw, gb);
  cpu::for_float(x, "x", [&]<class T>() {
    const Extent in = extent_of(x);
    const int64_t cout = gw.size(0), kernel = gw.size(2), gb_stride = gb ? gb->stride(0) : 0;
    check_workspace(workspace, wgrad_workspace<T>(in, cout, kernel, masked, context.threads));
    const ConvInput<T> gradient = gradient_of<T>(gy, masked, in.h, in.w);
    T* values = static_cast<T*>(workspace.data);
    T* bias = gb ? gb->as<T>() : nullptr;
    const int algorithm = algorithm_of<T>(Pass::wgrad, in, cout, kernel, masked.pooled());
    if (algorithm != cpu::direct) {
      if constexpr (sizeof(T) == 4) {
        const ConvInput<float> input{.data = x.as<float>(), .extent = in};
        const WeightView<float> shape = view_of<float>(gw);
        if (algorithm == cpu::stem) {
          cpu::Stem(cout).wgrad(input, gradient, shape, gw.as<T>(), bias, gb_stride, values, context.threads);
        } else {
          cpu::WinogradWgrad(algorithm, in, cout, !masked.pooled())
              .run(input, gradient, shape, gw.as<T>(), bias, gb_stride, values, context.threads);
        }
      }
    } else {
      const cpu::DirectWgrad<T> sums(in, cout, kernel);
      const T* gz = scattered(gradient, values + sums.workspace_values(), context).data;
      sums.run(x.as<T>(), gz, view_of<T>(gw), gw.as<T>(), bias, gb_stride, values, context.threads);
    }
  });
}

}  // namespace vggfast
