#include "vggfast/engine.h"

#include <algorithm>
#include <list>
#include <mutex>

#include "cpu/algorithms/choose.h"
#include "engine/plan.h"
#include "engine/run.h"
#include "vggfast/error.h"

namespace vggfast {

using namespace engine;

namespace {

constexpr size_t plans_kept = 16;
constexpr int most_exact = 2;  // of the algorithms that take bfloat16, where a direct one is asked for

void check_weight(const Tensor& weight, const Tensor* bias, int64_t axes) {
  VGGFAST_CHECK(weight.dim() == axes && weight.dtype == DType::f32 && weight.device == Device::cpu,
                "weight must be float32 of ", axes, " axes on cpu, got ", name_of(weight.dtype), " of shape ",
                describe(weight.shape), " on ", name_of(weight.device));
  VGGFAST_CHECK(axes == 2 || (weight.size(2) == weight.size(3) && (weight.size(2) == 1 || weight.size(2) == 3)),
                "weight must have shape (Cout, Cin, 3, 3) or (Cout, Cin, 1, 1), got ", describe(weight.shape));
  if (bias) {
    check_like(*bias, "bias", {weight.size(0)}, DType::f32, Device::cpu);
    VGGFAST_CHECK(bias->stride(0) == 1 || bias->size(0) == 1, "bias is not contiguous");
  }
}

}  // namespace

class Engine::Impl {
 public:
  struct Kept {
    Shape in;
    std::vector<int64_t> outputs;
    int threads;
    Plan plan;
  };

  explicit Impl(EngineOptions given) : options(given), isa(cpu::kernels().name), extent(given.size) {
    VGGFAST_CHECK(options.batch > 0, "batch must be at least 1, got ", options.batch);
    VGGFAST_CHECK(options.size > 0, "size must be at least 1, got ", options.size);
  }

  size_t value_bytes() const { return options.bf16 ? sizeof(cpu::Bf16) : sizeof(float); }

  void add_weighted(Kind kind, const Tensor& weight, const Tensor* bias) {
    check_weight(weight, bias, kind == Kind::conv ? 4 : 2);
    Layer layer(kind);
    layer.channels = weight.size(0);
    layer.cin = weight.size(1);
    if (kind == Kind::linear) {
      layer.bf16_weights = options.bf16_weights;
    } else {
      layer.kernel = weight.size(2);
      const cpu::Extent expected{options.batch, extent, extent, layer.cin};
      layer.algorithm = cpu::choose_algorithm(cpu::Pass::fprop, expected, layer.channels, layer.kernel, true);
      if (layer.algorithm == cpu::direct && options.bf16) layer.algorithm = layer.kernel == 1 ? 1 : most_exact;
    }
    pack_layer(layer, weight, bias, options.threads);
    layers.push_back(std::move(layer));
  }

  const Plan& plan_for(const Shape& in, const std::vector<int64_t>& outputs, int threads) {
    const auto same = [&](const Kept& kept) {
      return kept.in.n == in.n && kept.in.h == in.h && kept.in.w == in.w && kept.outputs == outputs &&
             kept.threads == threads;
    };
    const auto found = std::find_if(plans.begin(), plans.end(), same);
    if (found != plans.end()) {
      plans.splice(plans.begin(), plans, found);
    } else {
      plans.push_front({in, outputs, threads, make_plan(layers, in, outputs, value_bytes(), threads)});
      if (plans.size() > plans_kept) plans.pop_back();
    }
    const Plan& plan = plans.front().plan;
    if (plan.bytes() > arena.bytes()) {
      arena = Buffer();  // first: both at a time would be the peak
      arena = Buffer(plan.bytes());
    }
    return plan;
  }

