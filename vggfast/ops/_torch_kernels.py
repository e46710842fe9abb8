"""What the kernels compute, by torch's own ops: the same names and arguments as the compiled module's, results written
to the outputs. It serves GPUs that ours do not run on, and knows no speed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _bits(flags: Tensor) -> Tensor:
    """Booleans (N, C, H, W) as a mask's plane (N, H, W, ceil(C / 8))."""
    n, c, h, w = flags.shape
    padded = F.pad(flags.permute(0, 2, 3, 1).to(torch.uint8), (0, -c % 8)).reshape(n, h, w, (c + 7) // 8, 8)
    return (padded << torch.arange(8, device=flags.device, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def _flags(plane: Tensor, channels: int) -> Tensor:
    """The inverse of _bits."""
    n, h, w, bytes_ = plane.shape
    bits = plane[..., None] >> torch.arange(8, device=plane.device, dtype=torch.uint8) & 1
    return bits.reshape(n, h, w, 8 * bytes_)[..., :channels].permute(0, 3, 1, 2).bool()


def _windows(z: Tensor, size: tuple[int, int], outside: float) -> Tensor:
    """(N, C, OH, OW, 4): each window's elements, row-major; `outside` where the image's edge cuts it."""
    h, w = size
    padded = F.pad(z, (0, 2 * w - z.shape[3], 0, 2 * h - z.shape[2]), value=outside)
    return padded.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)


def _first_maximum(z: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Each window's maximum and its number: the first of equals, the last NaN."""
    windows = _windows(z, size, -torch.inf)
    values, chosen = windows[..., 0], torch.zeros_like(windows[..., 0], dtype=torch.uint8)
    for i in range(1, 4):
        better = (windows[..., i] > values) | windows[..., i].isnan()
        values = torch.where(better, windows[..., i], values)
        chosen = torch.where(better, i, chosen)
    return values, chosen


def window_sum(t: Tensor, before: int, after: int) -> Tensor:
    """Sum over channels c - before ... c + after."""
    before, after = min(before, t.shape[1]), min(after, t.shape[1])  # further ones are all zeros
    padded = F.pad(t, (0, 0, 0, 0, before, after))
    return padded.unfold(1, before + after + 1, 1).sum(-1)


def _write_mask(mask: Tensor | None, passes: Tensor | None, chosen: Tensor | None) -> None:
    if mask is None:
        return
    planes = [] if passes is None else [passes]
    planes += [] if chosen is None else [chosen & 1 != 0, chosen >> 1 != 0]
    for i, plane in enumerate(planes):
        mask[:, i] = _bits(plane)


def _epilogue(z: Tensor, relu: bool, pool: bool, y: Tensor, mask: Tensor | None) -> None:
    chosen = None
    if pool:
        z, chosen = _first_maximum(z[..., : 2 * y.shape[2], : 2 * y.shape[3]], (y.shape[2], y.shape[3]))
    passes = ~(z <= 0) if relu else None
    y.copy_(z if passes is None else torch.where(passes, z, 0))
    _write_mask(mask, passes, chosen)


def _scattered(y: Tensor, mask: Tensor, size: tuple[int, int]) -> Tensor:
    c, planes = y.shape[1], mask.shape[1]
    if planes != 2:
        y = torch.where(_flags(mask[:, 0], c), y, 0)
    if planes == 1:
        return y
    column, row = (_flags(mask[:, planes - 2 + i], c) for i in range(2))
    chosen = row.to(torch.uint8) * 2 + column
    parts = torch.stack([torch.where(chosen == i, y, 0) for i in range(4)], -1)
    n, _, h, w = y.shape
    whole = parts.reshape(n, c, h, w, 2, 2).permute(0, 1, 2, 4, 3, 5).reshape(n, c, 2 * h, 2 * w)
    return F.pad(whole, (0, size[1] - 2 * w, 0, size[0] - 2 * h))


def _gradient(gy: Tensor, mask: Tensor | None, size: tuple[int, int]) -> Tensor:
    return gy if mask is None else _scattered(gy, mask, size)


def conv_fprop(x, weight, bias, relu, pool, y, mask):
    _epilogue(F.conv2d(x, weight, bias, padding=weight.shape[2] // 2), relu, pool, y, mask)


def conv_dgrad(gy, mask, weight, gx, x_mask):
    size = gx.shape[2], gx.shape[3]
    gz = _gradient(gy, mask, size)
    gx.copy_(_gradient(F.conv_transpose2d(gz, weight, padding=weight.shape[2] // 2), x_mask, size))


def conv_wgrad(x, gy, mask, gw, gb):
    gz, pad = _gradient(gy, mask, (x.shape[2], x.shape[3])), gw.shape[2] // 2
    results = torch.ops.aten.convolution_backward(
        gz, x, gw, None, [1, 1], [pad, pad], [1, 1], False, [0, 0], 1, [False, True, False]
    )
    gw.copy_(results[1])
    if gb is not None:
        gb.copy_(gz.sum((0, 2, 3)))


def batch_norm_fprop(x, weight, bias, training, eps, relu, pool, mean, var, y, mask):
    if training:
        own = torch.var_mean(x, (0, 2, 3), correction=0) if x.numel() else (0, 0)
        for out, value in zip((var, mean), own, strict=True):
            out[:] = value
    _epilogue(F.batch_norm(x, mean, var, weight, bias, eps=eps), relu, pool, y, mask)


def batch_norm_dgrad(gy, mask, x, weight, training, eps, mean, var, gx, gw, gb):
    g = _gradient(gy, mask, (x.shape[2], x.shape[3]))
    r = (var + eps).rsqrt()[:, None, None]
    z = (x - mean[:, None, None]) * r
    sums = (g * z).sum((0, 2, 3)), g.sum((0, 2, 3))
    for out, value in zip((gw, gb), sums, strict=True):
        if out is not None:
            out.copy_(value)
    if training:
        product, plain = (each[:, None, None] * (x.shape[1] / max(1, x.numel())) for each in sums)
        g = g - plain - z * product
    gx.copy_(g * r if weight is None else g * (r * weight[:, None, None]))


def max_pool2x2(x, y, mask):
    values, chosen = _first_maximum(x[..., : 2 * y.shape[2], : 2 * y.shape[3]], (y.shape[2], y.shape[3]))
    y.copy_(values)
    _write_mask(mask, None, chosen)


def mask_gather(z, mask, y):
    c, planes = y.shape[1], mask.shape[1]
    if planes >= 2:
        column, row = (_flags(mask[:, planes - 2 + i], c) for i in range(2))
        windows = _windows(z[..., : 2 * y.shape[2], : 2 * y.shape[3]], (y.shape[2], y.shape[3]), 0)
        z = windows.gather(-1, (row.long() * 2 + column)[..., None])[..., 0]
    y.copy_(z if planes == 2 else torch.where(_flags(mask[:, 0], c), z, 0))


def mask_scatter(y, mask, z):
    z.copy_(_scattered(y, mask, (z.shape[2], z.shape[3])))


def sum_pool(x, mean, y):
    y.copy_(x.mean((2, 3)) if mean else x.sum((2, 3)))


def mean_posteriors(maps, views, scores):
    scores.copy_(maps.mean((2, 3)).softmax(1).reshape(views, *scores.shape).mean(0))


def mean_posteriors_dgrad(gscores, maps, views, gmaps):
    p = maps.mean((2, 3)).softmax(1).reshape(views, *gscores.shape)
    g = p * (gscores - (p * gscores).sum(2, keepdim=True))
    g = g / (views * maps.shape[2] * maps.shape[3])
    gmaps.copy_(g.reshape(maps.shape[:2])[:, :, None, None].expand_as(gmaps))


def lrn_fprop(x, size, alpha, beta, k, y):
    y.copy_(F.local_response_norm(x, size, alpha, beta, k))


def lrn_dgrad(gy, x, size, alpha, beta, k, gx):
    a, before, after = alpha / size, size // 2, (size - 1) // 2
    s = k + a * window_sum(x * x, before, after)
    t = window_sum(gy * x * s ** (-beta - 1), after, before)
    gx.copy_(gy * s**-beta - 2 * a * beta * x * t)


def prepare_images(images, corners, flips, shifts, mean, std, y):
    n, h, w, _ = images.shape
    rows = torch.arange(y.shape[2], device=y.device).expand(n, -1)
    columns = torch.arange(y.shape[3], device=y.device).expand(n, -1)
    if flips is not None:
        columns = torch.where(flips.bool()[:, None], y.shape[3] - 1 - columns, columns)
    if corners is not None:
        rows, columns = rows + corners[:, :1], columns + corners[:, 1:]
    rows, columns = rows.clamp(0, h - 1), columns.clamp(0, w - 1)
    pixels = images[torch.arange(n, device=y.device)[:, None, None], rows[:, :, None], columns[:, None, :]].float()
    if shifts is not None:
        pixels = pixels + shifts[:, None, None, :]
    pixels = (pixels - pixels.new_tensor(mean)) / pixels.new_tensor(std)
    y.copy_(pixels.permute(0, 3, 1, 2))
