// What an engine does for one shape of images, on any device: its layers fused into steps, and where in one arena of
// memory the steps' activations lie.
//
// The planner knows layers as data and runs nothing. A back end says what its kernels can fuse, what its activations
// are kept in, how much scratch memory a step takes and how many bytes a step may move at a time.
#pragma once

#include <functional>
#include <limits>
#include <optional>
#include <vector>

#include "vggfast/tensor.h"

namespace vggfast::plan {

enum class Kind { conv, relu, max_pool, lrn, flatten, windows, linear, row_mean };

/// A layer as the planner sees it. Each reads the output of the one before.
struct Layer {
  Kind kind;
  int64_t cin = 0, channels = 0;  // conv and linear: channels of the input and of the output
  int64_t size = 0;               // flatten and windows: of the grid or window
  bool ceil_mode = false;         // max_pool
  // What the back end makes of it:
  bool fuses_pool = true;  // conv: whether one step computes it and the pool behind it
  bool nhwc_rows = false;  // flatten and windows: a row has the order of the map, so that it may stay where it is
  std::optional<DType> leaves = {};  // conv, linear: what its output is kept in if no output of the network's
  // conv: whether its input may be a map in blocks, and its output, if kept so
  bool takes_blocks = false, makes_blocks = false;
};

/// Of a map, which lies as NHWC or in blocks, as the back end has them; or of rows: n rows of c values.
struct Shape {
  int64_t n, h, w, c;
  bool rows = false;

  int64_t values() const { return n * h * w * c; }
  bool operator==(const Shape&) const = default;
};

/// What one step writes and the next one reads.
struct Activation {
  Shape shape;  // of the whole batch
  DType dtype;
  bool blocked = false;     // whether it is a map in blocks
  size_t image_bytes = 0;   // of one image
  size_t beyond_bytes = 0;  // past the last image, which are read and mean nothing
  int output = -1;          // which of the outputs that the caller asked for it is, or none
  bool in_arena = true;     // false: it lies in the caller's memory, as that output
  bool whole = true;  // whether there is room for the whole batch; else for the images that its stage runs at a time
  size_t offset = 0;  // in the arena
};

/// Layers [first, last], computed together.
struct Step {
  size_t first, last;
  bool relu = false, pool = false;
  bool block1 = false;    // the network's first two convolutions with their ReLUs, and the pool behind them
  bool in_place = false;  // its output lies where its input does
  size_t scratch_bytes = 0, scratch_offset = 0;
};

/// Steps [begin, end), which run for `images` images at a time: what passes between them is as large as that.
struct Stage {
  size_t begin, end;
  int64_t images;
};

/// Memory of maps in blocks: an Activation's image_bytes and beyond_bytes.
struct BlockedRoom {
  size_t image_bytes, beyond_bytes;
};

struct Plan {
  std::vector<Step> steps;
  std::vector<Activation> activations;  // step i reads number i and writes number i + 1
  std::vector<Stage> stages;            // none for an empty batch
  size_t bytes = 0;                     // of the arena
};

/// What the planner asks of a back end.
struct Backend {
  DType map, rows;      // what maps and rows are kept in; means of rows are float32
  size_t alignment;     // of activations and scratch memory in the arena, in bytes
  bool keeps_outputs;   // whether outputs stay in the arena till the end of a run. Else a step writes a float32
                        // output into the caller's memory, and the caller copies any other before the next step
  bool block1 = false;  // whether one step computes block 1
  int64_t group_bytes = std::numeric_limits<int64_t>::max();          // of activations that a step may move at a time
  std::function<BlockedRoom(const Shape&, DType)> blocked_room = {};  // where layers are blocked
  /// Bytes of scratch memory that a step takes for so many images.
  std::function<size_t(const Step&, const Activation& source, const Activation& target, int64_t images)> scratch;
};

/// Throws unless `outputs` are numbers of layers, ascending.
void check_outputs(const std::vector<Layer>& layers, const std::vector<int64_t>& outputs);

/// The shape that a layer makes of its input's, in a batch of so many images. Throws Error where it cannot take it.
Shape shape_after(const Layer& layer, const Shape& in, int64_t images);

/// The shapes of the outputs of these layers, ascending. Throws Error where a layer cannot take its input.
std::vector<Shape> output_shapes(const std::vector<Layer>& layers, const Shape& images,
                                 const std::vector<int64_t>& outputs);

/// The layers up to the last of `outputs`, in the longest runs that one step computes. An output ends a run.
std::vector<Step> fuse(const std::vector<Layer>& layers, const std::vector<int64_t>& outputs, bool block1);

/// `images`: the shape of the batch. `outputs`: the layers whose outputs the caller asks for, ascending.
Plan make_plan(const std::vector<Layer>& layers, const Shape& images, const std::vector<int64_t>& outputs,
               const Backend& backend);

/// Gives each activation and each step's scratch memory its place in the arena (arena.cpp).
void lay_out(Plan& plan, const Backend& backend);

}  // namespace vggfast::plan
