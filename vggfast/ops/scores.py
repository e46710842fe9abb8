"""From maps of class scores to class scores: what ends a dense evaluation."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import has_torch_function_unary

from vggfast._checks import check_dense, check_whole
from vggfast.ops import _library as lib
from vggfast.ops import reference
from vggfast.ops._backends import backend_of

# ---- sum_pool -------------------------------------------------------------------------------------------------------


def _sum_pool_output(x, mean) -> Tensor:
    lib.check_activation(x, "x")
    return lib.empty(x, x.shape[:2])


def _sum_pool_run(x, mean):
    y = _sum_pool_output(x, mean)
    backend_of(x).run("sum_pool", lib.nhwc(x), mean, y)
    return y


def _sum_pool_setup(ctx, inputs, output):
    x, ctx.mean = inputs
    ctx.size = x.shape[2:]


def _sum_pool_backward(ctx, gy):
    h, w = ctx.size
    gx = gy[:, :, None, None].expand(*gy.shape, h, w)
    return gx / (h * w) if ctx.mean else gx, None


def _sum_pool_vmap(info, in_dims, x, mean):
    return lib.unfold(sum_pool_scores(lib.fold(x, in_dims[0], info.batch_size), mean), info.batch_size), 0


sum_pool_scores = lib.register(
    "sum_pool(Tensor x, bool mean) -> Tensor",
    run=_sum_pool_run,
    fake=_sum_pool_output,
    vmap=_sum_pool_vmap,
    setup_context=_sum_pool_setup,
    backward=_sum_pool_backward,
    autocast=lib.Autocast.other,
)


def sum_pool(x: Tensor, *, reduce: str = "mean") -> Tensor:
    """A class score map (N, C, H, W) as class scores (N, C): the mean or sum over its pixels.

    Args:
        x: (N, C, H, W), of a floating dtype, contiguous or channels_last.
        reduce: "mean" (the paper's spatial average) or "sum".

    Raises:
        ValueError, TypeError: a shape, dtype, device or `reduce` that does not fit; the text names it.

    Source: Simonyan & Zisserman, section 3.2.
    """
    if has_torch_function_unary(x):
        return lib.overridden(sum_pool, (x,), x, reduce=reduce)
    if lib.exports_onnx():
        return reference.sum_pool(x, reduce=reduce)
    check_dense(x, "x")
    if not isinstance(reduce, str) or reduce not in ("mean", "sum"):
        raise ValueError(f"reduce must be 'mean' or 'sum', got {reduce!r}")
    return sum_pool_scores(x, reduce == "mean")


# ---- mean_posteriors ---------------------------------------------------------------------------------------------


def _mean_posteriors_output(maps, views) -> Tensor:
    lib.check_activation(maps, "maps")
    if views < 1 or maps.shape[0] % views:
        raise ValueError(f"views must be a divisor of the {maps.shape[0]} maps, got {views}")
    return lib.empty(maps, (maps.shape[0] // views, maps.shape[1]))


def _mean_posteriors_run(maps, views):
    scores = _mean_posteriors_output(maps, views)
    backend_of(maps).run("mean_posteriors", lib.nhwc(maps), views, scores)
    return scores


def _mean_posteriors_setup(ctx, inputs, output):
    maps, ctx.views = inputs
    ctx.save_for_backward(maps)


def _mean_posteriors_backward(ctx, gscores):
    return mean_posteriors_dgrad(gscores, *ctx.saved_tensors, ctx.views), None


def _mean_posteriors_vmap(info, in_dims, maps, views):
    return lib.loop_over_examples(mean_posteriors_op, info, in_dims, (maps, views))


mean_posteriors_op = lib.register(
    "mean_posteriors(Tensor maps, int views) -> Tensor",
    run=_mean_posteriors_run,
    fake=_mean_posteriors_output,
    vmap=_mean_posteriors_vmap,
    setup_context=_mean_posteriors_setup,
    backward=_mean_posteriors_backward,
    autocast=lib.Autocast.other,
)


def _dgrad_output(gscores, maps, views) -> Tensor:
    expected = _mean_posteriors_output(maps, views).shape
    lib.check_same(gscores, "gscores", maps, "maps")
    if gscores.shape != expected:
        raise ValueError(f"gscores must have shape {tuple(expected)}, got {tuple(gscores.shape)}")
    return lib.empty_nhwc(maps, maps.shape)


def _dgrad_run(gscores, maps, views):
    gmaps = _dgrad_output(gscores, maps, views)
    backend_of(maps).run("mean_posteriors_dgrad", lib.contiguous(gscores), lib.nhwc(maps), views, gmaps)
    return gmaps


def _dgrad_setup(ctx, inputs, output):
    gscores, maps, ctx.views = inputs
    ctx.save_for_backward(gscores, maps)


def _dgrad_backward(ctx, v):
    """With p the softmax of a view's mean scores, gmaps = p (g - <p, g>) / (views * pixels) in each pixel: the
    gradients of <v, gmaps>. Plain torch, so that every further order follows; no hot path."""
    g, maps = ctx.saved_tensors
    pixels, views = maps.shape[2] * maps.shape[3], ctx.views
    p = sum_pool_scores(maps, True).softmax(1).reshape(views, *g.shape)
    u = v.sum((2, 3)).reshape(views, *g.shape) / (views * pixels)
    pu, pg = ((p * t).sum(2, keepdim=True) for t in (u, g))
    grad_g = (p * (u - pu)).sum(0)
    grad_p = u * g - u * pg - pu * g
    grad_s = p * (grad_p - (p * grad_p).sum(2, keepdim=True)) / pixels
    return grad_g, grad_s.reshape(maps.shape[:2])[:, :, None, None].expand_as(maps), None


def _dgrad_vmap(info, in_dims, gscores, maps, views):
    return lib.loop_over_examples(mean_posteriors_dgrad, info, in_dims, (gscores, maps, views))


mean_posteriors_dgrad = lib.register(
    "mean_posteriors_dgrad(Tensor gscores, Tensor maps, int views) -> Tensor",
    run=_dgrad_run,
    fake=_dgrad_output,
    vmap=_dgrad_vmap,
    setup_context=_dgrad_setup,
    backward=_dgrad_backward,
)


def mean_posteriors(maps: Tensor, *, views: int = 1) -> Tensor:
    """Maps of class scores as class posteriors: the softmax of each map's mean over its pixels, averaged over views.

    Args:
        maps: (views * N, C, H, W), of a floating dtype, contiguous or channels_last, view after view: with 2, those of
            the images, then those of their mirror images.
        views: how many.

    Returns:
        (N, C); rows sum to 1.

    Raises:
        ValueError, TypeError: a shape, dtype, device or `views` that does not fit; the text names it.

    Source: Simonyan & Zisserman, section 3.2.
    """
    if has_torch_function_unary(maps):
        return lib.overridden(mean_posteriors, (maps,), maps, views=views)
    if lib.exports_onnx():
        return reference.mean_posteriors(maps, views=views)
    check_dense(maps, "maps")
    return mean_posteriors_op(maps, check_whole(views, "views", 1))
