// The planner on random networks: a plan is run on an arena whose bytes know what was written to them last, with groups
// of images and without, outputs that stay and that leave. And what is fused, in place, and how large an arena is.
#include <algorithm>
#include <random>

#include "check.h"
#include "plan/plan.h"

namespace vggfast::test {
namespace {

using plan::Activation;
using plan::Backend;
using plan::Kind;
using plan::Layer;
using plan::Plan;
using plan::Stage;
using plan::Step;

Layer conv(int64_t cin, int64_t channels) { return {.kind = Kind::conv, .cin = cin, .channels = channels}; }

/// An arena each of whose bytes holds the number of a value of an activation, or of none.
class Tagged {
 public:
  Tagged(const Plan& plan, const std::string& name) : plan_(plan), name_(name), bytes_(plan.bytes, nothing) {}

  /// `keeps_outputs`: whether they are to be there in the end.
  void run(bool keeps_outputs) {
    const int64_t batch = plan_.activations[0].shape.n;
    write(0, 0, batch);
    for (const Stage& stage : plan_.stages) {
      for (int64_t first = 0; first < batch; first += stage.images) {
        const int64_t images = std::min(stage.images, batch - first);
        for (size_t s = stage.begin; s < stage.end; ++s) {
          const Step& step = plan_.steps[s];
          CHECK(step.scratch_offset + step.scratch_bytes <= bytes_.size(), name_, ": scratch of step ", s);
          std::fill_n(bytes_.begin() + static_cast<int64_t>(step.scratch_offset), step.scratch_bytes, nothing);
          if (!step.in_place) write(s + 1, first, images);
          read(s, first, images);  // after the write: a kernel does both at a time
          if (step.in_place) write(s + 1, first, images);
          read(s + 1, first, images);
        }
      }
    }
    for (size_t i = 0; i < plan_.activations.size(); ++i) {
      if (keeps_outputs && plan_.activations[i].output >= 0) read(i, 0, batch);
    }
  }

 private:
  static constexpr int64_t nothing = -1;

  /// Calls body(byte, tag) for each byte of so many images of activation number i.
  template <class Body>
  void each(size_t i, int64_t first, int64_t images, Body body) {
    const Activation& a = plan_.activations[i];
    if (!a.in_arena) return;
    const size_t image_bytes = static_cast<size_t>(a.shape.values() / plan_.activations[0].shape.n) * size_of(a.dtype);
    const size_t begin = a.offset + (a.whole ? static_cast<size_t>(first) * image_bytes : 0);
    const size_t count = static_cast<size_t>(images) * image_bytes;
    CHECK(begin + count <= bytes_.size(), name_, ": activation ", i, " ends beyond the arena");
    if (begin + count > bytes_.size()) return;
    for (size_t byte = 0; byte < count; ++byte) {
      body(bytes_[begin + byte],
           (static_cast<int64_t>(i) << 40) + first * static_cast<int64_t>(image_bytes) + static_cast<int64_t>(byte));
    }
  }
  void write(size_t i, int64_t first, int64_t images) {
    each(i, first, images, [](int64_t& byte, int64_t tag) { byte = tag; });
  }
  void read(size_t i, int64_t first, int64_t images) {
    int64_t wrong = 0;
    each(i, first, images, [&](int64_t byte, int64_t tag) { wrong += byte != tag; });
    CHECK(wrong == 0, name_, ": ", wrong, " bytes of activation ", i, ", images from ", first, ", are overwritten");
  }

