"""Batch norm with ReLU and 2x2 max-pool in one op, by the batch's statistics or by given ones.

Beside its input, which the layer before has as its output, and two numbers a channel the op keeps a mask alone
(:mod:`vggfast.ops.mask`). The CPU has kernels for it; elsewhere torch's ops compute it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from vggfast._checks import PLAIN, check_flag, check_number, check_tensors
from vggfast.ops import _library as lib
from vggfast.ops import reference
from vggfast.ops._backends import NARROW, Backend, TorchBackend, backend_of
from vggfast.ops.mask import check_mask, empty_mask, mask_gather, mask_scatter

_AXES = (0, 2, 3)


def fits(x: Tensor, *channels: Tensor | None) -> bool:
    """Whether our kernels take this input with these parameters and statistics, as torch's modules have them: all of
    x's dtype, or all of float32 beside an x of 16 bits."""
    given = [t for t in channels if t is not None]
    return (
        x.device.type == "cpu"
        and x.dtype in lib.DTYPES
        and (torch.compiler.is_compiling() or backend_of(x).has("batch_norm_fprop"))
        and {t.dtype for t in given} <= {given[0].dtype if given else x.dtype}
        and all(type(t) in PLAIN and t.dtype in (x.dtype, _statistics(x)) and t.device == x.device for t in given)
    )


def _run_kernel(name: str, x: Tensor, *args) -> None:
    backend = backend_of(x)
    (backend if backend.has(name) else TorchBackend()).run(name, *args)


def _statistics(x: Tensor) -> torch.dtype:
    """The dtype of x's mean and variance."""
    return torch.float32 if x.dtype in NARROW else x.dtype


def _check_channels(x: Tensor, weight, bias, mean, var) -> None:
    for name, t in {"weight": weight, "bias": bias, "mean": mean, "var": var}.items():
        if t is None:
            continue
        if tuple(t.shape) != (x.shape[1],):
            raise ValueError(f"{name} must have shape ({x.shape[1]},), x's channels, got {tuple(t.shape)}")
        if t.dtype != _statistics(x):
            lib.check_same(t, name, x, "x")
    if (mean is None) != (var is None):
        raise ValueError(f"mean and var must be given together or not at all, got {'var' if mean is None else 'mean'}")


def _contiguous(t):
    return None if t is None else lib.contiguous(lib.wide(t))


def _maps(t: Tensor) -> Tensor:
    """As NHWC, in a dtype that the kernels take."""
    backend = backend_of(t)
    own = isinstance(backend, Backend) and backend.has("batch_norm_fprop")
    return lib.nhwc(t if own and backend.takes("vggfast::batch_norm", t.dtype) else lib.wide(t))


# ---- batch_norm -----------------------------------------------------------------------------------------------------


def _outputs(x, weight, bias, mean, var, eps, relu, pool, save) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    lib.check_activation(x, "x")
    _check_channels(x, weight, bias, mean, var)
    n, c, h, w = x.shape
    if pool:
        if h < 2 or w < 2:
            raise ValueError(f"x must have H and W of at least 2 with pool, got shape {tuple(x.shape)}")
        h, w = h // 2, w // 2
    y = lib.empty_nhwc(x, (n, c, h, w))
    own = [x.new_empty(c if mean is None else 0, dtype=_statistics(x)) for _ in range(2)]
    return y, empty_mask(y, relu, pool) if save else x.new_empty(0, dtype=lib.BITS), *own


def _run(x, weight, bias, mean, var, eps, relu, pool, save):
    y, mask, *own = _outputs(x, weight, bias, mean, var, eps, relu, pool, save)
    mean_and_var = own if mean is None else (_contiguous(mean), _contiguous(var))
    maps = _maps(x)
    out = y if maps.dtype == x.dtype else lib.empty_nhwc(maps, y.shape)
    _run_kernel(
        "batch_norm_fprop", x, maps, _contiguous(weight), _contiguous(bias), mean is None, eps, relu, pool,
        *mean_and_var, out, mask if mask.dim() == 5 else None,
    )  # fmt: skip
    return y if out is y else y.copy_(out), mask, *own


def _setup(ctx, inputs, output):
    x, weight, _, mean, var, ctx.eps, relu, pool, save = inputs
    if (relu or pool) and not save:
        raise RuntimeError("save must be True where a gradient is to flow through ReLU or pool, got False")
    ctx.training = mean is None
    if ctx.training:
        _, _, mean, var = output
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(output[1] if relu or pool else None, x, weight, mean, var)


