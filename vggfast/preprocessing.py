"""From the pixels of an RGB picture to what a network was trained on: channel order, range, mean, deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

ORDERS = ("RGB", "BGR")


@dataclass(frozen=True)
class Preprocessing:
    """(pixel * top / 255 - mean) / std per channel, pixels 0 to 255. The paper subtracts the mean only: std is then 1.

    Attributes:
        mean, std: of the network's three input channels, in `order`, on the scale of 0 to `top`.
        order: in which the network takes the channels, "RGB" or "BGR" (Caffe's networks).
        top: what the network takes for a pixel of 255: 255, or 1.

    Raises:
        ValueError: a value is not what is allowed; the text names it.
    """

    mean: tuple[float, ...] = (123.68, 116.779, 103.939)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    order: str = "RGB"
    top: float = 255.0

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(isinstance(each, Real) and math.isfinite(each) for each in values):
                raise ValueError(f"{name} must have three numbers, one a channel, got {values}")
        if min(self.std) <= 0 or self.top <= 0:
            raise ValueError(f"std and top must be greater than 0, got {self.std} and {self.top}")
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(map(repr, ORDERS))}, got {self.order!r}")

    @classmethod
    def torchvision(cls) -> Preprocessing:
        """What torchvision's and timm's networks take: RGB, 0 to 1, ImageNet's mean and deviation."""
        return cls((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), top=1.0)

    @classmethod
    def caffe(cls) -> Preprocessing:
        """What the authors' own networks take, and Keras' of them: BGR, 0 to 255, less the mean."""
        return cls((103.939, 116.779, 123.68), order="BGR")

    @property
    def rgb_mean(self) -> tuple[float, ...]:
        """The means of R, G and B, in units of 0 to 255."""
        return self._as_rgb(self.mean)

    @property
    def rgb_std(self) -> tuple[float, ...]:
        """The deviations of R, G and B, in units of 0 to 255."""
        return self._as_rgb(self.std)

    def _as_rgb(self, values: tuple[float, ...]) -> tuple[float, ...]:
        scaled = tuple(value * 255 / self.top for value in values)
        return scaled if self.order == "RGB" else scaled[::-1]

    def __call__(self, images: Tensor | np.ndarray | Any) -> Tensor:
        """What the network takes, of RGB pictures as they are; it is not resized. Differentiable.

        Args:
            images: (N, 3, H, W) or (3, H, W), uint8 of 0 to 255 or floating point of 0 to 1; or a picture of PIL's, or
                its (H, W, 3) array of uint8.

        Returns:
            (N, 3, H, W), N = 1 for one picture; float32 for uint8, else of the dtype of `images`.

        Raises:
            TypeError, ValueError: it is none of these; the text says what it is.
        """
        if hasattr(images, "convert"):
            images = np.asarray(images.convert("RGB"))
        if isinstance(images, np.ndarray):
            if images.dtype != np.uint8 or images.ndim != 3 or images.shape[2] != 3:
                raise ValueError(f"images must be (H, W, 3) of uint8, got {images.shape} of {images.dtype}")
            return self.tensor(images)[None]
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a tensor, an array or a picture of PIL's, got {type(images).__name__}")
        if images.dim() not in (3, 4) or images.shape[-3] != 3:
            raise ValueError(f"images must be (N, 3, H, W) or (3, H, W), got {tuple(images.shape)}")
        if images.dtype == torch.uint8:
            images = images.float() / 255
        elif not images.is_floating_point():
            raise ValueError(f"images must be uint8, of 0 to 255, or floating point, of 0 to 1, got {images.dtype}")
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (self.rgb_mean, self.rgb_std))
        values = (images * 255 - mean) / std
        values = values if images.dim() == 4 else values[None]
        return values if self.order == "RGB" else values.flip(1)

    def tensor(self, pixels: np.ndarray) -> Tensor:
        """(H, W, 3) RGB pixels as a (3, H, W) float32 tensor that lies as HWC."""
        values = (pixels - np.array(self.rgb_mean, np.float32)) / np.array(self.rgb_std, np.float32)
        return torch.from_numpy(self.ordered(values.astype(np.float32))).permute(2, 0, 1)

    def ordered(self, values: np.ndarray) -> np.ndarray:
        """(..., 3) values of R, G and B in the network's order."""
        return values if self.order == "RGB" else np.ascontiguousarray(values[..., ::-1])

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON and YAML can hold them: tuples as lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Of :meth:`as_dict`; files of earlier versions have mean and std alone."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def preprocessing_of(model: object, given: Preprocessing | None = None) -> Preprocessing | None:
    """`given`, or else the model's attribute `preprocessing`; None where there is neither.

    Raises:
        TypeError: it is something else.
    """
    found = getattr(model, "preprocessing", None) if given is None else given
    if found is not None and not isinstance(found, Preprocessing):
        whose = "preprocessing of the model" if given is None else "preprocessing"
        raise TypeError(f"{whose} must be a Preprocessing, got {type(found).__name__}")
    return found
