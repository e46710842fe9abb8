"""Top-k errors, and the dense evaluation of a whole data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vggfast.data import ImageSet, Preprocessing
from vggfast.evaluate.dense import dense
from vggfast.models import VGG


def hits(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """(N,) bool: the label is among the k highest scores. A tie, or NaN, goes against the network.

    Args:
        scores: (N, classes), logits or posteriors.
        labels: (N,), int64.
        k: one larger than the number of classes always hits.
    """
    own = scores.gather(1, labels[:, None])
    rank = (scores > own).sum(1) + ((scores == own).sum(1) - 1)
    return torch.where(own[:, 0].isnan(), scores.shape[1], rank) < k


def errors(scores: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Share of images, in per cent, whose label is not among the k highest scores (see `hits`): {"top1": ..., ...}."""
    if len(scores) == 0:
        raise ValueError("scores is empty: at least one image is wanted")
    return {f"top{k}": 100 * (~hits(scores, labels, k)).double().mean().item() for k in ks}


def evaluate_dense(
    model: VGG,
    images: ImageSet,
    preprocessing: Preprocessing,
    scales: Sequence[int],
    *,
    flip: bool = True,
    chunk: int = 256,
    on_bad_image: str = "fail",
    progress: Callable[[int], Any] = lambda done: None,
) -> tuple[dict[str, float], Tensor]:
    """(errors, posteriors (N, classes)) of a data set by :func:`dense`; `progress` is told how many images are done.

    With `on_bad_image` "skip", an image that does not decode has posteriors of NaN and counts in no error.

    Raises:
        ValueError: an image does not decode, or none does; the text names it.
    """
    posteriors = torch.full((len(images), len(images.classes)), float("nan"))
    for begin in range(0, len(images), chunk):
        end = min(begin + chunk, len(images))
        batch = {i: image for i in range(begin, end) if (image := _image(images, i, on_bad_image)) is not None}
        if batch:
            posteriors[list(batch)] = dense(model, list(batch.values()), preprocessing, scales, flip=flip)
        progress(end)
    seen = ~posteriors.isnan().any(1)
    return errors(posteriors[seen], torch.from_numpy(images.labels)[seen]), posteriors


def _image(images: ImageSet, index: int, on_bad_image: str) -> Image.Image | None:
    try:
        return images.image(index)
    except (OSError, ValueError):
        if on_bad_image == "fail":
            raise
        return None
