"""Linear layers whose few rows leave nothing to do but to read the weights: the FC layers of a small batch.

``linear``, ``linear_dgrad`` and ``linear_wgrad`` are each other's derivatives. Each runs torch's product where ours has
no advantage: many rows, small weights, other dtypes, other layouts. bfloat16 has kernels on tile registers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from vggfast._checks import check_tensors
from vggfast.ops import _library as lib
from vggfast.ops import reference
from vggfast.ops._autograd import product_rule
from vggfast.ops._backends import OF_DEVICE, backend_of

# Of more rows torch's blocked product runs: it is as fast in float32. For bfloat16 on tiles nothing was measured; by
# their rates products of so many rows take less time than reading the weights.
MOST_ROWS = {torch.float32: 16, torch.bfloat16: 64}
LEAST_WEIGHTS = 1 << 21


def is_ours(rows: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether our kernels take a layer of this weight for these rows; with `dtype`, once both are cast to it."""
    return fits(rows, weight, dtype) and 0 < rows.shape[0] <= MOST_ROWS[dtype or rows.dtype]


def fits(rows: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> bool:
    """The same for some number of rows."""
    return (
        (dtype is not None or rows.dtype == weight.dtype)
        and rows.device.type == "cpu"
        and on_the_cpu(dtype or rows.dtype)
        and weight.numel() >= LEAST_WEIGHTS
        and weight.is_contiguous()
    )


def on_the_cpu(dtype: torch.dtype) -> bool:
    """Whether the CPU's back end has the kernels for a dtype. A compiler cannot trace this, as it may load the module:
    for it there are those for float32, and the op that it traces up to asks again when it runs."""
    if dtype not in MOST_ROWS or torch.compiler.is_compiling():
        return dtype == torch.float32
    backend = OF_DEVICE["cpu"](0)
    return backend.has("linear_fprop") and backend.takes("vggfast::linear", dtype)


def _check_matrices(**tensors: Tensor) -> None:
    """Two matrices of one dtype, on one device; the first is what the second is compared with."""
    (name, first), (other_name, other) = tensors.items()
    for each, t in tensors.items():
        if t.dim() != 2:
            raise ValueError(f"{each} must have 2 axes, got shape {tuple(t.shape)}")
    lib.check_float(first, name)
    lib.check_same(other, other_name, first, name)


def _check(x: Tensor, x_name: str, weight: Tensor, axis: int) -> None:
    _check_matrices(**{x_name: x, "weight": weight})
    if x.shape[1] != weight.shape[axis]:
        raise ValueError(
            f"axis 1 of {x_name} and axis {axis} of weight must have the same length, got shapes {tuple(x.shape)} and "
            f"{tuple(weight.shape)}"
        )


# ---- linear ---------------------------------------------------------------------------------------------------------


def _linear_output(x, weight, bias) -> Tensor:
    _check(x, "x", weight, 1)
    if bias is not None:
        if tuple(bias.shape) != (weight.shape[0],):
            raise ValueError(f"bias must have shape ({weight.shape[0]},), weight's outputs, got {tuple(bias.shape)}")
        lib.check_same(bias, "bias", x, "x")
    return lib.empty(x, (x.shape[0], weight.shape[0]))


def _linear_run(x, weight, bias):
    y = _linear_output(x, weight, bias)
    if not is_ours(x, weight):
        return torch.mm(x, weight.t(), out=y) if bias is None else torch.addmm(bias, x, weight.t(), out=y)
    backend_of(x).run("linear_fprop", lib.contiguous(x), weight, None if bias is None else lib.contiguous(bias), y)
    return y


def _linear_setup(ctx, inputs, output):
    x, weight, _ = inputs
    needs_x, needs_weight, ctx.bias = ctx.needs_input_grad[:3]
    ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)


def _linear_backward(ctx, gy):
    x, weight = ctx.saved_tensors
    gx = None if weight is None else linear_dgrad(gy, weight)
    gw = None if x is None else linear_wgrad(x, gy)
    return gx, gw, gy.sum(0) if ctx.bias else None


def _linear_vmap(info, in_dims, x, weight, bias):
    if in_dims[1] is not None or in_dims[2] is not None:
        return lib.loop_over_examples(linear_op, info, in_dims, (x, weight, bias))
    return lib.unfold(linear_op(lib.fold(x, in_dims[0], info.batch_size), weight, bias), info.batch_size), 0


def _linear_jvp(args, _, tangents):
    x, weight, _ = args
    y = None if tangents[0] is tangents[1] is None else product_rule(linear_op, (x, weight, None), tangents, (0, 1))
    if (bias := tangents[2]) is None:
        return y
    return bias.expand(x.shape[0], -1) if y is None else y + bias