  const EngineOptions options;
  const std::string isa;
  int64_t extent;  // of the activation after the layers so far
  std::vector<Layer> layers;
  std::list<Kept> plans;  // the one used last comes first
  Buffer arena;
  std::mutex mutex;
};

Engine::Engine(EngineOptions options) : impl_(std::make_unique<Impl>(options)) {}
Engine::~Engine() = default;

void Engine::add_conv(const Tensor& weight, const Tensor* bias) { impl_->add_weighted(Kind::conv, weight, bias); }
void Engine::add_linear(const Tensor& weight, const Tensor* bias) { impl_->add_weighted(Kind::linear, weight, bias); }
void Engine::add_relu() { impl_->layers.emplace_back(Kind::relu); }
void Engine::add_row_mean() { impl_->layers.emplace_back(Kind::row_mean); }
void Engine::add_max_pool(bool ceil_mode) {
  impl_->layers.emplace_back(Kind::max_pool).ceil_mode = ceil_mode;
  impl_->extent = std::max<int64_t>(impl_->extent / 2, 1);
}
void Engine::add_lrn(LrnParams params) { impl_->layers.emplace_back(Kind::lrn).lrn = params; }
void Engine::add_flatten(int64_t size) { impl_->layers.emplace_back(Kind::flatten).size = size; }
void Engine::add_windows(int64_t size) { impl_->layers.emplace_back(Kind::windows).size = size; }

int64_t Engine::layers() const { return static_cast<int64_t>(impl_->layers.size()); }

std::vector<int64_t> Engine::output_shape(int64_t layer, int64_t n, int64_t c, int64_t h, int64_t w) const {
  VGGFAST_CHECK(layer >= 0 && layer < layers(), "layer must be 0 to ", layers() - 1, ", got ", layer);
  Shape shape{n, h, w, c};
  bool rows = false;
  for (int64_t i = 0; i <= layer; ++i) {
    const Layer& each = impl_->layers[static_cast<size_t>(i)];
    shape = shape_after(each, shape, n);
    rows = rows || each.kind == Kind::flatten || each.kind == Kind::windows;
  }
  if (rows) return {shape.n, shape.c};
  return {shape.n, shape.c, shape.h, shape.w};
}

void Engine::run(const Tensor& x, const std::vector<std::pair<int64_t, Tensor>>& outputs, Context context) {
  VGGFAST_CHECK(x.dim() == 4 && x.dtype == DType::f32 && x.device == Device::cpu,
                "x must be float32 (N, C, H, W) on cpu, got ", name_of(x.dtype), " of shape ", describe(x.shape),
                " on ", name_of(x.device));
  VGGFAST_CHECK(!outputs.empty(), "outputs must name at least one layer, got none");
  std::vector<int64_t> wanted;
  for (const auto& [layer, y] : outputs) {
    VGGFAST_CHECK(wanted.empty() || layer > wanted.back(), "outputs must be in the order of the layers, got layer ",
                  layer, " after ", wanted.back());
    check_like(y, "output", output_shape(layer, x.size(0), x.size(1), x.size(2), x.size(3)), DType::f32, Device::cpu);
    if (y.dim() == 4) check_nhwc(y, "output");
    wanted.push_back(layer);
  }
  const std::lock_guard lock(impl_->mutex);
  VGGFAST_CHECK(impl_->isa == cpu::kernels().name, "the engine's weights are packed for ", impl_->isa, ", and ",
                cpu::kernels().name, " is set now: build another engine");
  const int threads = std::max(context.threads, 1);
  const Plan& plan = impl_->plan_for(cpu::Extent{x.size(0), x.size(2), x.size(3), x.size(1)}, wanted, threads);
  if (x.size(0) > 0) run_plan(impl_->layers, plan, impl_->options.bf16, impl_->arena, x, outputs, threads);
}

size_t Engine::workspace(int64_t layer, int64_t n, int64_t c, int64_t h, int64_t w, Context context) const {
  output_shape(layer, n, c, h, w);  // checks
  const int threads = std::max(context.threads, 1);
  return Buffer::whole_pages(
      make_plan(impl_->layers, Shape{n, h, w, c}, {layer}, impl_->value_bytes(), threads).bytes());
}

size_t Engine::bytes() const {
  const std::lock_guard lock(impl_->mutex);
  size_t total = impl_->arena.bytes();
  for (const Layer& layer : impl_->layers) total += layer.packed.bytes();
  return total;
}

std::vector<std::string> Engine::algorithms() const {
  std::vector<std::string> names;
  for (const Layer& layer : impl_->layers) {
    if (layer.kind == Kind::conv) names.push_back(cpu::name_of(layer.algorithm));
  }
  return names;
}

}  // namespace vggfast
