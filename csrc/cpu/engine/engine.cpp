#include "vggfast/engine.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <list>
#include <mutex>

#include "core/checks.h"
#include "core/fork.h"
#include "cpu/algorithms/conv_algorithm.h"
#include "cpu/algorithms/tiles_linear.h"
#include "cpu/engine/run.h"
#include "plan/plan.h"
#include "vggfast/error.h"

namespace vggfast {

using namespace engine;
using plan::Kind;
using plan::Plan;
using plan::Shape;

namespace {

constexpr size_t plans_kept = 16;

void check_weight(const Tensor& weight, const Tensor* bias, int64_t axes, DType dtype = DType::f32) {
  VGGFAST_CHECK(weight.dim() == axes && weight.dtype == dtype && weight.device == Device::cpu, "weight must be ",
                name_of(dtype), " of ", axes, " axes on cpu, got ", name_of(weight.dtype), " of shape ",
                describe(weight.shape), " on ", name_of(weight.device));
  check_extents(weight.shape, "weight");
  VGGFAST_CHECK(weight.size(0) >= 1 && weight.size(1) >= 1,
                "weight must have at least one input and one output channel, got shape ", describe(weight.shape));
  VGGFAST_CHECK(axes == 2 || (weight.size(2) == weight.size(3) && (weight.size(2) == 1 || weight.size(2) == 3)),
                "weight must have shape (Cout, Cin, 3, 3) or (Cout, Cin, 1, 1), got ", describe(weight.shape));
  if (bias) {
    check_like(*bias, "bias", {weight.size(0)}, DType::f32, Device::cpu);
    VGGFAST_CHECK(bias->stride(0) == 1 || bias->size(0) == 1, "bias is not contiguous");
  }
}

float positive(float value, const char* name) {
  VGGFAST_CHECK(value > 0 && value < INFINITY && 1 / value < INFINITY, name, " must be positive and finite, got ",
                value);
  return value;
}

/// A layer's size.
int64_t checked(int64_t size) {
  VGGFAST_CHECK(size >= 1, "size must be at least 1, got ", size);
  return size;
}

}  // namespace

class Engine::Impl {
 public:
  struct Kept {
    Shape images;
    std::vector<int64_t> outputs;
    int threads;
    Plan plan;
  };

  /// What one call at a time has.
  struct Scratch {
    const int forks = vggfast::forks();  // those before this process
    std::mutex mutex;
    std::list<Kept> plans;  // the one used last comes first
    Buffer arena;
  };

  ~Impl() { delete kept_scratch; }

  explicit Impl(EngineOptions given) : options(given), isa(cpu::kernels().name), extent(given.size) {
    VGGFAST_CHECK(options.batch > 0, "batch must be at least 1, got ", options.batch);
    VGGFAST_CHECK(options.size > 0, "size must be at least 1, got ", options.size);
    check_extents({options.batch, extent, extent}, "the images of batch and size");
  }

  void add(plan::Layer layer, Packed packed = {}) {
    layers.push_back(layer);
    this->packed.push_back(std::move(packed));
  }

  void add_conv(const Tensor& weight, const Tensor* bias) {
    check_weight(weight, bias, 4);
    const int64_t cout = weight.size(0), cin = weight.size(1);
    const cpu::ConvPlan plan = cpu::choose({.dtype = options.bf16 ? DType::bf16 : DType::f32,
                                            .in = {options.batch, extent, extent, cin},
                                            .cout = cout,
                                            .kernel = weight.size(2),
                                            .packed = true,
                                            .threads = options.threads});
    cpu::ConvProblem pooled = plan.problem;
    pooled.epilogue.pool = true;
    add({.kind = Kind::conv,
         .cin = cin,
         .channels = cout,
         .fuses_pool = plan.algorithm->supports(pooled),
         .takes_blocks = plan.algorithm == &cpu::tiles_conv,
         .makes_blocks = plan.algorithm == &cpu::tiles_conv || plan.algorithm == &cpu::tiles_stem_conv},
        {.conv = plan, .weights = pack(plan, weight, bias)});
  }

  void add_linear(const Tensor& weight, const Tensor* bias) {
    check_weight(weight, bias, 2);
    const int64_t cout = weight.size(0), cin = weight.size(1);
    const cpu::ConvProblem problem{.in = {options.batch, 1, 1, cin},
                                   .cout = cout,
                                   .kernel = 1,
                                   .packed = true,
                                   .bf16_weights = options.bf16_weights,
                                   .threads = options.threads};
    const bool tiles = options.bf16 && cpu::tiles_linear_conv.supports(problem);
    const cpu::ConvPlan plan = cpu::plan_with(tiles ? cpu::tiles_linear_conv : cpu::pointwise_conv, problem);
    add({.kind = Kind::linear, .cin = cin, .channels = cout}, {.conv = plan, .weights = pack(plan, weight, bias)});
  }

