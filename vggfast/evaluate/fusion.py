"""One answer of several networks.

Source: Simonyan & Zisserman, section 4.4 (the average); the vote is that of published replications.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def average(posteriors: Sequence[Tensor]) -> Tensor:
    """The mean of the networks' posteriors.

    Args:
        posteriors: of each network, (N, classes), in the same order of images and classes.

    Raises:
        ValueError: none is given, or their shapes differ.
    """
    return _stacked(posteriors).mean(0)


def vote(posteriors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The majority's labels, the first network deciding ties.

    Each network votes for its likeliest class (of equal ones, the first). The label with the most votes wins; among
    those with equally many, the one that the first network voted for, or where it voted for none of these, the second,
    and so on.

    Args:
        posteriors: as for :func:`average`.

    Returns:
        labels (N,), int64; confidence (N,), float32: the mean over the networks of the label's posterior.

    Raises:
        ValueError: as :func:`average`.
    """
    stacked = _stacked(posteriors)
    votes = stacked.argmax(2)  # (networks, N)
    counts = (votes[:, None] == votes).sum(0)  # of the votes for what each network voted for
    labels = votes.gather(0, counts.argmax(0, keepdim=True))[0]  # argmax takes the first of equals
    return labels, average(posteriors).gather(1, labels[:, None])[:, 0]


def _stacked(posteriors: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(each.shape) for each in posteriors}
    if len(shapes) != 1 or any(len(shape) != 2 for shape in shapes):
        raise ValueError(
            f"posteriors must be one or more tensors of the same shape (N, classes), got shapes {sorted(shapes)}"
        )
    return torch.stack(list(posteriors))
