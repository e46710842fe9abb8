// What every family of convolution kernels offers, and the table of them. A family is one folder here that defines a
// ConvAlgorithm. conv.cu takes, for each pass, the first of the table that supports the problem; the sizes of
// workspaces and the runs go through the same choice.
#pragma once

#include <span>

#include "vggfast/cuda.h"

namespace vggfast::cuda {

/// The arguments of a pass. Pointers that are only a run's may be null where the workspace is asked for.
struct ConvFprop {
  const Tensor &x, &weight;
  Epilogue epilogue;
  const Context& context;
  const Tensor* y = nullptr;                      // of a run
  const Tensor *bias = nullptr, *mask = nullptr;  // of a run, or null there too
  const Workspace* packed = nullptr;              // what conv_pack made of the weight, or null: a run packs it
};
struct ConvDgrad {
  const Tensor& gy;
  const Masked& masked;
  const Tensor& weight;
  int64_t h, w;  // of gx
  const Context& context;
  const Tensor* gx = nullptr;         // of a run
  const Tensor* x_mask = nullptr;     // of a run, or null there too
  const Workspace* packed = nullptr;  // as in ConvFprop
};
struct ConvWgrad {
  const Tensor &x, &gy;
  const Masked& masked;
  int64_t kernel;
  const Context& context;
  const Tensor* gw = nullptr;  // of a run
  const Tensor* gb = nullptr;  // of a run, or null there too
};

/// How a family computes a pass. `workspace_bytes` and `run` are called only for problems that it supports.
template <class Problem>
struct ConvPass {
  bool (*supports)(const Problem&);
  size_t (*workspace_bytes)(const Problem&);
  void (*run)(const Problem&, Workspace);
};

struct ConvAlgorithm {
  const char* name;
  ConvPass<ConvFprop> fprop;
  ConvPass<ConvDgrad> dgrad;
  ConvPass<ConvWgrad> wgrad;
};

/// What the kernels for sm_90a add to a build that has them.
struct Sm90Library {
  ConvAlgorithm conv;
  /// The bodies of the ops of the same names, whose arguments have been checked.
  void (*fprop_scaled)(const Tensor& x, const Tensor& weight, const Tensor* bias, double scale, Epilogue e,
                       const Tensor& y, const Context& context);
  void (*block1)(const Tensor& x, const Tensor& w1, const Tensor* b1, const Tensor& w2, const Tensor* b2,
                 const Tensor& y, const Context& context);
  decltype(conv_choices)* choices;
  decltype(conv_clusters)* clusters;
};

/// Null where the build has none: VGGFAST_CUDA_ARCHS without 90a.
const Sm90Library* sm90_library();

extern const ConvAlgorithm stem_conv, sm80_conv;

/// The families of this build, the preferred one first. The last one supports every convolution.
std::span<const ConvAlgorithm* const> conv_algorithms();

}  // namespace vggfast::cuda