def _backward(ctx, gy, *_):
    mask, x, weight, mean, var = ctx.saved_tensors
    _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
    gx, gw, gb = batch_norm_dgrad(
        gy, mask, x, weight, mean, var, ctx.eps, ctx.training, needs_weight or needs_bias
    )  # fmt: skip
    return gx, gw if needs_weight else None, gb if needs_bias else None, *(None,) * 6


def _vmap(info, in_dims, *args):
    return lib.loop_over_examples(batch_norm_op, info, in_dims, args)


batch_norm_op = lib.register(
    "batch_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, float eps, bool relu, bool pool, "
    "bool save) -> (Tensor, Tensor, Tensor, Tensor)",
    run=_run,
    fake=_outputs,
    vmap=_vmap,
    setup_context=_setup,
    backward=_backward,
    autocast=lib.Autocast.other,
    converts=False,  # itself, for statistics stay wide
)


# ---- dgrad ----------------------------------------------------------------------------------------------------------


def _dgrad_outputs(gy, mask, x, weight, mean, var, eps, training, affine) -> tuple[Tensor, Tensor, Tensor]:
    lib.check_activation(x, "x")
    lib.check_same(gy, "gy", x, "x")
    _check_channels(x, weight, None, mean, var)
    pool = mask is not None and check_mask(gy, "gy", mask, tuple(gy.shape[2:]))[1]
    n, c, h, w = x.shape
    expected = (n, c, h // 2, w // 2) if pool else (n, c, h, w)
    if tuple(gy.shape) != expected:
        raise ValueError(f"gy must have shape {expected}, got {tuple(gy.shape)}")
    dtype = _statistics(x) if weight is None else weight.dtype  # of a bias alone nothing is known here
    return lib.empty_nhwc(x, x.shape), *(x.new_empty(c if affine else 0, dtype=dtype) for _ in range(2))


def _dgrad_run(gy, mask, x, weight, mean, var, eps, training, affine):
    results = _dgrad_outputs(gy, mask, x, weight, mean, var, eps, training, affine)
    maps, channels = _maps(x), _statistics(x)
    dtypes = (maps.dtype, channels, channels)
    gx, gw, gb = made = [
        t if t.dtype == dtype else torch.empty_like(t, dtype=dtype) for t, dtype in zip(results, dtypes, strict=True)
    ]
    _run_kernel(
        "batch_norm_dgrad", x, _maps(gy), None if mask is None else lib.contiguous(mask), maps,
        _contiguous(weight), training, eps, _contiguous(mean), _contiguous(var), gx,
        *((gw, gb) if affine else (None, None)),
    )  # fmt: skip
    return tuple(t if own is t else t.copy_(own) for t, own in zip(results, made, strict=True))


def _dgrad_setup(ctx, inputs, output):
    gy, mask, x, weight, mean, var, ctx.eps, ctx.training, ctx.affine = inputs
    ctx.save_for_backward(gy, mask, x, weight, mean, var)


def _dgrad_backward(ctx, v, u, t):
    """With z = (x - mean) r, r = (var + eps)^-1/2 and P g = g - M g - z M(z g), M being the mean over pixels, or P = 1
    where the statistics are given: gx = weight r P g, gw = sum of g z, gb = sum of g. The gradients of <v, gx> +
    <u, gw> + <t, gb>; the derivative of z by x is r P, that of r is -r^2 z M.

    Plain torch, so that every further order follows; a second-order batch norm is no hot path.
    """
    gy, mask, x, weight, mean, var = ctx.saved_tensors
    v, u, t, gy, x = map(lib.wide, (v, u, t, gy, x))
    weight = None if weight is None else lib.wide(weight)
    g = gy if mask is None else mask_scatter(gy, mask, *x.shape[2:])
    if ctx.training:  # again: a further order goes through them, too
        var, mean = torch.var_mean(x, _AXES, correction=0)
    r = _over((var.to(x.dtype) + ctx.eps).rsqrt())
    z = (x - _over(mean.to(x.dtype))) * r
    w = r if weight is None else r * _over(weight)

    def projected(a: Tensor) -> Tensor:
        return a - _mean(a) - z * _mean(z * a) if ctx.training else a

    through = projected(g)
    grad_gy = w * projected(v)
    if ctx.affine:
        grad_gy = grad_gy + _over(u) * z + _over(t)
    grad_weight = None if weight is None else (r * v * through).sum(_AXES)
    grad_z = _over(u) * g if ctx.affine else torch.zeros_like(g)
    if ctx.training:
        grad_z = grad_z - w * (v * _mean(g * z) + g * _mean(v * z))
    grad_x = r * projected(grad_z)
    if ctx.training:
        grad_x = grad_x - w * r * z * _mean(v * through)
    return (grad_gy if mask is None else mask_gather(grad_gy, mask)), None, grad_x, grad_weight, *(None,) * 5


def _over(channels: Tensor) -> Tensor:
    return channels[:, None, None]


def _mean(maps: Tensor) -> Tensor:
    return maps.mean(_AXES, keepdim=True)


def _dgrad_vmap(info, in_dims, *args):
    return lib.loop_over_examples(batch_norm_dgrad, info, in_dims, args)


batch_norm_dgrad = lib.register(
    "batch_norm_dgrad(Tensor gy, Tensor? mask, Tensor x, Tensor? weight, Tensor mean, Tensor var, float eps, "
    "bool training, bool affine) -> (Tensor, Tensor, Tensor)",
    run=_dgrad_run,
    fake=_dgrad_outputs,
    vmap=_dgrad_vmap,
    setup_context=_dgrad_setup,
    backward=_dgrad_backward,
    converts=False,
)


# ---- what users call ------------------------------------------------------------------------------------------------


def batch_norm_nhwc(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    relu: bool,
    pool: bool,
) -> Tensor:
    """The op as networks use it: any memory format in, NHWC out."""
    save = (relu or pool) and lib.needs_grad(x, weight, bias)
    given = (None, None) if training else (running_mean, running_var)
    y, _, mean, var = batch_norm_op(x, weight, bias, *given, eps, relu, pool, save)
    count = x.shape[0] * x.shape[2] * x.shape[3]
    if training and running_mean is not None and running_var is not None and count > 0:
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
            running_var.mul_(1 - momentum).add_(var, alpha=momentum * count / (count - 1))
    return y


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    relu: bool = False,
    pool: bool = False,
) -> Tensor:
    """:func:`torch.nn.functional.batch_norm` of maps; then ReLU and 2x2/2 max-pool as asked, in the same pass.

    Args:
        x: (N, C, H, W), of a floating dtype, contiguous or channels_last. N may be 0; H, W at least 1 (2 with pool).
        running_mean, running_var: (C,) each, of x's dtype, or float32 beside an x of 16 bits. In training they are
            updated where they are given, the variance with Bessel's correction; else they normalise.
        weight, bias: (C,) or None; dtypes as above.
        training: whether the batch's own mean and variance normalise.
        momentum: the share of the batch in an update.
        eps: is added to the variance.
        relu: max(0, .) after the bias.
        pool: the maximum of each 2x2 window; an odd last row or column is left out.

    Returns:
        (N, C, H, W), or (N, C, H // 2, W // 2) with pool, in x's memory format.

    Raises:
        ValueError, TypeError: a shape, dtype or device that does not fit, one value a channel in training, or no
            statistics; the text names it.

    Source: Ioffe & Szegedy, 2015; not in Simonyan & Zisserman.
    """
    tensors = (x, running_mean, running_var, weight, bias)
    if has_torch_function(tensors):
        return lib.overridden(batch_norm, tensors, *tensors, training, momentum, eps, relu=relu, pool=pool)
    if lib.exports_onnx():
        return reference.batch_norm(*tensors, training, momentum, eps, relu=relu, pool=pool)
    check_tensors(
        "running_mean", "running_var", "weight", "bias",
        x=x, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias,
    )  # fmt: skip
    training, relu, pool = check_flag(training, "training"), check_flag(relu, "relu"), check_flag(pool, "pool")
    momentum, eps = check_number(momentum, "momentum"), check_number(eps, "eps")
    lib.check_activation(x, "x")
    for name, t in {"running_mean": running_mean, "running_var": running_var}.items():
        if t is None and not training:
            raise ValueError(f"{name} must be given where training is False, got None")
        if t is not None and tuple(t.shape) != (x.shape[1],):
            raise ValueError(f"{name} must have shape ({x.shape[1]},), x's channels, got {tuple(t.shape)}")
    if training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
        raise ValueError(f"x must have more than one value a channel in training, got shape {tuple(x.shape)}")
    return lib.in_format_of(
        x, batch_norm_nhwc(x, running_mean, running_var, weight, bias, training, momentum, eps, relu, pool)
    )