  void add_quantised(Kind kind, const Tensor& weight, const Tensor* bias, const Tensor& unit, float source) {
    VGGFAST_CHECK(!options.bf16, "bf16 must be false for layers of 8 bits, which read float32 or uint8, got true");
    check_weight(weight, bias, kind == Kind::conv ? 4 : 2, DType::i8);
    const int64_t cout = weight.size(0), cin = weight.size(1), kernel = kind == Kind::conv ? weight.size(2) : 1;
    check_like(unit, "unit", {cout}, DType::f32, Device::cpu);
    check_contiguous(unit, "unit");
    for (int64_t i = 0; i < cout; ++i) positive(unit.as<float>()[i], "unit");
    const int64_t terms = cin * kernel * kernel;
    VGGFAST_CHECK(terms <= cpu::Int8Layer::most_terms, "weight must have at most ", cpu::Int8Layer::most_terms,
                  " values for each output, whose sum fits int32, got ", terms);
    const float inverse = 1 / positive(source, "source");
    const bool rows = kind == Kind::linear;
    const cpu::Extent in{options.batch, rows ? 1 : extent, rows ? 1 : extent, cin};
    auto layer = cpu::make_int8_layer({in, cout, kernel, rows}, view_of<int8_t>(weight));
    Buffer packed = pack(*layer, weight, bias, unit, options.threads);
    const bool blocks = layer->takes_blocks();
    round_last(inverse, blocks);
    add({.kind = kind, .cin = cin, .channels = cout, .takes_blocks = blocks},
        {.weights = std::move(packed), .int8 = std::move(layer), .source_inverse = inverse});
  }

  /// Has the last layer's output leave in 8 bits, in blocks if the next one takes them, if one step makes it, with its
  /// ReLU.
  void round_last(float inverse, bool blocks) {
    const bool pool = !layers.empty() && layers.back().kind == Kind::max_pool && !layers.back().ceil_mode;
    const size_t count = layers.size() - pool;
    if (count < 2 || layers[count - 1].kind != Kind::relu) return;
    plan::Layer& made = layers[count - 2];
    if (made.kind == Kind::linear || (made.kind == Kind::conv && (made.fuses_pool || !pool))) {
      made.leaves = DType::u8;
      made.makes_blocks = blocks;
      packed[count - 2].target_inverse = inverse;
    }
  }

  /// A child by fork has one of its own: a call that has its parent's is not in it, and may leave it half changed.
  Scratch& scratch() {
    Scratch* found = kept_scratch;
    if (found && found->forks == forks()) return *found;
    auto fresh = std::make_unique<Scratch>();
    if (!kept_scratch.compare_exchange_strong(found, fresh.get())) return *found;
    if (found && found->mutex.try_lock()) {  // no call has it
      found->mutex.unlock();
      delete found;
    }
    return *fresh.release();
  }

  const Plan& plan_for(Scratch& scratch, const Shape& images, const std::vector<int64_t>& outputs, int threads) const {
    auto& plans = scratch.plans;
    auto& arena = scratch.arena;
    const auto same = [&](const Kept& kept) {
      return kept.images == images && kept.outputs == outputs && kept.threads == threads;
    };
    const auto found = std::find_if(plans.begin(), plans.end(), same);
    if (found != plans.end()) {
      plans.splice(plans.begin(), plans, found);
    } else {
      plans.push_front({images, outputs, threads, make_plan(images, outputs, threads)});
      if (plans.size() > plans_kept) plans.pop_back();
    }
    const Plan& plan = plans.front().plan;
    if (plan.bytes > arena.bytes()) {
      arena = Buffer();  // first: both at a time would be the peak
      arena = Buffer(plan.bytes);
    }
    return plan;
  }

  Plan make_plan(const Shape& images, const std::vector<int64_t>& outputs, int threads) const {
    return plan::make_plan(layers, images, outputs, backend(layers, packed, options.bf16, threads));
  }

