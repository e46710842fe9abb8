"""The error of localisation, by the paper's two protocols.

"true class": the box that the network gives for the image's true class, from the centre crop alone. "full": the five
likeliest classes of a classification network's dense evaluation, and for each of them a box: both networks run over the
whole image, the localisation network gives a box at each place of the class score map, they are merged greedily, and
the one with the highest sum of the class' posteriors is taken.

Source: Simonyan & Zisserman, appendix A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vggfast._progress import Progress, silent
from vggfast.data import Images
from vggfast.data.transforms import CentreCrop, crop_pictures, uncrop_boxes
from vggfast.evaluate.evaluator import MEMORY, Evaluator, ScoreMap
from vggfast.evaluate.metrics import interval
from vggfast.localisation.boxes import MERGE_THRESHOLD, corner_form, iou, merge, true_class_boxes
from vggfast.localisation.data import BoxSet
from vggfast.models import VGG

TOP = 5


class Found(NamedTuple):
    """Classes of n images, the likeliest first, and a box for each."""

    classes: np.ndarray  # (n, k) labels
    posteriors: np.ndarray  # (n, k)
    boxes: np.ndarray  # (n, k, 4) corners relative to the picture


@dataclass(frozen=True)
class Error:
    """A share of images: `wrong` of `n`."""

    wrong: int
    n: int

    @property
    def percent(self) -> float:
        """The share in per cent; of no images, a ZeroDivisionError."""
        return 100 * self.wrong / self.n

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson's interval, per cent."""
        return interval(self.percent, self.n, level)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; None where there was no classification network, or no mean box.

    Attributes:
        n: images.
        threshold: a box is right whose IoU with a true one is more than this.
        true_class, full: the network's errors.
        true_class_mean_box, full_mean_box: the same with the mean box in place of every box.
        classes: images whose class is not among the five: no box makes `full` smaller.
    """

    n: int
    threshold: float
    true_class: Error
    true_class_mean_box: Error | None = None
    full: Error | None = None
    full_mean_box: Error | None = None
    classes: Error | None = None


def evaluate(
    model: VGG,
    images: BoxSet,
    *,
    scale: int,
    classifier: VGG | None = None,
    scales: Sequence[int] = (),
    mean_box: np.ndarray | None = None,
    threshold: float = 0.5,
    merge_threshold: float = MERGE_THRESHOLD,
    progress: Progress = silent,
) -> Evaluation:
    """Errors by both protocols, beside those of one box for all images.

    Args:
        model: predicts boxes, 4 outputs (one box) or 4 a class; its preprocessing is set, as `load_model` does.
        images: with their boxes; labels are of the networks' classes.
        scale: shorter side of the image that the centre crop is of; the training's.
        classifier: the classification network of "full", of the same `pool_size`; None leaves that protocol out.
        scales: shorter sides for "full", one or more; (scale,) where none is given.
        mean_box: (4,) corners relative to the picture, of training images (:meth:`BoxSet.mean_box`).
        threshold: of the IoU, in [0, 1); the paper's is 0.5.
        merge_threshold: see :func:`vggfast.localisation.merge`.
        progress: is told how many images are done, of `len(images)` a protocol.

    Raises:
        ValueError: an argument does not fit, or an image does not decode; the text names it.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be at least 0 and less than 1, got {threshold}")
    n, one = len(images), np.zeros((1, 4)) if mean_box is None else np.asarray(mean_box, float)[None]

    def error(classes: np.ndarray, boxes: np.ndarray) -> Error:
        return Error(int((~is_right(images, classes, boxes, threshold)).sum()), n)

    def part(before: int) -> Progress:
        return lambda done, _, text="": progress(before + done, n if classifier is None else 2 * n, text)

    own = images.labels[:, None]
    own_boxes = centre_boxes(model, images, scale, progress=part(0))[:, None]
    true_class = error(own, own_boxes)
    by_mean = None if mean_box is None else error(own, np.broadcast_to(one, own_boxes.shape))
    if classifier is None:
        return Evaluation(n, threshold, true_class, by_mean)
    classes, _, boxes = dense_boxes(
        model, classifier, images, scales or (scale,), top=min(TOP, len(images.classes)),
        merge_threshold=merge_threshold,
        progress=part(n),
    )  # fmt: skip
    return Evaluation(
        n, threshold, true_class, by_mean, error(classes, boxes),
        None if mean_box is None else error(classes, np.broadcast_to(one, boxes.shape)),
        Error(int((classes != own).all(1).sum()), n),
    )  # fmt: skip


def is_right(images: BoxSet, classes: np.ndarray, boxes: np.ndarray, threshold: float) -> np.ndarray:
    """(n,) bool: one of the pairs of an image has its class, and a box with an IoU above `threshold` with a true one.

    Boxes are cut off at the picture's edge, where no true one goes on.

    Args:
        images: what is true.
        classes: (n, k) labels.
        boxes: (n, k, 4) corners relative to the picture.
        threshold: of the IoU.
    """
    inside = torch.from_numpy(np.clip(boxes, 0, 1))
    overlaps = [
        iou(mine, torch.from_numpy(images.boxes_of(index))).max(1).values.numpy() for index, mine in enumerate(inside)
    ]
    return ((classes == images.labels[:, None]) & (np.array(overlaps) > threshold)).any(1)


def crop_of(model: VGG) -> int:
    """Side in pixels of what the head of a network sees."""
    return 32 * model.arguments["pool_size"]


