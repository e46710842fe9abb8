// Convolution, 3x3 (pad 1) or 1x1, stride 1, with bias, ReLU and 2x2/2 max-pool in its epilogue.
//
// x, y and their gradients are dense NHWC; weights are (Cout, Cin, K, K) with any strides, K = 1 or 3.
// Sums are accumulated in the tensors' own dtype, those of bfloat16 in float; results do not depend on the number of
// threads.
#pragma once

#include "vggfast/mask.h"
#include "vggfast/tensor.h"

namespace vggfast {

/// Sets the algorithm of float32 convolutions from now on: "auto" (chosen for each shape), "direct", or "winograd2",
/// "winograd4", "winograd6", which compute 3x3 convolutions by F(m x m, 3 x 3) with that m. float64 is always direct.
///
/// On the instruction sets amx and amx-emulated there are also "bf16x6" and "bf16x3", for fprop and dgrad, of 3x3 and
/// 1x1: direct sums, on tiles, of 6 products of bfloat16 in place of one of float32, which round no more than "direct",
/// or of 3, which leave up to 2^-15 of each product. What lies under 2^-126 counts as 0 there: an input or a weight
/// under 2^-102 (2^-109 for 3) loses lower bits, and so does a sum. A product beyond the largest float may be NaN in
/// place of infinite. What an algorithm does not support is computed by the cheapest that does, and for "direct" and
/// "bf16x6" by the most exact.
///
/// Throws Error for any name that conv_algorithms() does not have.
void set_conv_algorithm(const std::string& name);
std::string conv_algorithm();
/// What set_conv_algorithm takes on the instruction set in use: "auto", and the names of the algorithms that it has.
std::vector<std::string> conv_algorithms();

/// The algorithm that a float32 convolution of x (n, cin, h, w) to `cout` channels runs by, as now set, and its cost.
struct ConvCost {
  std::string algorithm;  // "direct" (the first layer's own kernel too), "1x1", or as set_conv_algorithm has it
  int64_t multiply_adds;  // of the products alone; transforms are not counted
};
/// `pass`: "fprop", "dgrad" or "wgrad"; for dgrad, cin is gy's channels and cout is x's.
ConvCost conv_cost(const std::string& pass, int64_t n, int64_t cin, int64_t h, int64_t w, int64_t cout, int64_t kernel);

/// What turns the gradient of an epilogue's output into the gradient of its input: the epilogue, and the mask that it
/// stored. Without a mask, the two gradients are the same.
struct Masked {
  const Tensor* mask = nullptr;
  Epilogue epilogue = {};

  bool pooled() const { return mask && epilogue.pool; }
};

/// Whether convolutions take this dtype: float32 and float64, and bfloat16 where the instruction set in use has
/// convolutions on tiles.
bool conv_takes(DType dtype);

/// Bytes of workspace that the functions below need.
size_t conv_fprop_workspace(const Tensor& x, const Tensor& weight, Epilogue e, Context context);
size_t conv_dgrad_workspace(const Tensor& gy, const Masked& masked, const Tensor& weight, int64_t h, int64_t w,
                            Context context);
size_t conv_wgrad_workspace(const Tensor& x, const Tensor& gy, const Masked& masked, int64_t kernel, Context context);

/// y = epilogue(conv(x, weight) + bias); writes `mask` too. `bias` (Cout) and `mask` may be null.
void conv_fprop(const Tensor& x, const Tensor& weight, const Tensor* bias, Epilogue e, const Tensor& y,
                const Tensor* mask, Workspace workspace, Context context);

/// How conv_fprop's weights are packed for several calls with the same ones.
struct ConvPacking {
  std::string layout;  // two of one name, for weights of one shape, are the same
  size_t bytes = 0;    // of the packed weights; 0 where packing takes too little of such a call to be kept
};
/// `context`'s threads and set_conv_algorithm have a say in it, as in conv_fprop's choice of an algorithm.
ConvPacking conv_packing(const Tensor& x, const Tensor& weight, Epilogue e, Context context);
/// Packs `weight` for such calls. `packed` has as many bytes as conv_packing says, which are not 0.
void conv_pack(const Tensor& x, const Tensor& weight, Epilogue e, Workspace packed, Context context);
size_t conv_fprop_packed_workspace(const Tensor& x, const Tensor& weight, Epilogue e, Context context);
/// As conv_fprop, bit by bit, by what conv_pack made of `original`, a copy of `weight` with its strides; both fill
/// their memory without gaps. Returns false, and computes nothing, where the two differ in any bit.
bool conv_fprop_packed(const Tensor& x, const Tensor& weight, const Tensor& original, Workspace packed,
                       const Tensor* bias, Epilogue e, const Tensor& y, const Tensor* mask, Workspace workspace,
                       Context context);

/// Writes gx, the gradient with respect to x. `x_mask`, unless it is null, is the mask that a ReLU left of x: gx is
/// then the gradient of what the ReLU took, 0 where it let nothing pass.
void conv_dgrad(const Tensor& gy, const Masked& masked, const Tensor& weight, const Tensor& gx, Workspace workspace,
                Context context, const Tensor* x_mask = nullptr);
/// Writes gw and, unless it is null, gb (Cout): the gradients with respect to weight and bias, of x's dtype; but of
/// float32 where the CPU takes bfloat16.
void conv_wgrad(const Tensor& x, const Tensor& gy, const Masked& masked, const Tensor& gw, const Tensor* gb,
                Workspace workspace, Context context);

}  // namespace vggfast
