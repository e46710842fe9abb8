"""2x2/2 max-pool that remembers two bits an output."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import has_torch_function_unary

from vggfast._checks import check_dense, check_flag
from vggfast.ops import _library as lib
from vggfast.ops import reference
from vggfast.ops._backends import backend_of
from vggfast.ops.mask import empty_mask, mask_gather, mask_scatter


def _max_pool_outputs(x, ceil_mode, save) -> tuple[Tensor, Tensor]:
    lib.check_activation(x, "x")
    n, c, h, w = x.shape
    if not ceil_mode and (h < 2 or w < 2):
        raise ValueError(f"x must have H and W of at least 2 without ceil_mode, got shape {tuple(x.shape)}")
    up = 1 if ceil_mode else 0
    y = lib.empty_nhwc(x, (n, c, (h + up) // 2, (w + up) // 2))
    return y, empty_mask(y, False, True) if save else x.new_empty(0, dtype=lib.BITS)


def _max_pool_run(x, ceil_mode, save):
    y, mask = _max_pool_outputs(x, ceil_mode, save)
    backend_of(x).run("max_pool2x2", lib.nhwc(x), y, mask if save else None)
    return y, mask


def _max_pool_setup(ctx, inputs, output):
    x, _, save = inputs
    if not save:
        raise RuntimeError("save must be True where a gradient is to flow through max_pool, got False")
    ctx.save_for_backward(output[1])
    ctx.size = x.shape[2:]


def _max_pool_backward(ctx, gy, _):
    (mask,) = ctx.saved_tensors
    return mask_scatter(gy, mask, *ctx.size), None, None


def _max_pool_vmap(info, in_dims, x, ceil_mode, save):
    y, mask = max_pool(lib.fold(x, in_dims[0], info.batch_size), ceil_mode, save)
    y = lib.unfold(y, info.batch_size)
    return ((y, lib.unfold(mask, info.batch_size)), (0, 0)) if save else ((y, mask), (0, None))


def _max_pool_jvp(args, outputs, tangents):
    return mask_gather(tangents[0], outputs[1]), None


max_pool = lib.register(
    "max_pool(Tensor x, bool ceil_mode, bool save) -> (Tensor, Tensor)",
    run=_max_pool_run,
    fake=_max_pool_outputs,
    vmap=_max_pool_vmap,
    setup_context=_max_pool_setup,
    backward=_max_pool_backward,
    jvp=_max_pool_jvp,
    autocast=lib.Autocast.other,
)


def max_pool2x2(x: Tensor, *, ceil_mode: bool = False) -> Tensor:
    """Maximum of each 2x2 window, stride 2.

    The first maximum of a window takes the gradient; NaN passes through, as in torch.

    Args:
        x: (N, C, H, W), of a floating dtype, contiguous or channels_last.
        ceil_mode: an odd last row or column makes windows of its own instead of being left out.

    Returns:
        (N, C, H // 2, W // 2), rounded up with ceil_mode, in x's memory format.

    Raises:
        ValueError, TypeError: a shape, dtype or device that does not fit; the text names it.

    Source: Simonyan & Zisserman, section 2.1.
    """
    if has_torch_function_unary(x):
        return lib.overridden(max_pool2x2, (x,), x, ceil_mode=ceil_mode)
    if lib.exports_onnx():
        return reference.max_pool2x2(x, ceil_mode=ceil_mode)
    check_dense(x, "x")
    ceil_mode = check_flag(ceil_mode, "ceil_mode")
    return lib.in_format_of(x, max_pool(x, ceil_mode, lib.needs_grad(x))[0])
