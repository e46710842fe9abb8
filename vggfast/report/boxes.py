"""Boxes over a photo: what the network says, and what is true."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PREDICTED, _TRUE = "#ee7733", "#33bbee"  # told apart by every eye; the true ones are broken lines too
_LEAST = 256  # pixels of the shorter side, so that text can be read
_DASH = 6
_ELLIPSIS = "…"


def draw_boxes(
    photo: Image.Image,
    predicted: Sequence[Sequence[float]] | np.ndarray = (),
    true: Sequence[Sequence[float]] | np.ndarray = (),
    labels: Sequence[str] = (),
    ious: Sequence[float] = (),
) -> Image.Image:
    """A copy of the photo with predicted boxes (orange) and true ones (blue, broken lines).

    Above each predicted box stand its label and its IoU, where they are given. A photo whose shorter side is under 256
    pixels is enlarged, a whole number of times.

    Args:
        photo: RGB.
        predicted, true: (n, 4) and (m, 4): left, top, right, bottom in pixels of the photo; 0, 0 is its corner.
        labels: one for each predicted box, or none.
        ious: intersection over union with what is true, 0 to 1; one for each predicted box, or none.

    Raises:
        ValueError: boxes of another shape, or another number of labels or IoUs than boxes; the text names it.
    """
    said, known = _corners("predicted", predicted), _corners("true", true)
    for name, given in (("labels", labels), ("ious", ious)):
        if len(given) not in (0, len(said)):
            raise ValueError(f"{name} must have length {len(said)}, one for each predicted box, or 0, got {len(given)}")
    times = -(-_LEAST // min(photo.size))
    image = photo.convert("RGB").resize((photo.width * times, photo.height * times), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    width = max(2, round(min(image.size) / 128))
    for box in known * times:
        _frame(draw, box, width, _TRUE, _DASH * width)
    for box in said * times:
        _frame(draw, box, width, _PREDICTED)
    font = ImageFont.load_default(max(12, min(image.size) // 20))
    for i, box in enumerate(said):
        words = [*labels[i : i + 1], *(f"IoU {iou:.2f}" for iou in ious[i : i + 1])]
        if words:
            _text(draw, image.size, box * times, words, font)
    return image


def _corners(name: str, boxes: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    found = np.asarray(boxes, np.float64)
    if found.size == 0:
        return np.zeros((0, 4))
    if found.ndim != 2 or found.shape[1] != 4:
        raise ValueError(f"{name} must have shape (boxes, 4), left, top, right, bottom, got {found.shape}")
    return found


def _frame(draw: ImageDraw.ImageDraw, box: np.ndarray, width: int, colour: str, dash: int = 0) -> None:
    """The box' edges, inside it, between two thin dark ones that show on any photo; broken where `dash` is not 0."""
    left, top, right, bottom = (round(value) for value in box)
    right, bottom = max(right, left + 1) - 1, max(bottom, top + 1) - 1
    for grow, breadth, ink in ((1, width + 2, "#222222"), (0, width, colour)):
        corners = left - grow, top - grow, right + grow, bottom + grow
        if not dash or grow:
            draw.rectangle(corners, outline=ink, width=breadth)
            continue
        for begin in range(left, right, 2 * dash):
            end = min(begin + dash, right)
            draw.rectangle((begin, top, end, top + breadth - 1), fill=ink)
            draw.rectangle((begin, bottom - breadth + 1, end, bottom), fill=ink)
        for begin in range(top, bottom, 2 * dash):
            end = min(begin + dash, bottom)
            draw.rectangle((left, begin, left + breadth - 1, end), fill=ink)
            draw.rectangle((right - breadth + 1, begin, right, end), fill=ink)


def _text(draw: ImageDraw.ImageDraw, size: tuple[int, int], box: np.ndarray, words: Sequence[str], font: Any) -> None:
    """The words over the box, or in it where there is no room; the first is cut where the photo is too narrow."""
    first, rest = words[0], "  ".join(["", *words[1:]])
    while draw.textlength(first + rest, font) > size[0] - 8 and len(first) > 1:
        first = first.removesuffix(_ELLIPSIS)[:-1] + _ELLIPSIS
    text = first + rest
    breadth, height = draw.textlength(text, font) + 8, font.size + 6
    left = min(max(0, box[0]), size[0] - breadth)
    top = box[1] - height if box[1] >= height else max(0, box[1])
    draw.rectangle((left, top, left + breadth, top + height), fill=_PREDICTED)
    draw.text((left + 4, top + height / 2), text, "#111111", font, anchor="lm")
