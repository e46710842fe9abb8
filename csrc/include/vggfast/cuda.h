// The CUDA back end's ops. They launch on context.stream and return at once; all tensors lie on the current device,
// which is of sm_80 or later. Tensors are bfloat16, float16, float32 or float64, and sums are at least float32. Results
// are equal to the bit from run to run. Layouts and meanings are those of the CPU's functions of the same names.
#pragma once

#include <array>

#include "vggfast/conv.h"
#include "vggfast/images.h"
#include "vggfast/lrn.h"
#include "vggfast/mask.h"
#include "vggfast/pool.h"

namespace vggfast::cuda {

/// Makes convolutions use this tile from now on, wherever the tile supports them: "auto" (chosen by shape); a tile of
/// the sm_80 kernels, "large" (128 pixels x 128 channels), "tall" (128 x 64) or "small" (64 x 64); or a tile of the
/// Hopper kernels. For tests and tuning. Throws Error for a name that conv_tiles() does not have.
void set_conv_tile(const std::string& name);
std::string conv_tile();
std::vector<std::string> conv_tiles();

/// A tile of the Hopper kernels, the clocks that it is estimated to take, how many it would take if the warpgroups that
/// share it stored at the same time, and whether "auto" chooses it.
struct ConvChoice {
  std::string tile;
  double clocks, clocks_in_step;
  bool chosen;
};
/// What "auto" chooses among for fprop (for dgrad, cin is gy's channels), least clocks first: 3x3 or 1x1, of values of
/// 1, 2 or 4 bytes, on a GPU of so many SMs that runs so many clusters of 2, 4 and 8 blocks at once.
std::vector<ConvChoice> conv_choices(int64_t n, int64_t cin, int64_t h, int64_t w, int64_t cout, int64_t kernel,
                                     bool pool, int64_t bytes, int num_sms, const std::array<int, 3>& clusters);
/// How many that are on the current device, which must be a Hopper GPU.
std::array<int, 3> conv_clusters();

size_t conv_fprop_workspace(const Tensor& x, const Tensor& weight, Epilogue e, Context context);
size_t conv_dgrad_workspace(const Tensor& gy, const Masked& masked, const Tensor& weight, int64_t h, int64_t w,
                            Context context);
size_t conv_wgrad_workspace(const Tensor& x, const Tensor& gy, const Masked& masked, int64_t kernel, Context context);
void conv_fprop(const Tensor& x, const Tensor& weight, const Tensor* bias, Epilogue e, const Tensor& y,
                const Tensor* mask, Workspace workspace, Context context);
void conv_dgrad(const Tensor& gy, const Masked& masked, const Tensor& weight, const Tensor& gx, Workspace workspace,
                Context context, const Tensor* x_mask = nullptr);
void conv_wgrad(const Tensor& x, const Tensor& gy, const Masked& masked, const Tensor& gw, const Tensor* gb,
                Workspace workspace, Context context);

/// Where kernels read weights in another order than they lie in, each call packs them, in its workspace. For several
/// calls with the same weights: conv_pack packs them once, `mirrored` for dgrad, to memory of as many bytes as
/// conv_pack_workspace says, for these functions, which compute as those above, bit by bit, with a context of the same
/// tf32. `packed` is not looked at where the weights are read as they lie.
size_t conv_pack_workspace(const Tensor& weight, bool mirrored, Context context);
void conv_pack(const Tensor& weight, bool mirrored, Workspace packed, Context context);
size_t conv_fprop_prepacked_workspace(const Tensor& x, const Tensor& weight, Epilogue e, Context context);
size_t conv_dgrad_prepacked_workspace(const Tensor& gy, const Masked& masked, const Tensor& weight, int64_t h,
                                      int64_t w, Context context);
void conv_fprop_prepacked(const Tensor& x, const Tensor& weight, const Tensor* bias, Epilogue e, const Tensor& y,
                          const Tensor* mask, Workspace packed, Workspace workspace, Context context);
void conv_dgrad_prepacked(const Tensor& gy, const Masked& masked, const Tensor& weight, const Tensor& gx,
                          Workspace packed, Workspace workspace, Context context, const Tensor* x_mask = nullptr);

/// fprop of quantised values, for Hopper GPUs alone: y = epilogue(scale * conv(x, weight) + bias). x and y are e4m3 or
/// bfloat16, and at least one of them is e4m3; what is too large for e4m3 becomes its largest finite value. weight has
/// x's dtype and is dense as (Cout, K, K, Cin); `bias` is float32 or null. A pixel of x is a multiple of 16 bytes; Cout
/// is a multiple of 16 where y is e4m3, else of 8.
void conv_fprop_scaled(const Tensor& x, const Tensor& weight, const Tensor* bias, double scale, Epilogue e,
                       const Tensor& y, Context context);

/// Block 1 of a VGG for inference, in one kernel: y (N, 64, H / 2, W / 2) = max-pool(relu(conv(a, w2) + b2)), where a =
/// relu(conv(x, w1) + b1) rounded to the dtype, bfloat16 or float16. x (N, C, H, W) has 1 to 4 channels; w1
/// (64, C, 3, 3) may have any strides; w2 (64, 64, 3, 3) is dense as (64, 3, 3, 64); w2 and y begin at multiples of 16
/// bytes; the biases may be null.
void conv_block1(const Tensor& x, const Tensor& w1, const Tensor* b1, const Tensor& w2, const Tensor* b2,
                 const Tensor& y, Context context);
/// Whether this GPU and build have conv_block1, and the tile is "auto": conv_block1 uses no other.
bool has_conv_block1();

void max_pool2x2(const Tensor& x, const Tensor& y, const Tensor* mask, Context context);
void mask_gather(const Tensor& z, const Tensor& mask, Epilogue e, const Tensor& y, Context context);
void mask_scatter(const Tensor& y, const Tensor& mask, Epilogue e, const Tensor& z, Context context);

void sum_pool(const Tensor& x, bool mean, const Tensor& y, Context context);
void mean_posteriors(const Tensor& maps, int64_t views, const Tensor& scores, Context context);
void mean_posteriors_dgrad(const Tensor& gscores, const Tensor& maps, int64_t views, const Tensor& gmaps,
                           Context context);

void lrn_fprop(const Tensor& x, LrnParams p, const Tensor& y, Context context);
size_t lrn_dgrad_workspace(const Tensor& x, Context context);
void lrn_dgrad(const Tensor& gy, const Tensor& x, LrnParams p, const Tensor& gx, Workspace workspace, Context context);

void prepare_images(const Tensor& images, const Crops& crops, const Normalisation& normalisation, const Tensor& y,
                    Context context);

}  // namespace vggfast::cuda
