"""Style transfer: a picture with the content of one picture and the style of another.

Source: Gatys, Ecker & Bethge, Image Style Transfer Using Convolutional Neural Networks, 2016; several
scales, the coarsest first: Gatys et al., Controlling Perceptual Factors in Neural Style Transfer, 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vggfast._checks import check_whole, described
from vggfast._progress import Progress, silent
from vggfast.losses import ContentStyle

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["OPTIMISERS", "STARTS", "STYLE_WEIGHT", "picture_of", "stylise"]

OPTIMISERS = ("lbfgs", "adam")
STARTS = ("content", "noise")
STYLE_WEIGHT = 1e-4  # by eye, of photos and the published convolutions
_LEAST = 16  # pixels of a shorter side that relu5_1 asks for
_RATE = 0.02  # Adam's, of values in [0, 1]


def stylise(
    content: Image.Image,
    style: Image.Image,
    *,
    net: str | PathLike[str] | nn.Module = "vgg16",
    size: int = 256,
    scales: int = 2,
    steps: int = 100,
    optimiser: str = "lbfgs",
    start: str = "content",
    content_weight: float = 1.0,
    style_weight: float = STYLE_WEIGHT,
    tv_weight: float = 0.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
    watch: Callable[[int, Tensor], object] = lambda step, x: None,
) -> Image.Image:
    """The picture that makes :class:`vggfast.losses.ContentStyle` small, of the content's aspect.

    Args:
        content, style: PIL's images of any sizes and modes.
        net: as of :class:`vggfast.losses.Perceptual`.
        size: pixels of the shorter side of the result, to which the style is rescaled too.
        scales: how many sizes are gone through, each twice the one before it.
        steps: of the optimiser, at each scale.
        optimiser: "lbfgs" or "adam".
        start: what the first scale starts from: "content", or "noise" that `seed` decides.
        content_weight, style_weight, tv_weight: of the loss' terms.
        device: where to compute.
        progress: is told each step.
        watch: is called after each step with its number, from 1 on, and the picture so far, (1, 3, H, W).

    Raises:
        FileNotFoundError, ValueError, TypeError: an argument does not fit; the text names it.
        FloatingPointError: the loss is no longer finite.
    """
    from vggfast.data.transforms import rescale

    for name, given, allowed in (("optimiser", optimiser, OPTIMISERS), ("start", start, STARTS)):
        if given not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {given!r}")
    steps, sides, seed = check_whole(steps, "steps", 1), _sides(size, scales), check_whole(seed, "seed", 0)
    pictures, device = (_rgb(content, "content"), _rgb(style, "style")), _device(device)
    loss = ContentStyle(
        net=net, content_weight=content_weight, style_weight=style_weight, tv_weight=tv_weight, check_range=False
    ).to(device)
    x, done, total = None, 0, len(sides) * steps
    progress(done, total)
    for side in sides:
        target, pattern = (_tensor(rescale(picture, side)).to(device) for picture in pictures)
        loss.target(target, pattern)
        x = _begin(target, start, seed) if x is None else F.interpolate(x, target.shape[2:], mode="bicubic")
        step = _stepper(optimiser, x.requires_grad_(), loss)
        for _ in range(steps):
            value, done = step(), done + 1
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss must be finite, got {value} in step {done}: try optimiser 'adam'")
            progress(done, total, f"{x.shape[3]} x {x.shape[2]}, loss {value:.4g}")
            watch(done, x.detach())
        x = x.detach().clamp(0, 1)
    assert x is not None
    return picture_of(x)


def _rgb(picture: Image.Image, name: str) -> Image.Image:
    from PIL import Image

    from vggfast.data.decode import to_rgb

    if not isinstance(picture, Image.Image):
        raise TypeError(f"{name} must be an image of PIL's, such as PIL.Image.open(FILE), got {described(picture)}")
    try:
        return to_rgb(picture)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _device(device: torch.device | str) -> torch.device:
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"device must be one that torch has here, got {device!r}: {error}") from error


def _sides(size: int, scales: int) -> list[int]:
    """The shorter side at each scale, the coarsest first."""
    size, scales = check_whole(size, "size", _LEAST), check_whole(scales, "scales", 1, 16)
    sides = [round(size / 2**k) for k in reversed(range(scales))]
    if sides[0] < _LEAST:
        raise ValueError(f"size must be at least {_LEAST * 2 ** (scales - 1)} for {scales} scales, got {size}")
    return sides


def _begin(target: Tensor, start: str, seed: int) -> Tensor:
    """What the first scale starts from, contiguous, as L-BFGS wants it."""
    if start == "noise":
        return torch.rand(target.shape, generator=torch.Generator().manual_seed(seed)).to(target.device)
    return target.clone(memory_format=torch.contiguous_format)


def _stepper(optimiser: str, x: Tensor, loss: nn.Module) -> Callable[[], float]:
    """What makes one step on x, and returns the loss before it."""
    chosen: torch.optim.Optimizer = torch.optim.Adam([x], _RATE)
    if optimiser == "lbfgs":  # one iteration a step, never ended early: gradients of pixels may be small
        chosen = torch.optim.LBFGS([x], max_iter=1, history_size=10, tolerance_grad=0, tolerance_change=0)

    def evaluate() -> float:
        chosen.zero_grad()
        value = loss(x)
        value.backward()
        return float(value.detach())

    return lambda: float(chosen.step(evaluate))


def _tensor(picture: Image.Image) -> Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture, np.float32)).permute(2, 0, 1)[None] / 255


def picture_of(x: Tensor) -> Image.Image:
    """The picture of `x`, (1, 3, H, W) RGB; values beyond [0, 1] are cut."""
    from PIL import Image

    values = (x[0].clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())