  const EngineOptions options;
  const std::string isa;
  int64_t extent;  // of the activation after the layers so far
  std::vector<plan::Layer> layers;
  std::vector<Packed> packed;  // of each layer
  std::atomic<Scratch*> kept_scratch{nullptr};
};

Engine::Engine(EngineOptions options) : impl_(std::make_unique<Impl>(options)) {}
Engine::~Engine() = default;

void Engine::add_conv(const Tensor& weight, const Tensor* bias) { impl_->add_conv(weight, bias); }
void Engine::add_linear(const Tensor& weight, const Tensor* bias) { impl_->add_linear(weight, bias); }
void Engine::add_quantised_conv(const Tensor& weight, const Tensor* bias, const Tensor& unit, float source) {
  impl_->add_quantised(Kind::conv, weight, bias, unit, source);
}
void Engine::add_quantised_linear(const Tensor& weight, const Tensor* bias, const Tensor& unit, float source) {
  impl_->add_quantised(Kind::linear, weight, bias, unit, source);
}
void Engine::add_relu() { impl_->add({.kind = Kind::relu}); }
void Engine::add_row_mean() { impl_->add({.kind = Kind::row_mean}); }
void Engine::add_max_pool(bool ceil_mode) {
  impl_->add({.kind = Kind::max_pool, .ceil_mode = ceil_mode});
  impl_->extent = std::max<int64_t>(impl_->extent / 2, 1);
}
void Engine::add_lrn(LrnParams params) {
  checked(params.size);
  impl_->add({.kind = Kind::lrn}, {.lrn = params});
}
void Engine::add_flatten(int64_t size) { impl_->add({.kind = Kind::flatten, .size = checked(size)}); }
void Engine::add_windows(int64_t size) { impl_->add({.kind = Kind::windows, .size = checked(size)}); }

int64_t Engine::layers() const { return static_cast<int64_t>(impl_->layers.size()); }

std::vector<int64_t> Engine::output_shape(int64_t layer, int64_t n, int64_t c, int64_t h, int64_t w) const {
  VGGFAST_CHECK(layer >= 0 && layer < layers(), "layer must be 0 to ", layers() - 1, ", got ", layer);
  check_extents({n, c, h, w}, "x");
  const Shape shape = plan::output_shapes(impl_->layers, {n, h, w, c}, {layer}).front();
  if (shape.rows) return {shape.n, shape.c};
  return {shape.n, shape.c, shape.h, shape.w};
}

void Engine::run(const Tensor& x, const std::vector<std::pair<int64_t, Tensor>>& outputs, Context context) {
  VGGFAST_CHECK(x.dim() == 4 && x.dtype == DType::f32 && x.device == Device::cpu,
                "x must be float32 (N, C, H, W) on cpu, got ", name_of(x.dtype), " of shape ", describe(x.shape),
                " on ", name_of(x.device));
  VGGFAST_CHECK(!outputs.empty(), "outputs must name at least one layer, got none");
  std::vector<int64_t> layers;
  for (const auto& [layer, y] : outputs) {
    VGGFAST_CHECK(layers.empty() || layer > layers.back(), "outputs must be in the order of the layers, got layer ",
                  layer, " after ", layers.back());
    check_like(y, "output", output_shape(layer, x.size(0), x.size(1), x.size(2), x.size(3)), DType::f32, Device::cpu);
    VGGFAST_CHECK(y.data || y.numel() == 0, "output must have memory, got none for shape ", describe(y.shape));
    y.dim() == 4 ? check_nhwc(y, "output") : check_contiguous(y, "output");
    layers.push_back(layer);
  }
  Impl::Scratch& scratch = impl_->scratch();
  const std::lock_guard lock(scratch.mutex);
  VGGFAST_CHECK(impl_->isa == cpu::kernels().name, "the engine's weights are packed for ", impl_->isa, ", and ",
                cpu::kernels().name, " is set now: build another engine");
  const Shape images{x.size(0), x.size(2), x.size(3), x.size(1)};
  const Plan& plan = impl_->plan_for(scratch, images, layers, context.threads);
  if (x.size(0) > 0) {
    run_plan({impl_->layers, impl_->packed, plan, scratch.arena, context.threads}, impl_->options.bf16, x, outputs);
  }
}

size_t Engine::workspace(int64_t layer, int64_t n, int64_t c, int64_t h, int64_t w, Context context) const {
  output_shape(layer, n, c, h, w);  // checks
  return Buffer::whole_pages(impl_->make_plan({n, h, w, c}, {layer}, context.threads).bytes);
}

size_t Engine::bytes() const {
  Impl::Scratch& scratch = impl_->scratch();
  const std::lock_guard lock(scratch.mutex);
  size_t total = scratch.arena.bytes();
  for (const Packed& layer : impl_->packed) total += layer.weights.bytes();
  return total;
}

std::vector<std::string> Engine::algorithms() const {
  std::vector<std::string> names;
  for (size_t i = 0; i < impl_->layers.size(); ++i) {
    if (impl_->layers[i].kind != Kind::conv) continue;
    const Packed& packed = impl_->packed[i];
    names.push_back(packed.int8 ? packed.int8->name() : packed.conv.algorithm->name);
  }
  return names;
}

}  // namespace vggfast
