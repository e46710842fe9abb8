"""Selections: what ReLU and 2x2 max-pool keep for their backward, as bits (layout: csrc/include/vggfast/selection.h).

A selection is uint8, (N, planes, OH, OW, ceil(C / 8)): one plane for ReLU, two for pool, three for both. That is 1/32
to 3/32 of a pooled float32 activation, where torch keeps the activation and, for pool, an int64 index.
"""

from __future__ import annotations

from torch import Tensor

from vggfast.ops import _library as lib
from vggfast.ops._backends import backend_of


def empty_selection(y: Tensor, relu: bool, pool: bool) -> Tensor:
    """Room for the selection of outputs `y`; no room where there is nothing to remember."""
    planes = relu + 2 * pool
    if planes == 0:
        return y.new_empty(0, dtype=lib.BITS)
    n, c, h, w = y.shape
    return y.new_empty((n, planes, h, w, (c + 7) // 8), dtype=lib.BITS)


def check_selection(t: Tensor, name: str, selection: Tensor, size: tuple[int, int]) -> tuple[bool, bool]:
    """(relu, pool) of a selection that fits outputs (N, C) of `t` and extents `size`."""
    lib.check_activation(t, name)
    wanted = (t.shape[0], *size, (t.shape[1] + 7) // 8)
    if selection.dim() != 5 or selection.dtype != lib.BITS or not 1 <= selection.shape[1] <= 3:
        raise ValueError(
            f"selection is {selection.dtype} of shape {tuple(selection.shape)}: torch.uint8, "
            "(N, 1 to 3 planes, OH, OW, bytes) is wanted"
        )
    if (selection.shape[0], *selection.shape[2:]) != wanted:
        raise ValueError(
            f"selection has shape {tuple(selection.shape)}: {wanted}, with the planes after N, is wanted for {name}"
        )
    return selection.shape[1] != 2, selection.shape[1] >= 2


# ---- gather: the elements that were selected ------------------------------------------------------------------------


def _gather_output(z, selection) -> Tensor:
    check_selection(z, "z", selection, (selection.shape[2], selection.shape[3]))
    return lib.empty_nhwc(z, (*z.shape[:2], selection.shape[2], selection.shape[3]))


def _gather_run(z, selection):
    y = _gather_output(z, selection)
    backend_of(z).run("gather_selected", lib.nhwc(z), selection.contiguous(), y)
    return y


def _gather_setup(ctx, inputs, output):
    z, selection = inputs
    ctx.save_for_backward(selection)
    ctx.size = z.shape[2:]


def _gather_backward(ctx, gy):
    (selection,) = ctx.saved_tensors
    return scatter_selected(gy, selection, *ctx.size), None


def _gather_vmap(info, in_dims, z, selection):
    size = info.batch_size
    return lib.unfold(gather_selected(lib.fold(z, in_dims[0], size), lib.fold(selection, in_dims[1], size)), size), 0


gather_selected = lib.register(
    "gather_selected(Tensor z, Tensor selection) -> Tensor",
    run=_gather_run,
    fake=_gather_output,
    vmap=_gather_vmap,
    setup_context=_gather_setup,
    backward=_gather_backward,
)


# ---- scatter: its transpose -----------------------------------------------------------------------------------------


def _scatter_output(y, selection, h, w) -> Tensor:
    check_selection(y, "y", selection, (y.shape[2], y.shape[3]))
    return lib.empty_nhwc(y, (*y.shape[:2], h, w))


def _scatter_run(y, selection, h, w):
    z = _scatter_output(y, selection, h, w)
    backend_of(y).run("scatter_selected", lib.nhwc(y), selection.contiguous(), z)
    return z


def _scatter_setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _scatter_backward(ctx, gz):
    (selection,) = ctx.saved_tensors
    return gather_selected(gz, selection), None, None, None


def _scatter_vmap(info, in_dims, y, selection, h, w):
    size = info.batch_size
    folded = scatter_selected(lib.fold(y, in_dims[0], size), lib.fold(selection, in_dims[1], size), h, w)
    return lib.unfold(folded, size), 0


scatter_selected = lib.register(
    "scatter_selected(Tensor y, Tensor selection, SymInt h, SymInt w) -> Tensor",
    run=_scatter_run,
    fake=_scatter_output,
    vmap=_scatter_vmap,
    setup_context=_scatter_setup,
    backward=_scatter_backward,
)
