"""Local response normalisation across channels (Krizhevsky et al. 2012; A-LRN's only extra layer)."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import has_torch_function_unary

from vggfast._checks import check_dense, check_number, check_whole
from vggfast.ops import _library as lib
from vggfast.ops import reference
from vggfast.ops._backends import backend_of
from vggfast.ops._torch_kernels import window_sum


def _output(x, size, alpha, beta, k) -> Tensor:
    lib.check_activation(x, "x")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    return lib.empty_nhwc(x, x.shape)


def _run(x, size, alpha, beta, k):
    y = _output(x, size, alpha, beta, k)
    backend_of(x).run("lrn_fprop", lib.nhwc(x), size, alpha, beta, k, y)
    return y


def _setup(ctx, inputs, output):
    x, *ctx.params = inputs
    ctx.save_for_backward(x)


def _backward(ctx, gy):
    (x,) = ctx.saved_tensors
    return lrn_dgrad(gy, x, *ctx.params), None, None, None, None


def _vmap(info, in_dims, x, *params):
    return lib.unfold(lrn(lib.fold(x, in_dims[0], info.batch_size), *params), info.batch_size), 0


lrn = lib.register(
    "lrn(Tensor x, int size, float alpha, float beta, float k) -> Tensor",
    run=_run,
    fake=_output,
    vmap=_vmap,
    setup_context=_setup,
    backward=_backward,
    autocast=lib.Autocast.other,
)


# ---- dgrad ----------------------------------------------------------------------------------------------------------


def _dgrad_output(gy, x, *params) -> Tensor:
    lib.check_same(gy, "gy", x, "x")
    if gy.shape != x.shape:
        raise ValueError(f"gy must have the shape of x, {tuple(x.shape)}, got {tuple(gy.shape)}")
    return _output(x, *params)


def _dgrad_run(gy, x, *params):
    gx = _dgrad_output(gy, x, *params)
    backend_of(x).run("lrn_dgrad", lib.nhwc(gy), lib.nhwc(x), *params, gx)
    return gx


def _dgrad_setup(ctx, inputs, output):
    gy, x, *ctx.params = inputs
    ctx.save_for_backward(gy, x)


def _dgrad_backward(ctx, v):
    """With y = x s^-b, s = k + a W(x^2), gx = J^T gy: the gradients of <v, J^T gy> = <gy, J v>.

    Plain torch, so that every further order follows; a second-order LRN is no hot path.
    """
    gy, x = ctx.saved_tensors
    size, alpha, b, k = ctx.params
    a = alpha / size
    before, after = size // 2, (size - 1) // 2
    s = k + a * window_sum(x * x, before, after)
    c = 2 * a * b
    t = window_sum(x * v, before, after)
    grad_gy = v * s**-b - c * x * s ** (-b - 1) * t
    if not ctx.needs_input_grad[1]:
        return grad_gy, None, None, None, None, None
    grad_s = gy * (-b * v * s ** (-b - 1) + c * (b + 1) * x * s ** (-b - 2) * t)
    grad_t = -c * gy * x * s ** (-b - 1)
    grad_x = (
        2 * a * x * window_sum(grad_s, after, before)
        - c * gy * s ** (-b - 1) * t
        + v * window_sum(grad_t, after, before)
    )
    return grad_gy, grad_x, None, None, None, None


def _dgrad_vmap(info, in_dims, gy, x, *params):
    size = info.batch_size
    return lib.unfold(lrn_dgrad(lib.fold(gy, in_dims[0], size), lib.fold(x, in_dims[1], size), *params), size), 0


lrn_dgrad = lib.register(
    "lrn_dgrad(Tensor gy, Tensor x, int size, float alpha, float beta, float k) -> Tensor",
    run=_dgrad_run,
    fake=_dgrad_output,
    vmap=_dgrad_vmap,
    setup_context=_dgrad_setup,
    backward=_dgrad_backward,
)


def local_response_norm(x: Tensor, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0) -> Tensor:
    """x / (k + alpha / size * (sum of squares over `size` neighbouring channels)) ** beta.

    Args:
        x: (N, C, H, W), of a floating dtype, contiguous or channels_last.
        size: channels in a window: size // 2 before, (size - 1) // 2 after.
        alpha, beta, k: as in :func:`torch.nn.functional.local_response_norm`, which divides alpha by size.

    Returns:
        (N, C, H, W) in x's memory format.

    Raises:
        ValueError, TypeError: a shape, dtype, device or size that does not fit; the text names it.

    Source: Simonyan & Zisserman, section 2.1; parameters of Krizhevsky et al., 2012.
    """
    if has_torch_function_unary(x):
        return lib.overridden(local_response_norm, (x,), x, size, alpha, beta, k)
    if lib.exports_onnx():
        return reference.local_response_norm(x, size, alpha, beta, k)
    check_dense(x, "x")
    size = check_whole(size, "size", 1)
    alpha, beta, k = check_number(alpha, "alpha"), check_number(beta, "beta"), check_number(k, "k")
    return lib.in_format_of(x, lrn(x, size, alpha, beta, k))
