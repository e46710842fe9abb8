// Where the activations of a plan lie in its arena.
//
// They go to and fro between the two ends: a step reads at one end and writes at the other, with its scratch memory
// between them, so that the arena is as large as the largest step. A stage that runs a few images at a time has its
// whole input at one end and its whole output at the other; what its steps pass to each other goes to and fro between
// those. Outputs that stay till the end of a run lie in front of all that, where nothing overwrites them.
#include <algorithm>
#include <utility>

#include "plan/plan.h"

namespace vggfast::plan {
namespace {

/// Memory of one activation, or of several that are written over each other.
struct Place {
  size_t bytes = 0;
  bool moves = false;   // lies at an end of the arena, for as long as it is needed
  bool at_end = false;  // at which one
  size_t inset = 0;     // how far from that end; or where a place that does not move lies
};

class Layout {
 public:
  Layout(Plan& plan, const Backend& backend) : plan_(plan), backend_(backend), place_of_(plan.activations.size()) {}

  void run() {
    make_places();
    places_[place_of_[0]].at_end = false;
    for (const Stage& stage : plan_.stages) lay_out(stage);
    for (size_t i = 0; i < place_of_.size(); ++i) {
      const Place& place = places_[place_of_[i]];
      plan_.activations[i].offset = !place.moves   ? place.inset
                                    : place.at_end ? kept_ + room_ - place.inset - place.bytes
                                                   : kept_ + place.inset;
    }
    for (Step& step : plan_.steps) step.scratch_offset += kept_;
    plan_.bytes = kept_ + room_;
  }

 private:
  size_t aligned(size_t bytes) const {
    return (bytes + backend_.alignment - 1) / backend_.alignment * backend_.alignment;
  }

  /// The places and their sizes; those that stay get theirs at once.
  void make_places() {
    const int64_t batch = plan_.activations[0].shape.n;
    size_t stage = 0;
    for (size_t i = 0; i < plan_.activations.size(); ++i) {
      const Activation& a = plan_.activations[i];
      while (i > plan_.stages[stage].end) ++stage;
      const int64_t images = a.whole ? batch : plan_.stages[stage].images;
      if (i == 0 || !plan_.steps[i - 1].in_place) {
        const size_t bytes = a.image_bytes * static_cast<size_t>(images) + a.beyond_bytes;
        places_.push_back({.bytes = a.in_arena ? aligned(bytes) : 0, .moves = a.in_arena});
      }
      place_of_[i] = places_.size() - 1;
      if (a.output >= 0 && backend_.keeps_outputs) places_.back().moves = false;
    }
    if (plan_.activations.back().in_arena) places_.back().moves = true;  // nothing comes after it
    for (Place& place : places_) {
      if (!place.moves) place.inset = std::exchange(kept_, kept_ + place.bytes);
    }
  }

  void lay_out(const Stage& stage) {
    size_t taken[2] = {0, 0};  // at the two ends, by the stage's input and output
    const auto take = [&](const Place& place) {
      if (place.moves) taken[place.at_end] += place.bytes;
    };
    const size_t in = place_of_[stage.begin], out = place_of_[stage.end];
    take(places_[in]);
    if (out != in) {
      places_[out].at_end = opposite(places_[in]);
      take(places_[out]);
    }
    for (size_t s = stage.begin; s < stage.end; ++s) {
      Step& step = plan_.steps[s];
      size_t used[2] = {taken[0], taken[1]};
      const size_t source = place_of_[s], target = place_of_[s + 1];
      if (s + 1 < stage.end) {
        places_[target].at_end = opposite(places_[source]);
        if (places_[target].moves) places_[target].inset = taken[places_[target].at_end];
      }
      for (const size_t inner : {source, target}) {
        if (inner != in && inner != out && places_[inner].moves) used[places_[inner].at_end] += places_[inner].bytes;
      }
      step.scratch_offset = used[0];
      room_ = std::max(room_, used[0] + used[1] + aligned(step.scratch_bytes));
    }
  }

  /// The end for what a step makes of `source`.
  static bool opposite(const Place& source) { return source.moves && !source.at_end; }

  Plan& plan_;
  const Backend& backend_;
  std::vector<Place> places_;
  std::vector<size_t> place_of_;  // the activations'
  size_t kept_ = 0, room_ = 0;    // bytes of the outputs that stay, and of the rest
};

}  // namespace

void lay_out(Plan& plan, const Backend& backend) { Layout(plan, backend).run(); }

}  // namespace vggfast::plan
