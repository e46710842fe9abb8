"""Masks: what ReLU and 2x2 max-pool keep for their backward, as bits (layout: csrc/include/vggfast/mask.h).

A mask is uint8, (N, planes, OH, OW, ceil(C / 8)): one plane for ReLU, two for pool, three for both. That is 1/32
to 3/32 of a pooled float32 activation, where torch keeps the activation and, for pool, an int64 index.
"""

from __future__ import annotations

from torch import Tensor

from vggfast.ops import _library as lib
from vggfast.ops._backends import backend_of


def empty_mask(y: Tensor, relu: bool, pool: bool) -> Tensor:
    """Room for the mask of outputs `y`; no room where there is nothing to remember."""
    planes = relu + 2 * pool
    if planes == 0:
        return y.new_empty(0, dtype=lib.BITS)
    n, c, h, w = y.shape
    return y.new_empty((n, planes, h, w, (c + 7) // 8), dtype=lib.BITS)


def check_mask(t: Tensor, name: str, mask: Tensor, size: tuple[int, ...], mask_name: str = "mask") -> tuple[bool, bool]:
    """(relu, pool) of a mask that fits outputs (N, C) of `t` and extents `size`."""
    lib.check_activation(t, name)
    expected = (t.shape[0], *size, (t.shape[1] + 7) // 8)
    if mask.dim() != 5 or mask.dtype != lib.BITS or not 1 <= mask.shape[1] <= 3:
        raise ValueError(
            f"{mask_name} must be torch.uint8 of shape (N, 1 to 3 planes, OH, OW, bytes), "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    if (mask.shape[0], *mask.shape[2:]) != expected:
        raise ValueError(
            f"{mask_name} must have shape {expected}, with the planes after N, for {name}, got {tuple(mask.shape)}"
        )
    return mask.shape[1] != 2, mask.shape[1] >= 2


# ---- gather: the elements that were selected ------------------------------------------------------------------------


def _gather_output(z, mask) -> Tensor:
    check_mask(z, "z", mask, tuple(mask.shape[2:4]))
    return lib.empty_nhwc(z, (*z.shape[:2], mask.shape[2], mask.shape[3]))


def _gather_run(z, mask):
    y = _gather_output(z, mask)
    backend_of(z).run("mask_gather", lib.nhwc(z), lib.contiguous(mask), y)
    return y


def _gather_setup(ctx, inputs, output):
    z, mask = inputs
    ctx.save_for_backward(mask)
    ctx.size = z.shape[2:]


def _gather_backward(ctx, gy):
    (mask,) = ctx.saved_tensors
    return mask_scatter(gy, mask, *ctx.size), None


def _gather_vmap(info, in_dims, z, mask):
    size = info.batch_size
    return lib.unfold(mask_gather(lib.fold(z, in_dims[0], size), lib.fold(mask, in_dims[1], size)), size), 0


def _gather_jvp(args, outputs, tangents):
    return mask_gather(tangents[0], args[1])


mask_gather = lib.register(
    "mask_gather(Tensor z, Tensor mask) -> Tensor",
    run=_gather_run,
    fake=_gather_output,
    vmap=_gather_vmap,
    setup_context=_gather_setup,
    backward=_gather_backward,
    jvp=_gather_jvp,
)


# ---- scatter: its transpose -----------------------------------------------------------------------------------------


def _scatter_output(y, mask, h, w) -> Tensor:
    check_mask(y, "y", mask, tuple(y.shape[2:]))
    if h < 1 or w < 1:
        raise ValueError(f"h and w must be at least 1, got {h} and {w}")
    return lib.empty_nhwc(y, (*y.shape[:2], h, w))


def _scatter_run(y, mask, h, w):
    z = _scatter_output(y, mask, h, w)
    backend_of(y).run("mask_scatter", lib.nhwc(y), lib.contiguous(mask), z)
    return z


def _scatter_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _scatter_backward(ctx, gz):
    (mask,) = ctx.saved_tensors
    return mask_gather(gz, mask), None, None, None


def _scatter_vmap(info, in_dims, y, mask, h, w):
    size = info.batch_size
    folded = mask_scatter(lib.fold(y, in_dims[0], size), lib.fold(mask, in_dims[1], size), h, w)
    return lib.unfold(folded, size), 0


def _scatter_jvp(args, outputs, tangents):
    return mask_scatter(tangents[0], *args[1:])


mask_scatter = lib.register(
    "mask_scatter(Tensor y, Tensor mask, SymInt h, SymInt w) -> Tensor",
    run=_scatter_run,
    fake=_scatter_output,
    vmap=_scatter_vmap,
    setup_context=_scatter_setup,
    backward=_scatter_backward,
    jvp=_scatter_jvp,
)
