// Which convolutions the stem's kernels take.
#include "cuda/conv/stem/dgrad.h"
#include "cuda/conv/stem/stem.h"
#include "vggfast/cuda.h"

namespace vggfast::cuda {
namespace {

/// The kernels' arithmetic, and the sizes that they are made for. A tile that was asked for is a portable one's.
template <class T>
bool takes(int channels, int cout, int64_t kernel, int w, const Context& context) {
  constexpr int most_channels = 4, most_columns = 1 << 29;  // four values of each pixel of a row count in 31 bits
  const bool arithmetic = has_stem<T> && (sizeof(T) == 2 || context.tf32);
  return arithmetic && conv_tile() == "auto" && kernel == 3 && channels <= most_channels && cout % 8 == 0 &&
         w < most_columns;
}

/// Whether gz can be read by chunks that are counted in 32 bits (Source::Stored).
template <class T>
bool takes(const Source<T>& gz) {
  const int64_t chunks = int64_t(gz.n) * gz.stored_h * gz.stored_w * (gz.c / chunk_of<T>);
  return reads_of(gz) != Reads::gathered && chunks < Source<T>::Stored::nowhere;
}

}  // namespace

template <class T>
bool stem_takes_fprop(const Source<T>& x, const WeightView<T>& weights, const Context& context) {
  return takes<T>(weights.in, weights.out, weights.kernel, x.w, context);
}

template <class T>
bool stem_takes_dgrad(const Source<T>& gz, const WeightView<T>& weights, const Context& context) {
  return takes<T>(weights.out, weights.in, weights.kernel, gz.w, context) && takes(gz) &&
         StemDgrad::weight_bytes<T>(gz.c) <= StemDgrad::most_weight_bytes;
}

template <class T>
bool stem_takes_wgrad(const Source<T>& x, const Source<T>& gz, int64_t kernel, const Context& context) {
  return takes<T>(x.c, gz.c, kernel, x.w, context) && takes(gz);
}

#define VGGFAST_STEM_TAKES(T)                                                             \
  template bool stem_takes_fprop(const Source<T>&, const WeightView<T>&, const Context&); \
  template bool stem_takes_dgrad(const Source<T>&, const WeightView<T>&, const Context&); \
  template bool stem_takes_wgrad(const Source<T>&, const Source<T>&, int64_t, const Context&)

VGGFAST_STEM_TAKES(bf16);
VGGFAST_STEM_TAKES(f16);
VGGFAST_STEM_TAKES(float);
VGGFAST_STEM_TAKES(double);

}  // namespace vggfast::cuda
