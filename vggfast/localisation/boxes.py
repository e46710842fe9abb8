"""Boxes: their two forms, how much they overlap, and many of one object made into few.

A box is four numbers in units of its frame's width and height (1 is the whole frame), in one of two forms: corners
(left, top, right, bottom), y downwards; or centre (centre x, centre y, width, height), which networks predict. The
frame is the picture, or the crop of it that a network sees.

Source: Simonyan & Zisserman, appendix A; Sermanet et al., 2014 (OverFeat), section 4.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

MERGE_THRESHOLD = 1.0


def corner_form(boxes: Tensor) -> Tensor:
    """(..., 4) boxes of the centre form (centre x, centre y, width, height) as corners (left, top, right, bottom)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def centre_form(boxes: Tensor) -> Tensor:
    """(..., 4) corners (left, top, right, bottom) as boxes of the centre form (centre x, centre y, width, height)."""
    first, last = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(first + last) / 2, last - first], -1)


def true_class_boxes(outputs: Tensor, labels: Tensor) -> Tensor:
    """(n, 4): of (n, 4) outputs they are the box; of (n, 4 * classes), the four of each label's class."""
    boxes = outputs.unflatten(1, (-1, 4))
    return boxes[torch.arange(len(boxes), device=boxes.device), labels % boxes.shape[1]]


def areas(boxes: Tensor) -> Tensor:
    """(...) of (..., 4) corners; 0 where right is left of left, or bottom above top."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """(..., n, m): intersection over union of each box of `a`, (..., n, 4) corners, with each of `b`, (..., m, 4).

    0 where neither has an area, and where one of them is not finite.
    """
    first = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    last = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    common = areas(torch.cat([first, last], -1))
    union = areas(a)[..., :, None] + areas(b)[..., None, :] - common
    return (common / union).nan_to_num(0.0, posinf=0.0, neginf=0.0)


def merge(boxes: Tensor, scores: Tensor, threshold: float = MERGE_THRESHOLD) -> tuple[Tensor, Tensor]:
    """Greedy merging: the two boxes that match best become one, again and again, while they match well enough.

    Two boxes match with the distance of their centres, divided by the square root of their mean area, plus
    1 - IoU: 0 for equal boxes. (OverFeat adds the distance and the area of the intersection, with no unit for either;
    this is their sense, free of the size of picture and object.) The pair with the lowest value merges as long as it
    is at most `threshold`; of equal values the first pair in order does. What it becomes stands in the place of the
    first: the mean of the corners of all boxes that ever went into it, and the sum of their scores.

    Args:
        boxes: (n, 4) corners in one frame.
        scores: (n,).
        threshold: of the match; 0 merges equal boxes alone. A box that is not finite matches none.

    Returns:
        (m, 4) corners and (m,) scores, float64, the highest score first.

    Raises:
        ValueError: shapes do not fit, or threshold is negative; the text names it.
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise ValueError(
            f"boxes and scores must have shapes (n, 4) and (n,), got {(*boxes.shape,)} and {(*scores.shape,)}"
        )
    if not threshold >= 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}")
    boxes, scores = boxes.double().clone(), scores.double().clone()
    counts = torch.ones_like(scores)
    match = _match(boxes, boxes).fill_diagonal_(torch.inf)
    while match.numel() and match.min() <= threshold:
        i, j = divmod(int(match.argmin()), len(boxes))  # the matrix is symmetric, so i < j
        boxes[i] = (counts[i] * boxes[i] + counts[j] * boxes[j]) / (counts[i] + counts[j])
        counts[i] += counts[j]
        scores[i] += scores[j]
        kept = torch.arange(len(boxes)) != j
        boxes, scores, counts, match = boxes[kept], scores[kept], counts[kept], match[kept][:, kept]
        match[i] = match[:, i] = _match(boxes[i : i + 1], boxes)[0]
        match[i, i] = torch.inf
    order = scores.argsort(descending=True, stable=True)
    return boxes[order], scores[order]


def _match(a: Tensor, b: Tensor) -> Tensor:
    """(n, m) of (n, 4) and (m, 4) corners: see `merge`."""
    distance = torch.cdist(centre_form(a)[:, :2], centre_form(b)[:, :2], compute_mode="donot_use_mm_for_euclid_dist")
    side = ((areas(a)[:, None] + areas(b)) / 2).sqrt()
    apart = torch.where(distance == 0, 0, distance / side)
    return apart.nan_to_num(torch.inf, torch.inf) + 1 - iou(a, b)
