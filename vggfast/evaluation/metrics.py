"""Top-k errors, and the dense evaluation of a whole data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vggfast.data import ImageSet, Preprocessing
from vggfast.evaluation.dense import dense
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
    progress: Callable[[int], Any] = lambda done: None,
) -> tuple[dict[str, float], Tensor]:
    """(errors, posteriors (N, classes)) of a data set by :func:`dense`; `progress` is told how many images are done."""
    parts = []
    for begin in range(0, len(images), chunk):
        batch = [images.image(i) for i in range(begin, min(begin + chunk, len(images)))]
        parts.append(dense(model, batch, preprocessing, scales, flip=flip))
        progress(begin + len(batch))
    posteriors = torch.cat(parts)
    return errors(posteriors, torch.from_numpy(images.labels)), posteriors
