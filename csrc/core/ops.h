// The table of ops: what a back end is to the bindings, and to whoever runs a network on any device.
#pragma once

#include "vggfast/conv.h"
#include "vggfast/images.h"
#include "vggfast/lrn.h"
#include "vggfast/pool.h"

namespace vggfast {

/// The functions that every back end has, each as the CPU's of the same name. A back end fills it with designated
/// initialisers.
struct Ops {
  decltype(&vggfast::conv_fprop_workspace) conv_fprop_workspace;
  decltype(&vggfast::conv_dgrad_workspace) conv_dgrad_workspace;
  decltype(&vggfast::conv_wgrad_workspace) conv_wgrad_workspace;
  decltype(&vggfast::conv_fprop) conv_fprop;
  decltype(&vggfast::conv_dgrad) conv_dgrad;
  decltype(&vggfast::conv_wgrad) conv_wgrad;
  decltype(&vggfast::max_pool2x2) max_pool2x2;
  decltype(&vggfast::mask_gather) mask_gather;
  decltype(&vggfast::mask_scatter) mask_scatter;
  decltype(&vggfast::sum_pool) sum_pool;
  decltype(&vggfast::mean_posteriors) mean_posteriors;
  decltype(&vggfast::mean_posteriors_dgrad) mean_posteriors_dgrad;
  decltype(&vggfast::lrn_fprop) lrn_fprop;
  decltype(&vggfast::lrn_dgrad_workspace) lrn_dgrad_workspace;
  decltype(&vggfast::lrn_dgrad) lrn_dgrad;
  decltype(&vggfast::prepare_images) prepare_images;
};

}  // namespace vggfast
