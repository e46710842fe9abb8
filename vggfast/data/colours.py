"""What a training set's colours are like: their mean, std and principal axes.

Source: Krizhevsky et al., 2012, section 4.1, which the paper's colour shift follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vggfast.data.sources.base import ImageSet

_SAMPLE = 2000


@dataclass(frozen=True)
class ColourStatistics:
    """What a training set's pixels are like.

    Attributes:
        mean, std: (3,), of RGB values 0 to 255.
        axes: (3, 3), whose columns are the principal axes of RGB values 0 to 1.
        variances: (3,), along these axes.
    """

    mean: np.ndarray
    std: np.ndarray
    axes: np.ndarray
    variances: np.ndarray


def colour_statistics(images: Iterable[Image.Image]) -> ColourStatistics:
    """Mean, std and principal axes of the RGB values of `images`."""
    count, total, square = 0, np.zeros(3), np.zeros((3, 3))
    for image in images:  # sums of whole numbers below 2^53: exact, so the same whatever their order
        channels = np.ascontiguousarray(np.asarray(image).reshape(-1, 3).T, dtype=np.float64)
        count += channels.shape[1]
        total += channels.sum(1)
        square += channels @ channels.T
    if not count:
        raise ValueError("images must have at least one image, got none")
    total, square = total / 255, square / 255**2
    mean = total / count
    covariance = square / count - np.outer(mean, mean)
    variances, axes = np.linalg.eigh(covariance)
    std = np.sqrt(np.maximum(np.diag(covariance), 1e-12))
    return ColourStatistics(mean * 255, std * 255, axes, np.maximum(variances, 0))


def measure_colours(images: ImageSet, sample: int = _SAMPLE, on_bad_image: str = "fail") -> ColourStatistics:
    """Colour statistics of `sample` images of the data set, always the same ones.

    Raises:
        ValueError: an image of them does not decode and `on_bad_image` is "fail", or none does; the text names it.
    """

    def chosen() -> Iterator[Image.Image]:
        for index in np.random.default_rng(0).permutation(len(images))[:sample]:
            try:
                yield images.image(int(index))
            except (OSError, ValueError):
                if on_bad_image == "fail":
                    raise

    return colour_statistics(chosen())
