"""What callers hand in as images, one picture after the other: PIL images, paths, or tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vggfast.data.decode import open_image, to_rgb
from vggfast.data.transforms import rescale, rescaled_size
from vggfast.preprocessing import Preprocessing

Images: TypeAlias = Sequence[Image.Image | str | Path] | Tensor


@dataclass(frozen=True)
class Picture:
    """An image at one size.

    Attributes:
        image: its number among the caller's.
        pixels: uint8 RGB (H, W, 3), or what the network takes, (C, H, W).
        preprocessing: of uint8 pixels.
    """

    image: int
    pixels: np.ndarray | Tensor
    preprocessing: Preprocessing | None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.pixels.shape[:2] if isinstance(self.pixels, np.ndarray) else self.pixels.shape[1:]
        return height, width

    def part(self, top: int, left: int, height: int, width: int) -> Tensor:
        """(C, height, width), float32, as the network takes it."""
        if isinstance(self.pixels, Tensor):
            return self.pixels[:, top : top + height, left : left + width].float()
        assert self.preprocessing is not None
        pixels = self.pixels[top : top + height, left : left + width]
        return self.preprocessing.tensor(pixels.astype(np.float32))


class View(NamedTuple):
    """A box of a picture, as it is or mirrored left to right."""

    picture: Picture
    top: int
    left: int
    height: int
    width: int
    mirrored: bool

    def part(self, top: int, left: int, height: int, width: int) -> Tensor:
        """(C, height, width) of the view: `left` counts from where the view begins."""
        if self.mirrored:
            left = self.width - left - width
        part = self.picture.part(self.top + top, self.left + left, height, width)
        return part.flip(2) if self.mirrored else part


def whole(picture: Picture, flip: bool) -> list[View]:
    """The picture, and its mirror image."""
    return [View(picture, 0, 0, *picture.size, mirrored) for mirrored in ((False, True) if flip else (False,))]


def crops(picture: Picture, grid: int, side: int, flip: bool) -> list[View]:
    """grid x grid square crops at equal distances, the outermost at the picture's edges (one alone in its middle), then
    their mirror images.

    Raises:
        ValueError: the picture is smaller than a crop.
    """
    if side > min(picture.size):
        raise ValueError(
            f"crop must be at most {min(picture.size)} for images[{picture.image}], of "
            f"{picture.size[0]} x {picture.size[1]} pixels, got {side}"
        )
    rows, columns = (_corners(extent, grid, side) for extent in picture.size)
    return [
        View(picture, top, left, side, side, mirrored)
        for mirrored in ((False, True) if flip else (False,))
        for top in rows
        for left in columns
    ]


def _corners(extent: int, grid: int, side: int) -> list[int]:
    room = extent - side
    return [room // 2] if grid == 1 else [round(i * room / (grid - 1)) for i in range(grid)]


def check(images: Images, preprocessing: Preprocessing | None, channels: int) -> None:
    """
    Raises:
        ValueError, TypeError: the images are none, or not what a network can take; the text says what is.
    """
    if isinstance(images, Tensor):
        if images.dim() != 4 or images.shape[1] != channels or not images.is_floating_point():
            raise ValueError(
                f"images must be (N, {channels}, H, W) of a floating dtype, normalised, "
                f"got shape {tuple(images.shape)} and dtype {images.dtype}"
            )
    else:
        check_pictures(images, f"; tensors come as one, (N, {channels}, H, W), normalised")
        if preprocessing is None and len(images) > 0:
            raise ValueError(
                "preprocessing is None, and the model carries none: pass what it was trained on, such as "
                "vggfast.Preprocessing.torchvision(), .caffe() or Preprocessing(mean, std)"
            )
    if len(images) == 0:
        raise ValueError("images must have at least one image, got none")


def check_pictures(images: object, hint: str = "") -> None:
    """Raises TypeError for what is no sequence of PIL images and paths."""
    if isinstance(images, str | Path | Image.Image):
        raise TypeError(f"images must be a sequence, such as [image], got one {type(images).__name__}")
    if isinstance(images, Mapping) or not isinstance(images, Collection):
        raise TypeError(f"images must be a sequence of pictures, got {type(images).__name__}")
    for i, image in enumerate(images):
        if not isinstance(image, str | Path | Image.Image):
            raise TypeError(f"images[{i}] must be a PIL image or the path of one, got {type(image).__name__}{hint}")


def pictures(images: Images, scales: Sequence[int] | None, preprocessing: Preprocessing | None) -> Iterator[Picture]:
    """Each image at each scale, opened once; at its own size where `scales` is None.

    Raises:
        FileNotFoundError, ValueError: a file does not open or decode, or an image has pixels that are no 8 or 16-bit
            numbers; the text names it.
    """
    for number, image in enumerate(images):
        opened = _opened(image, number)
        for scale in [None] if scales is None else scales:
            yield Picture(number, _pixels(opened, scale), preprocessing)


def _opened(image: Image.Image | str | Path | Tensor, number: int) -> Image.Image | Tensor:
    """Of a picture, as RGB."""
    if isinstance(image, Tensor):
        return image
    if not isinstance(image, Image.Image):
        return open_image(image)
    try:
        return to_rgb(image)
    except ValueError as error:
        raise ValueError(f"images[{number}]: {error}") from error


def _pixels(image: Image.Image | Tensor, scale: int | None) -> np.ndarray | Tensor:
    if isinstance(image, Tensor):
        if scale is None:
            return image
        size = rescaled_size((image.shape[1], image.shape[2]), scale)
        if size == tuple(image.shape[1:]):
            return image
        return F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)[0]
    return np.asarray(image if scale is None else rescale(image, scale))
