// packed[o][tap * in + i] = weights[o][i][tap], or 0 beyond either extent: threads run along the rows.
#include "cuda/conv/common/pack.h"
#include "cuda/divider.h"
#include "cuda/ptx/griddepcontrol.h"

namespace vggfast::cuda {
namespace {

constexpr int threads = 256, values_of_a_thread = 8;

template <class T>
__global__ void __launch_bounds__(threads)
    pack_weights_kernel(const WeightView<T> weights, Divider depth, Divider in, int count, bool tf32, T* packed) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  for (int i = static_cast<int>(blockIdx.x * threads + threadIdx.x); i < count;
       i += static_cast<int>(gridDim.x * threads)) {
    const int out = depth.quotient(i), k = depth.remainder(i), tap = in.quotient(k), channel = in.remainder(k);
    T value{};
    if (out < weights.out && tap < weights.kernel * weights.kernel) {
      value = weights.data[out * weights.out_stride + channel * weights.in_stride +
                           tap / weights.kernel * weights.row_stride + tap % weights.kernel * weights.column_stride];
    }
    if constexpr (std::is_same_v<T, float>) {
      if (tf32) value = ptx::as_float(ptx::cvt_rna_tf32(value));
    }
    packed[i] = value;
  }
}

}  // namespace

template <class T>
void pack_weights(const WeightView<T>& weights, bool tf32, T* packed, const Context& context) {
  const int64_t count = weights.rows() * weights.depth();
  VGGFAST_CHECK(count < (int64_t(1) << 31) - (1 << 20), "weight must have under 2^31 values, got ", weights.out, " x ",
                weights.in, " channels");
  const int64_t blocks = (count + threads * values_of_a_thread - 1) / (threads * values_of_a_thread);
  launch("pack_weights_kernel", pack_weights_kernel<T>, {.blocks = static_cast<unsigned>(blocks), .threads = threads},
         context, weights, Divider(weights.depth()), Divider(weights.in), static_cast<int>(count), tf32, packed);
}

template void pack_weights(const WeightView<bf16>&, bool, bf16*, const Context&);
template void pack_weights(const WeightView<f16>&, bool, f16*, const Context&);
template void pack_weights(const WeightView<float>&, bool, float*, const Context&);
template void pack_weights(const WeightView<double>&, bool, double*, const Context&);

}  // namespace vggfast::cuda
