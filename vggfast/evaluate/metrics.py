"""Top-k errors, their intervals, class by class, how far confidence can be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vggfast._deprecated import renamed_attributes


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
    """Share of images, in per cent, whose label is not among the k highest scores (see `hits`): {"top1_error": ...}.

    Args:
        scores: (N, classes), logits or posteriors.
        labels: (N,), int64.
        ks: one error for each k.

    Raises:
        ValueError: there are no images.
    """
    if len(scores) == 0:
        raise ValueError("scores must have at least one image, got none")
    return {f"top{k}_error": 100 * (~hits(scores, labels, k)).double().mean().item() for k in ks}


def with_accuracies(errors: Mapping[str, Any]) -> dict[str, Any]:
    """`errors`, and beside each top1_error and so on the top1_accuracy, in per cent; None where the error is None."""
    accuracies = {
        name.replace("_error", "_accuracy"): None if value is None else 100 - value
        for name, value in errors.items()
        if name.endswith("_error")
    }
    return {**errors, **accuracies}


def interval(errors: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of an error: (low, high), in per cent.

    Args:
        errors: the share of wrong answers, in per cent.
        n: answers.
        level: how often such an interval holds the true share.

    Raises:
        ValueError: an argument is outside of its range; the text names it.

    Source: Wilson, 1927.
    """
    if not 0 <= errors <= 100:
        raise ValueError(f"errors must be 0 to 100, got {errors}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    share = errors / 100
    middle = share + z2 / (2 * n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n)))
    low, high = (100 * (middle + sign * half) / (1 + z2 / n) for sign in (-1, 1))
    return max(low, 0.0), min(high, 100.0)


@renamed_attributes(top1="top1_error", top5="top5_error")
class ClassRow(NamedTuple):
    """A class in the table of all.

    Attributes:
        name: of the class.
        images: how many it has.
        top1_error, top5_error: in per cent; NaN without images.
        confidence: the mean posterior that its images have of it, 0 to 1; NaN without images.
        taken_for: the class that most of its mistakes are taken for; "" without mistakes.
        times: how often it is taken for that class.
    """

    name: str
    images: int
    top1_error: float
    top5_error: float
    confidence: float
    taken_for: str
    times: int


def per_class(posteriors: Tensor, labels: Tensor, classes: Sequence[str]) -> list[ClassRow]:
    """A row for each class, in the order of `classes`.

    Args:
        posteriors: (N, classes).
        labels: (N,), int64.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    _check(posteriors, labels)
    if posteriors.shape[1] != len(classes):
        raise ValueError(f"classes must have {posteriors.shape[1]} names, as many as posteriors, got {len(classes)}")
    top1, top5 = (100 * (~hits(posteriors, labels, k)).double() for k in (1, 5))
    predicted = posteriors.argmax(1)
    rows = []
    for label, name in enumerate(classes):
        mine = labels == label
        taken = torch.bincount(predicted[mine & (predicted != label)], minlength=len(classes))
        times = int(taken.max())
        rows.append(
            ClassRow(
                name,
                int(mine.sum()),
                top1[mine].mean().item(),
                top5[mine].mean().item(),
                posteriors[mine, label].double().mean().item(),
                classes[int(taken.argmax())] if times else "",
                times,
            )
        )
    return rows


class Reliability(NamedTuple):
    """How often answers of a confidence are right.

    Attributes:
        edges: (bins + 1,), 0 to 1.
        counts: (bins,), int64: images whose largest posterior is in (edges[i], edges[i + 1]].
        confidence: (bins,): the mean of these posteriors; NaN of an empty bin.
        accuracy: (bins,): the share of right answers; NaN of an empty bin.
        error: expected calibration error, the mean over all images of |accuracy - confidence| of their bin, 0 to 1.
    """

    edges: Tensor
    counts: Tensor
    confidence: Tensor
    accuracy: Tensor
    error: float


def reliability(posteriors: Tensor, labels: Tensor, bins: int = 15) -> Reliability:
    """Reliability curve and expected calibration error of (N, classes) posteriors, in bins of equal width.

    Raises:
        ValueError: the shapes do not fit each other, or there are no bins.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    _check(posteriors, labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    best, predicted = posteriors.double().max(1)
    place = (best * bins).ceil().long().clamp(1, bins) - 1

    def total(values: Tensor) -> Tensor:
        return torch.zeros(bins, dtype=torch.float64).index_add(0, place, values)

    counts = torch.bincount(place, minlength=bins)
    confidence, accuracy = (total(values) / counts for values in (best, (predicted == labels).double()))
    gaps = (accuracy - confidence).abs().nan_to_num() * counts
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    return Reliability(edges, counts, confidence, accuracy, gaps.sum().item() / len(posteriors))


def _check(posteriors: Tensor, labels: Tensor) -> None:
    if posteriors.dim() != 2 or len(posteriors) == 0 or labels.shape != posteriors.shape[:1]:
        raise ValueError(
            "posteriors and labels must have shapes (N, classes) and (N,), N at least 1, "
            f"got {tuple(posteriors.shape)} and {tuple(labels.shape)}"
        )
