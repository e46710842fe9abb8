"""From an RGB image to what the network sees, as the paper does it: rescale, crop, flip, colour shift, mean.

Source: Simonyan & Zisserman, sections 2.1 and 3.1; the colour shift is Krizhevsky et al., 2012, section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def rescale(image: Image.Image, shorter_side: int) -> Image.Image:
    """The image with its shorter side so many pixels long and its aspect kept."""
    scale = shorter_side / min(image.size)
    width, height = (max(shorter_side, round(extent * scale)) for extent in image.size)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Preprocessing:
    """(pixel - mean) / std per channel, pixels 0 to 255, RGB. The paper subtracts the mean only: std is then 1."""

    mean: tuple[float, ...] = (123.68, 116.779, 103.939)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def tensor(self, pixels: np.ndarray) -> Tensor:
        """(H, W, 3) pixels as a (3, H, W) float32 tensor that lies as HWC."""
        values = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)

    def as_dict(self) -> dict[str, Any]:
        return {name: list(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        return cls(tuple(values["mean"]), tuple(values["std"]))


@dataclass(frozen=True)
class ColourStatistics:
    """What a training set's pixels are like. Components are the columns of `axes`, pixels there 0 to 1."""

    mean: np.ndarray  # (3,), 0 to 255
    std: np.ndarray  # (3,), 0 to 255
    axes: np.ndarray  # (3, 3), principal axes of RGB
    variances: np.ndarray  # (3,), along them


def colour_statistics(images: Iterable[Image.Image]) -> ColourStatistics:
    """Mean, deviation and principal axes of the RGB values of `images`."""
    count, total, square = 0, np.zeros(3), np.zeros((3, 3))
    for image in images:
        pixels = np.asarray(image, dtype=np.float64).reshape(-1, 3) / 255
        count += len(pixels)
        total += pixels.sum(0)
        square += pixels.T @ pixels
    if not count:
        raise ValueError("images is empty: at least one image is wanted")
    mean = total / count
    covariance = square / count - np.outer(mean, mean)
    variances, axes = np.linalg.eigh(covariance)
    deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
    return ColourStatistics(mean * 255, deviation * 255, axes, np.maximum(variances, 0))


@dataclass(frozen=True)
class Augmentation:
    """One random training crop: rescale to a shorter side S, crop, flip, colour shift.

    Attributes:
        crop: side of the square crop in pixels; at most `scales[0]`.
        scales: S is drawn from scales[0] ... scales[1]; equal bounds fix it.
        flip: mirror every other image, at random.
        colour_shift: deviation of the shift along each principal axis, in units of its variance; the paper's is 0.1.
    """

    crop: int
    scales: tuple[int, int]
    flip: bool
    colour_shift: float
    statistics: ColourStatistics
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        low, high = self.scales
        if not 1 <= self.crop <= low <= high:
            raise ValueError(f"crop is {self.crop} and the scales {low} to {high}: 1 <= crop <= low <= high is wanted")

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> Tensor:
        image = rescale(image, int(generator.integers(self.scales[0], self.scales[1] + 1)))
        left, top = (int(generator.integers(0, extent - self.crop + 1)) for extent in image.size)
        pixels = np.asarray(image.crop((left, top, left + self.crop, top + self.crop)), dtype=np.float32)
        if self.flip and generator.random() < 0.5:
            pixels = pixels[:, ::-1]
        shift = self.statistics.axes @ (generator.normal(0, 1, 3) * self.colour_shift * self.statistics.variances)
        return self.preprocessing.tensor(pixels + np.float32(255 * shift))


def centre_crop(image: Image.Image, crop: int, scale: int, preprocessing: Preprocessing) -> Tensor:
    """The middle square of `crop` pixels of the image rescaled to a shorter side of `scale`."""
    image = rescale(image, scale)
    left, top = ((extent - crop) // 2 for extent in image.size)
    return preprocessing.tensor(np.asarray(image.crop((left, top, left + crop, top + crop)), dtype=np.float32))
