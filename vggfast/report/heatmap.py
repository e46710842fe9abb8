"""A class score map over its photo, each value where the network looked."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

TICKS = (0.0, 0.01, 0.05, 0.2, 0.5, 1.0)  # of the colour bar
# Evenly spaced to the eye, whatever colours it sees; the dark end, which the photo's shadows have too, is left out.
_COLOURS = colormaps["plasma"](np.linspace(0.1, 1, 256))[:, :3]
_LEAST, _MOST = 0.1, 0.75  # how much of the colour covers the photo at 0 and at 1
_CONTRAST = 0.75  # of the photo's own, so that its whites and blacks leave room for the colours


def class_probabilities(scores: np.ndarray) -> np.ndarray:
    """(classes, h, w): what the network gives each class at each place, of score maps (classes, h, w); float64."""
    powers = np.exp(np.asarray(scores, np.float64) - np.max(scores, axis=0, keepdims=True))
    return powers / powers.sum(0, keepdims=True)


def seen_part(shape: tuple[int, int], window: int, stride: int = 32) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of what a map of shape (h, w) speaks of, in pixels of the photo that gave it.

    The value (i, j) is of the rows stride * i ... stride * i + window and such columns; it stands for the square of
    `stride` pixels in their middle.
    """
    first = (window - stride) // 2
    return first, first, first + stride * shape[1], first + stride * shape[0]


def heat_map(photo: Image.Image, values: np.ndarray, window: int, stride: int = 32) -> Image.Image:
    """The photo in grey, with the map's colours over the part that it speaks of, in a thin frame.

    Between the middles of what its values are of, the map is interpolated linearly; further than half a step beyond the
    outer ones nothing is drawn. Colours go with the root of the values, so that small ones show.

    Args:
        photo: RGB, rescaled to what the network was shown.
        values: (h, w), from 0 to 1; h = (H - window) // stride + 1, w likewise.
        window, stride: pixels of the photo that a value is of, and from one to the next (see `evaluate.ScoreMap`).

    Raises:
        ValueError: the map is not one of such a photo, or a value out of its range; the text names it.
    """
    values = np.asarray(values, np.float32)
    expected = tuple((extent - window) // stride + 1 for extent in photo.size[::-1])
    if values.shape != expected or min(expected) < 1:
        raise ValueError(
            f"values must have shape {expected}, as a map of a photo of {photo.height} x {photo.width} pixels, window "
            f"{window} and stride {stride}, got {values.shape}"
        )
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"values must be 0 to 1, got {values.min():g} to {values.max():g}")
    left, top, right, bottom = seen_part(values.shape, window, stride)
    grey = 128 + _CONTRAST * (np.asarray(photo.convert("L"), np.float32) - 128)
    made = np.stack([grey] * 3, axis=2)
    smooth = Image.fromarray(values).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    part = made[top:bottom, left:right]
    part[:] = _coloured(part, np.asarray(smooth))
    image = Image.fromarray(made.round().astype(np.uint8))
    ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), outline="white")
    return image


def bar(width: int, height: int) -> Image.Image:
    """The colours from 0 to 1, left to right, over middling grey; the value v is at sqrt(v) of the width."""
    shares = np.broadcast_to(np.linspace(0, 1, width) ** 2, (height, width))
    return Image.fromarray(_coloured(np.full((height, width, 3), 128.0), shares).round().astype(np.uint8))


def _coloured(under: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(H, W, 3) of 0 to 255 with the colours of `values` (H, W) over it: the higher these are, the more they cover."""
    shares = np.sqrt(values.clip(0, 1))
    cover = (_LEAST + (_MOST - _LEAST) * shares)[..., None]
    return (1 - cover) * under + cover * 255 * _COLOURS[(shares * 255).round().astype(int)]