def _check_boxes(model: VGG, classes: int) -> None:
    """Raises ValueError where a network does not predict the boxes of so many classes."""
    outputs = model.arguments["num_classes"]
    if model.preprocessing is None or outputs not in (4, 4 * classes):
        raise ValueError(
            f"model must be a network that predicts boxes, 4 or {4 * classes} outputs for {classes} classes, with its "
            f"preprocessing, got {outputs} outputs and the preprocessing {model.preprocessing}"
        )


@torch.inference_mode()
def centre_boxes(
    model: VGG, images: BoxSet, scale: int, *, batch_size: int = 64, progress: Progress = silent
) -> np.ndarray:
    """(n, 4) corners relative to the picture: the box of the true class, from the centre crop.

    Args:
        model: a network that predicts boxes.
        images: with their labels.
        scale: pixels of the shorter side to which images are rescaled.
        batch_size: images of one call of the network.
        progress: told how many images are done, and of how many.

    Raises:
        ValueError: as :func:`evaluate`.
    """
    _check_boxes(model, len(images.classes))
    assert model.preprocessing is not None
    transform = CentreCrop(crop_of(model), scale, model.preprocessing)
    network, device = model.to_linear_head().eval(), next(model.parameters()).device
    boxes = []
    progress(0, len(images))
    for begin in range(0, len(images), batch_size):
        indices = range(begin, min(begin + batch_size, len(images)))
        pictures = [images.pixels(index) for index in indices]
        geometries = [transform.draw(picture.shape[:2], np.random.default_rng()) for picture in pictures]
        outputs = network(crop_pictures(pictures, geometries, transform).to(device)).cpu()
        own = true_class_boxes(outputs, torch.from_numpy(images.labels[indices.start : indices.stop]))
        boxes.append(uncrop_boxes(own.double().numpy(), geometries, transform.crop))
        progress(indices.stop, len(images))
    return np.concatenate(boxes)


def dense_boxes(
    model: VGG,
    classifier: VGG,
    images: Images,
    scales: Sequence[int],
    *,
    top: int = TOP,
    merge_threshold: float = MERGE_THRESHOLD,
    memory: int = MEMORY,
    batch_size: int = 32,
    progress: Progress = silent,
) -> Found:
    """The `top` likeliest classes of each image, and a box for each of them; labels are not looked at.

    Posteriors are those of dense evaluation, image and mirror image, averaged over the scales; boxes come from all
    scales and the image as it is.

    Args:
        model: a network that predicts boxes.
        classifier: one that names classes.
        images: of the classes that both know.
        scales: pixels of the shorter sides to which images are rescaled.
        top: boxes of each image.
        merge_threshold: see :func:`merge`.
        memory: bytes of activations.
        batch_size: images that are read at a time.
        progress: told how many images are done, and of how many.

    Raises:
        ValueError: as :func:`evaluate`.
    """
    _check(model, classifier, len(images.classes), top)
    boxer, namer = Evaluator(model, memory=memory), Evaluator(classifier, memory=memory)
    found = []
    for begin in range(0, len(images), batch_size):
        end = min(begin + batch_size, len(images))
        pictures = [images.image(index) for index in range(begin, end)]
        posteriors = namer.dense(pictures, scales)
        maps = [[each.score_maps(pictures, scale, flip=False) for scale in scales] for each in (boxer, namer)]
        for row, boxed, named in zip(posteriors, *(zip(*each, strict=True) for each in maps), strict=True):
            values, labels = row.topk(top)
            boxes = torch.cat([place_boxes(each) for each in boxed])
            scores = torch.cat([each.scores.softmax(0).flatten(1) for each in named], 1)
            found.append((labels, values, _best(boxes, scores, labels.tolist(), merge_threshold)))
        progress(end, len(images))
    return Found(*(torch.stack(each).numpy() for each in zip(*found, strict=True)))


def place_boxes(scores: ScoreMap) -> Tensor:
    """(h * w, boxes, 4) float64 corners relative to the picture, of the outputs at each place of a map.

    At place (i, j) they are of the centre form, relative to the square that it sees.
    """
    boxes = corner_form(scores.scores.double().unflatten(0, (-1, 4)).permute(2, 3, 0, 1))
    rows, columns = (torch.arange(extent) * scores.stride for extent in boxes.shape[:2])
    corners = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).repeat(1, 1, 2)[:, :, None]
    height, width = scores.size
    return ((boxes * scores.window + corners) / torch.tensor([width, height] * 2)).flatten(0, 1)


def _best(boxes: Tensor, scores: Tensor, labels: list[int], threshold: float) -> Tensor:
    """(k, 4): for each label, of the boxes (places, boxes, 4) the one that scores (classes, places) highest, merged."""
    count = boxes.shape[1]
    return torch.stack([merge(boxes[:, label % count], scores[label], threshold)[0][0] for label in labels])


def _check(model: VGG, classifier: VGG, classes: int, top: int) -> None:
    _check_boxes(model, classes)
    known = classifier.arguments["num_classes"]
    if classifier.preprocessing is None or known != classes or crop_of(classifier) != crop_of(model):
        raise ValueError(
            f"classifier must have {classes} classes, some preprocessing and a head of {crop_of(model)} pixels, "
            f"got {known}, {classifier.preprocessing} and {crop_of(classifier)}"
        )
    if not 1 <= top <= classes:
        raise ValueError(f"top must be 1 to {classes}, the number of classes, got {top}")