def _linear_flops(x, weight, *args, **options) -> int:
    return 2 * x[0] * math.prod(weight)


linear_op = lib.register(
    "linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    run=_linear_run,
    fake=_linear_output,
    vmap=_linear_vmap,
    setup_context=_linear_setup,
    backward=_linear_backward,
    jvp=_linear_jvp,
    flops=_linear_flops,
    autocast=lib.Autocast.product,
)


# ---- dgrad ----------------------------------------------------------------------------------------------------------


def _dgrad_output(gy, weight) -> Tensor:
    _check(gy, "gy", weight, 0)
    return lib.empty(gy, (gy.shape[0], weight.shape[1]))


def _dgrad_run(gy, weight):
    gx = _dgrad_output(gy, weight)
    if not is_ours(gy, weight):
        return torch.mm(gy, weight, out=gx)
    backend_of(gy).run("linear_dgrad", lib.contiguous(gy), weight, gx)
    return gx


def _dgrad_setup(ctx, inputs, output):
    gy, weight = inputs
    needs_gy, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(gy if needs_weight else None, weight if needs_gy else None)


def _dgrad_backward(ctx, ggx):
    gy, weight = ctx.saved_tensors
    grad_gy = None if weight is None else linear_op(ggx, weight, None)
    return grad_gy, None if gy is None else linear_wgrad(ggx, gy)


def _dgrad_vmap(info, in_dims, gy, weight):
    if in_dims[1] is not None:
        return lib.loop_over_examples(linear_dgrad, info, in_dims, (gy, weight))
    return lib.unfold(linear_dgrad(lib.fold(gy, in_dims[0], info.batch_size), weight), info.batch_size), 0


def _dgrad_jvp(args, outputs, tangents):
    return product_rule(linear_dgrad, args, tangents, (0, 1))


linear_dgrad = lib.register(
    "linear_dgrad(Tensor gy, Tensor weight) -> Tensor",
    run=_dgrad_run,
    fake=_dgrad_output,
    vmap=_dgrad_vmap,
    setup_context=_dgrad_setup,
    backward=_dgrad_backward,
    jvp=_dgrad_jvp,
    flops=_linear_flops,
)


# ---- wgrad ----------------------------------------------------------------------------------------------------------


def _wgrad_output(x, gy) -> Tensor:
    _check_matrices(x=x, gy=gy)
    if x.shape[0] != gy.shape[0]:
        raise ValueError(f"x and gy must have the same N, got shapes {tuple(x.shape)} and {tuple(gy.shape)}")
    return lib.empty(x, (gy.shape[1], x.shape[1]))


def _wgrad_run(x, gy):
    gw = _wgrad_output(x, gy)
    if not is_ours(x, gw):
        return torch.mm(gy.t(), x, out=gw)
    backend_of(x).run("linear_wgrad", lib.contiguous(x), lib.contiguous(gy), gw)
    return gw


def _wgrad_setup(ctx, inputs, output):
    x, gy = inputs
    needs_x, needs_gy = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if needs_gy else None, gy if needs_x else None)


def _wgrad_backward(ctx, ggw):
    x, gy = ctx.saved_tensors
    return None if gy is None else linear_dgrad(gy, ggw), None if x is None else linear_op(x, ggw, None)


def _wgrad_vmap(info, in_dims, x, gy):
    return lib.loop_over_examples(linear_wgrad, info, in_dims, (x, gy))


def _wgrad_jvp(args, outputs, tangents):
    return product_rule(linear_wgrad, args, tangents, (0, 1))


def _wgrad_flops(x, gy, **options) -> int:
    return 2 * math.prod(x) * gy[1]


linear_wgrad = lib.register(
    "linear_wgrad(Tensor x, Tensor gy) -> Tensor",
    run=_wgrad_run,
    fake=_wgrad_output,
    vmap=_wgrad_vmap,
    setup_context=_wgrad_setup,
    backward=_wgrad_backward,
    jvp=_wgrad_jvp,
    flops=_wgrad_flops,
)


# ---- what users call ------------------------------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x times weight transposed, plus bias.

    Args:
        x: (N, I), of a floating dtype.
        weight: (O, I).
        bias: (O,) or None.

    Returns:
        (N, O); under CPU autocast of autocast's dtype where there are kernels for it, else float32.

    Raises:
        ValueError, TypeError: a shape, dtype or device that does not fit; the text names it.
    """
    if has_torch_function((x, weight, bias)):
        return lib.overridden(linear, (x, weight, bias), x, weight, bias)
    if lib.exports_onnx():
        return reference.linear(x, weight, bias)
    check_tensors("bias", x=x, weight=weight, bias=bias)
    return linear_op(x, weight, bias)
