// Class scores of a dense evaluation on the CPU: spatial mean, softmax over classes, mean over views; in double.
#include <cmath>
#include <limits>
#include <vector>

#include "core/checks.h"
#include "cpu/ops/dtypes.h"
#include "cpu/parallel.h"
#include "vggfast/pool.h"

namespace vggfast {
namespace {

/// probabilities (C): the softmax over classes of the mean over pixels of map (pixels, C).
template <class T>
void softmax_of_mean(const T* map, int64_t pixels, int64_t classes, double* probabilities) {
  for (int64_t c = 0; c < classes; ++c) probabilities[c] = 0;
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    for (int64_t c = 0; c < classes; ++c) probabilities[c] += static_cast<double>(map[pixel * classes + c]);
  }
  double most = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t c = 0; c < classes; ++c) {
    probabilities[c] /= static_cast<double>(pixels);
    most = probabilities[c] > most ? probabilities[c] : most;
  }
  for (int64_t c = 0; c < classes; ++c) {
    probabilities[c] = std::exp(probabilities[c] - most);
    sum += probabilities[c];
  }
  for (int64_t c = 0; c < classes; ++c) probabilities[c] /= sum;
}

/// Rows of `classes` doubles, one for each thread.
std::vector<double> rows_for_threads(int64_t classes, int threads) {
  return std::vector<double>(static_cast<size_t>(classes * threads));
}

}  // namespace

void mean_posteriors(const Tensor& maps, int64_t views, const Tensor& scores, Context context) {
  check_mean_posteriors(maps, views, scores, "scores");
  if (scores.numel() == 0) return;
  cpu::for_float(maps, "maps", [&]<class T>() {
    const int64_t images = scores.size(0), classes = maps.size(1), pixels = maps.size(2) * maps.size(3);
    std::vector<double> rows = rows_for_threads(2 * classes, context.threads);
    cpu::parallel_for(images, context.threads, [&](int64_t n, int worker) {
      double* probabilities = rows.data() + worker * 2 * classes;
      double* sums = probabilities + classes;
      for (int64_t c = 0; c < classes; ++c) sums[c] = 0;
      for (int64_t view = 0; view < views; ++view) {
        softmax_of_mean(maps.as<T>() + (view * images + n) * pixels * classes, pixels, classes, probabilities);
        for (int64_t c = 0; c < classes; ++c) sums[c] += probabilities[c];
      }
      T* out = scores.as<T>() + n * classes;
      for (int64_t c = 0; c < classes; ++c) out[c] = static_cast<T>(sums[c] / static_cast<double>(views));
    });
  });
}

void mean_posteriors_dgrad(const Tensor& gscores, const Tensor& maps, int64_t views, const Tensor& gmaps,
                           Context context) {
  check_mean_posteriors(maps, views, gscores, "gscores");
  check_nhwc(gmaps, "gmaps");
  check_like(gmaps, "gmaps", maps.shape, maps.dtype, maps.device);
  if (gmaps.numel() == 0) return;
  cpu::for_float(maps, "maps", [&]<class T>() {
    const int64_t images = gscores.size(0), classes = maps.size(1), pixels = maps.size(2) * maps.size(3);
    const double scale = 1 / (static_cast<double>(views) * static_cast<double>(pixels));
    std::vector<double> rows = rows_for_threads(classes, context.threads);
    cpu::parallel_for(maps.size(0), context.threads, [&](int64_t map, int worker) {
      double* gradients = rows.data() + worker * classes;
      softmax_of_mean(maps.as<T>() + map * pixels * classes, pixels, classes, gradients);
      const T* g = gscores.as<T>() + map % images * classes;
      double dot = 0;
      for (int64_t c = 0; c < classes; ++c) dot += gradients[c] * static_cast<double>(g[c]);
      for (int64_t c = 0; c < classes; ++c) gradients[c] *= (static_cast<double>(g[c]) - dot) * scale;
      T* out = gmaps.as<T>() + map * pixels * classes;
      for (int64_t pixel = 0; pixel < pixels; ++pixel) {
        for (int64_t c = 0; c < classes; ++c) out[pixel * classes + c] = static_cast<T>(gradients[c]);
      }
    });
  });
}

}  // namespace vggfast
