"""From an RGB image to what the network sees, as the paper does it: rescale, crop, flip, colour shift, mean.

Source: Simonyan & Zisserman, sections 2.1 and 3.1; the colour shift is Krizhevsky et al., 2012, section 4.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vggfast import ops
from vggfast.data.colours import ColourStatistics
from vggfast.data.sources.base import Images
from vggfast.io import on_one_line
from vggfast.preprocessing import Preprocessing

_MOST_ASPECT = 4 / 3  # of a random part of a picture: its longer side over its shorter one


def rescaled_size(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    """The two extents of a picture, in either order, once its shorter side is so many pixels long, aspect kept."""
    scale = shorter_side / min(size)
    first, second = (max(shorter_side, round(extent * scale)) for extent in size)
    return first, second


def check_rescaled(size: tuple[int, int], shorter_side: int) -> None:
    """Raises ValueError where a picture is so narrow that, rescaled, it has more pixels than a picture may have."""
    width, height = rescaled_size(size, shorter_side)
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise ValueError(
            f"rescaled to a shorter side of {shorter_side}, a picture must have at most {most} pixels, "
            f"PIL.Image.MAX_IMAGE_PIXELS, got {width} x {height}, of {size[0]} x {size[1]}"
        )


def image_to_rescale(images: Images, index: int, shorter_side: int) -> Image.Image:
    """The index-th image.

    Raises:
        FileNotFoundError, ValueError: it does not decode, or is too narrow to be rescaled; the text names
            its file.
    """
    image = images.image(index)
    try:
        check_rescaled(image.size, shorter_side)
    except ValueError as error:
        raise ValueError(f"{on_one_line(images.source(index))}: {error}") from None
    return image


def rescale(image: Image.Image, shorter_side: int) -> Image.Image:
    """The image with its shorter side so many pixels long and its aspect kept."""
    check_rescaled(image.size, shorter_side)
    size = rescaled_size(image.size, shorter_side)
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


class Geometry(NamedTuple):
    """What to take of one picture: rescale, crop, mirror, shift."""

    size: tuple[int, int]  # height and width of the whole rescaled picture
    corner: tuple[int, int]  # top row and left column of the crop in it
    flip: bool  # mirrored, left to right
    shift: np.ndarray  # (3,), added to the channels, in units of 0 to 255


class Transform(Protocol):
    """What makes a network's input of a picture: it draws a geometry, and :class:`Batches` follows it."""

    @property
    def crop(self) -> int:
        """Side of the square crop in pixels."""

    @property
    def preprocessing(self) -> Preprocessing: ...

    def draw(self, size: tuple[int, int], generator: np.random.Generator) -> Geometry:
        """The geometry for a picture of this height and width."""


@dataclass(frozen=True)
class Augmentation:
    """One random training crop: rescale to a shorter side S, crop, flip, colour shift.

    With `min_area`, the crop is instead a random part of the picture, resized (Szegedy et al., 2015).

    Attributes:
        crop: side of the square crop in pixels; at most `scales[0]`.
        scales: S is drawn from scales[0] ... scales[1]; equal bounds fix it.
        flip: mirror every other image, at random.
        colour_shift: std of the shift along each principal axis, in units of its variance; the paper's is 0.1.
        min_area: the part's least share of the picture, of which it takes up to all; 0 crops at S. Its width is 3/4 to
            4/3 of its height: of a picture that is longer, a part that has the least share may not be left.
    """

    crop: int
    scales: tuple[int, int]
    flip: bool
    colour_shift: float
    statistics: ColourStatistics
    preprocessing: Preprocessing
    min_area: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.scales
        if not 1 <= self.crop <= low <= high:
            raise ValueError(f"crop and scales must be 1 <= crop <= low <= high, got {self.crop} and {low} to {high}")

    def at(self, crop: int) -> Augmentation:
        """The same with a crop of another side, whose scales differ by as much: it sees the same part of a picture."""
        low, high = (max(crop, round(scale * crop / self.crop)) for scale in self.scales)
        return replace(self, crop=crop, scales=(low, high))

    def draw(self, size: tuple[int, int], generator: np.random.Generator) -> Geometry:
        """One crop of a picture of this (height, width), drawn by `generator` alone."""
        if self.min_area:
            height, width = self._size_around_part(size, generator)
        else:
            height, width = rescaled_size(size, int(generator.integers(self.scales[0], self.scales[1] + 1)))
        left, top = (int(generator.integers(0, extent - self.crop + 1)) for extent in (width, height))
        flip = self.flip and generator.random() < 0.5
        shift = self.statistics.axes @ (generator.normal(0, 1, 3) * self.colour_shift * self.statistics.variances)
        return Geometry((height, width), (top, left), flip, 255 * shift)

    def _size_around_part(self, size: tuple[int, int], generator: np.random.Generator) -> tuple[int, int]:
        """Height and width of the whole picture where a random part of it is resized to the crop."""
        aspect = size[1] / size[0]
        most = min(1.0, _MOST_ASPECT * min(aspect, 1 / aspect))
        area = generator.uniform(min(self.min_area, most), most)
        shapes = np.log([max(1 / _MOST_ASPECT, area * aspect), min(_MOST_ASPECT, aspect / area)])
        shape = math.exp(generator.uniform(shapes[0], max(shapes)))  # of the part: its width over its height
        height = self.crop / math.sqrt(area * aspect / shape)
        width = self.crop / math.sqrt(area / aspect * shape)
        return max(self.crop, round(height)), max(self.crop, round(width))