  const Plan& plan_;
  const std::string name_;
  std::vector<int64_t> bytes_;
};

void check_random_networks() {
  std::mt19937 random(1);
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  int grouped = 0, in_place = 0;
  for (int round = 0; round < 400; ++round) {
    std::vector<Layer> layers;
    int64_t channels = 3;
    for (int64_t i = draw(1, 9); i > 0; --i) {
      const int64_t kind = draw(0, 5);
      if (kind < 3) {
        layers.push_back(conv(channels, kind + 1));
        channels = kind + 1;
      } else {
        layers.push_back({.kind = kind == 3 ? Kind::max_pool : kind == 4 ? Kind::relu : Kind::lrn});
        layers.back().ceil_mode = kind == 3;
      }
    }
    if (round % 3 == 0) {
      const int64_t size = draw(1, 2);
      layers.push_back({.kind = Kind::flatten, .size = size, .nhwc_rows = round % 2 == 0});
      layers.push_back({.kind = Kind::linear, .cin = channels * size * size, .channels = 5});
      layers.push_back({.kind = Kind::relu});
    }
    std::vector<int64_t> outputs;
    for (int64_t i = 0; i < static_cast<int64_t>(layers.size()); ++i) {
      if (draw(0, 3) == 0 || i + 1 == static_cast<int64_t>(layers.size())) outputs.push_back(i);
    }
    for (const bool keeps : {false, true}) {
      const Backend backend{.map = round % 2 ? DType::bf16 : DType::f32,
                            .rows = DType::f32,
                            .alignment = 64,
                            .keeps_outputs = keeps,
                            .group_bytes = draw(1, 6000),
                            .scratch = [&](const Step&, const Activation&, const Activation&, int64_t images) {
                              return static_cast<size_t>(draw(0, 1) * (100 + images));
                            }};
      const plan::Shape images{draw(1, 5), draw(1, 20), draw(1, 20), 3};
      const Plan plan = plan::make_plan(layers, images, outputs, backend);
      Tagged(plan, "network " + std::to_string(round) + (keeps ? " that keeps its outputs" : "")).run(keeps);
      for (const Stage& stage : plan.stages) grouped += stage.images < images.n;
      for (const Step& step : plan.steps) in_place += step.in_place;
    }
  }
  CHECK(grouped > 100 && in_place > 50, grouped, " stages of groups, ", in_place, " steps in place");
}

/// A network whose layers' bytes are easily told: 64 values of float32 an image.
Plan plan_of(int64_t images, const std::vector<int64_t>& outputs, bool keeps_outputs, int64_t group_bytes) {
  const std::vector<Layer> layers{conv(1, 1), conv(1, 1), conv(1, 1), conv(1, 1)};
  return plan::make_plan(layers, {images, 8, 8, 1}, outputs,
                         {.map = DType::f32,
                          .rows = DType::f32,
                          .alignment = 256,
                          .keeps_outputs = keeps_outputs,
                          .group_bytes = group_bytes,
                          .scratch = [](const Step&, const Activation&, const Activation&, int64_t) { return 256u; }});
}

void check_sizes() {
  const auto bytes = [](const Plan& plan) { return plan.bytes / 256; };
  constexpr int64_t all = 1 << 30;
  CHECK(bytes(plan_of(1, {3}, true, all)) == 3, "two activations and scratch memory");
  CHECK(bytes(plan_of(4, {3}, true, all)) == 9, "of four images");
  CHECK(bytes(plan_of(4, {0, 3}, true, all)) == 13, "a tap that stays lies beside them");
  CHECK(bytes(plan_of(1, {1}, false, all)) == 3, "an output that leaves takes none");
  CHECK(bytes(plan_of(1, {0}, false, all)) == 2, "an output that leaves takes none");
  const Plan grouped = plan_of(4, {3}, false, 512);
  CHECK(grouped.stages.size() == 1 && grouped.stages[0].images == 1, grouped.stages.size(), " stages");
  CHECK(bytes(grouped) == 4 + 2 + 1, "all images, and two activations of one: ", bytes(grouped));
  CHECK(plan_of(0, {3}, false, all).bytes == 0, "no images");
}

/// A map lies in blocks where its layer makes them, the next one takes them, and nobody asks for it in another dtype.
void check_blocks() {
  std::vector<Layer> layers{conv(1, 1), conv(1, 1), conv(1, 1)};
  layers[0].leaves = DType::u8;
  layers[0].makes_blocks = layers[1].makes_blocks = layers[1].takes_blocks = layers[2].takes_blocks = true;
  const auto blocked = [&](const std::vector<int64_t>& outputs) {
    const auto room = [](const plan::Shape&, DType dtype) { return plan::BlockedRoom{100 * size_of(dtype), 10}; };
    const Plan plan = plan::make_plan(layers, {2, 8, 8, 1}, outputs,
                                      {.map = DType::f32,
                                       .rows = DType::f32,
                                       .alignment = 1,
                                       .keeps_outputs = true,
                                       .blocked_room = room,
                                       .scratch = [](const auto&...) { return size_t{0}; }});
    const Activation& first = plan.activations[1];
    const size_t bytes = first.blocked ? 100 * size_of(first.dtype) : 64 * size_of(first.dtype);
    CHECK(first.image_bytes == bytes, first.image_bytes, " bytes an image, expected ", bytes);
    return std::vector<bool>{first.blocked, plan.activations[2].blocked, plan.activations[3].blocked};
  };
  CHECK(blocked({2}) == (std::vector<bool>{true, true, false}));
  CHECK(blocked({0, 2}) == (std::vector<bool>{false, true, false}), "the first one leaves as float32");
}

}  // namespace
}  // namespace vggfast::test

int main() {
  using namespace vggfast::test;
  check_random_networks();
  check_sizes();
  check_blocks();
  return result();
}