@dataclass(frozen=True)
class CentreCrop:
    """The middle square of `crop` pixels of the picture rescaled to a shorter side of `scale`."""

    crop: int
    scale: int
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.scale:
            raise ValueError(f"crop must be 1 to the scale, {self.scale}, got {self.crop}")

    def draw(self, size: tuple[int, int], generator: np.random.Generator) -> Geometry:
        """The crop of a picture of this (height, width); nothing is drawn."""
        height, width = rescaled_size(size, self.scale)
        return Geometry((height, width), ((height - self.crop) // 2, (width - self.crop) // 2), False, np.zeros(3))


def crop_boxes(boxes: np.ndarray, geometries: Sequence[Geometry], crop: int) -> np.ndarray:
    """(n, 4) float64: centre x, centre y, width and height of boxes in their crops, relative to the crop's side.

    What lies outside the crop stays there: below 0, above 1.

    Args:
        boxes: (n, 4) left, top, right, bottom, relative to the picture's width and height.
        geometries: what was taken of each picture.
        crop: side in pixels.
    """
    extents, corners, flips = _frames(geometries)
    placed = (boxes.reshape(-1, 2, 2) * extents - corners) / crop
    centre, size = placed.mean(1), placed[:, 1] - placed[:, 0]
    centre[flips, 0] = 1 - centre[flips, 0]
    return np.concatenate([centre, size], 1)


def uncrop_boxes(boxes: np.ndarray, geometries: Sequence[Geometry], crop: int) -> np.ndarray:
    """The inverse of :func:`crop_boxes`: back to left, top, right, bottom, relative to the pictures."""
    extents, corners, flips = _frames(geometries)
    centre, half = boxes[:, :2].copy(), boxes[:, 2:] / 2
    centre[flips, 0] = 1 - centre[flips, 0]
    placed = np.stack([centre - half, centre + half], 1)
    return ((placed * crop + corners) / extents).reshape(-1, 4)


def _frames(geometries: Sequence[Geometry]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, 1, 2) width and height of the rescaled pictures, (n, 1, 2) x and y of the crops' corners, (n,) flips."""
    extents, corners = (np.array([getattr(each, name)[::-1] for each in geometries], float)[:, None]
                        for name in ("size", "corner"))  # fmt: skip
    return extents, corners, np.array([each.flip for each in geometries], bool)


def crop_pictures(
    pictures: Sequence[np.ndarray], geometries: Sequence[Geometry], transform: Transform, out: Tensor | None = None
) -> Tensor:
    """(n, 3, crop, crop) float32, channels_last, of uint8 (H, W, 3) pictures of any sizes, in one native call.

    `out`: where to write it; allocated when None.
    """

    def tensor(values: list, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.asarray(values)).to(dtype)

    preprocessing = transform.preprocessing
    made = ops.crop_images(
        pictures, transform.crop, out=out,
        sizes=tensor([each.size for each in geometries], torch.int32),
        corners=tensor([each.corner for each in geometries], torch.int32),
        flips=tensor([each.flip for each in geometries], torch.bool),
        shifts=tensor([each.shift for each in geometries], torch.float32),
        mean=preprocessing.rgb_mean, std=preprocessing.rgb_std,
    )  # fmt: skip
    return made if preprocessing.order == "RGB" else made.copy_(made.flip(1))
