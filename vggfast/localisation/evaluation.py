"""The error of localisation, by the paper's two protocols.

"true class": the box that the network gives for the image's true class, from the centre crop alone. "full": the five
likeliest classes of a classification network's dense evaluation, and for each of them a box: both networks run over the
whole image, the localisation network gives a box at each place of the class score map, they are merged greedily, and
the one with the highest sum of the class' posteriors is taken.

Source: Simonyan & Zisserman, appendix A.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vggfast import ops
from vggfast.data import ImageSet
from vggfast.data.transforms import CentreCrop, crop_pictures, rescale, uncrop_boxes
from vggfast.localisation.boxes import MERGE_THRESHOLD, corner_form, iou, merge
from vggfast.localisation.data import BoxSet
from vggfast.localisation.task import true_class_boxes
from vggfast.models import VGG

TOP = 5
_STRIDE = 32  # pixels from one place of the score map to the next


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
        return 100 * self.wrong / self.n

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's interval, per cent."""
        from scipy.stats import binomtest

        found = binomtest(self.wrong, self.n).proportion_ci(confidence, "wilson")
        return 100 * found.low, 100 * found.high


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
    progress: Callable[[int], Any] = lambda done: None,
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
        raise ValueError(f"threshold is {threshold}: 0 or more and less than 1 is wanted")
    n, one = len(images), np.zeros((1, 4)) if mean_box is None else np.asarray(mean_box, float)[None]

    def error(classes: np.ndarray, boxes: np.ndarray) -> Error:
        return Error(int((~is_right(images, classes, boxes, threshold)).sum()), n)

    own = images.labels[:, None]
    own_boxes = centre_boxes(model, images, scale, progress=progress)[:, None]
    true_class = error(own, own_boxes)
    by_mean = None if mean_box is None else error(own, np.broadcast_to(one, own_boxes.shape))
    if classifier is None:
        return Evaluation(n, threshold, true_class, by_mean)
    classes, _, boxes = dense_boxes(
        model, classifier, images, scales or (scale,), top=min(TOP, len(images.classes)),
        merge_threshold=merge_threshold,
        progress=lambda done: progress(n + done),
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
    return _STRIDE * model.arguments["pool_size"]


def _check_boxes(model: VGG, classes: int) -> None:
    """Raises ValueError where a network does not predict the boxes of so many classes."""
    outputs = model.arguments["num_classes"]
    if model.preprocessing is None or outputs not in (4, 4 * classes):
        raise ValueError(
            f"model has {outputs} outputs and the preprocessing {model.preprocessing}: a network that predicts boxes "
            f"is wanted, 4 or {4 * classes} outputs for {classes} classes, with its preprocessing"
        )


@torch.inference_mode()
def centre_boxes(
    model: VGG, images: BoxSet, scale: int, *, batch_size: int = 64, progress: Callable[[int], Any] = lambda done: None
) -> np.ndarray:
    """(n, 4) corners relative to the picture: the box of the true class, from the centre crop.

    Raises:
        ValueError: as :func:`evaluate`.
    """
    _check_boxes(model, len(images.classes))
    assert model.preprocessing is not None
    transform = CentreCrop(crop_of(model), scale, model.preprocessing)
    network, device = model.to_linear_head().eval(), next(model.parameters()).device
    boxes = []
    for begin in range(0, len(images), batch_size):
        indices = range(begin, min(begin + batch_size, len(images)))
        pictures = [images.pixels(index) for index in indices]
        geometries = [transform.draw(picture.shape[:2], np.random.default_rng()) for picture in pictures]
        outputs = network(crop_pictures(pictures, geometries, transform).to(device)).cpu()
        own = true_class_boxes(outputs, torch.from_numpy(images.labels[indices.start : indices.stop]))
        boxes.append(uncrop_boxes(own.double().numpy(), geometries, transform.crop))
        progress(indices.stop)
    return np.concatenate(boxes)


def place_boxes(outputs: Tensor, crop: int, size: tuple[int, int]) -> Tensor:
    """(N, h * w, boxes, 4) float64 corners relative to the whole image, of the outputs at each place of a map.

    Args:
        outputs: (N, 4 * boxes, h, w); place (i, j) sees the square of `crop` pixels whose corner is row 32 i, column
            32 j, and its boxes are of the centre form, relative to that square.
        crop: pixels.
        size: height and width in pixels of the image that the network saw.
    """
    boxes = corner_form(outputs.double().unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2))
    rows, columns = (torch.arange(extent) * _STRIDE for extent in outputs.shape[2:])
    corners = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).repeat(1, 1, 2)[:, :, None]
    height, width = size
    return ((boxes * crop + corners) / torch.tensor([width, height] * 2)).flatten(1, 2)


@torch.inference_mode()
def dense_boxes(
    model: VGG,
    classifier: VGG,
    images: ImageSet,
    scales: Sequence[int],
    *,
    top: int = TOP,
    merge_threshold: float = MERGE_THRESHOLD,
    batch_size: int = 32,
    progress: Callable[[int], Any] = lambda done: None,
) -> Found:
    """The `top` likeliest classes of each image, and a box for each of them; labels are not looked at.

    Posteriors are those of dense evaluation, image and mirror image, averaged over the scales; boxes come from all
    scales and the image as it is.

    Raises:
        ValueError: as :func:`evaluate`.
    """
    crop = _check(model, classifier, images, scales, top)
    merged = []
    for begin in range(0, len(images), batch_size):
        end = min(begin + batch_size, len(images))
        pictures = [images.image(index) for index in range(begin, end)]
        posteriors, boxes, scores = _run(model, classifier, pictures, scales, crop)
        merged += [_best(*each, top, merge_threshold) for each in zip(posteriors, boxes, scores, strict=True)]
        progress(end)
    return Found(*(torch.stack(each).numpy() for each in zip(*merged, strict=True)))


def _check(model: VGG, classifier: VGG, images: ImageSet, scales: Sequence[int], top: int) -> int:
    """The crop that both networks see."""
    classes, crop = len(images.classes), crop_of(model)
    _check_boxes(model, classes)
    known = classifier.arguments["num_classes"]
    if classifier.preprocessing is None or known != classes or crop_of(classifier) != crop:
        raise ValueError(
            f"classifier has {known} classes, the preprocessing {classifier.preprocessing} and a head of "
            f"{crop_of(classifier)} pixels: {classes} classes, some preprocessing and {crop} pixels are wanted"
        )
    if not scales or min(scales) < crop:
        raise ValueError(f"scales is {list(scales)}: one or more of at least {crop} are wanted")
    if not 1 <= top <= classes:
        raise ValueError(f"top is {top}: 1 to {classes}, the number of classes, is wanted")
    return crop


def _by_size(pictures: Sequence[Image.Image], scale: int) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """(indices, float32 pixels) of pictures rescaled to a shorter side of `scale`, those of one size together."""
    groups = defaultdict(list)
    for index, picture in enumerate(pictures):
        pixels = np.asarray(rescale(picture, scale), dtype=np.float32)
        groups[pixels.shape].append((index, pixels))
    for group in groups.values():
        yield [index for index, _ in group], [pixels for _, pixels in group]


def _run(
    model: VGG, classifier: VGG, pictures: Sequence[Image.Image], scales: Sequence[int], crop: int
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Posteriors (n, classes); and for each picture, at the p places of all scales, its boxes (p, boxes, 4), relative
    to the picture, and its class posteriors (p, classes)."""
    boxer, namer = (network.to_conv_head().eval() for network in (model, classifier))
    device = next(model.parameters()).device
    posteriors = torch.zeros(len(pictures), classifier.arguments["num_classes"], dtype=torch.float64)
    boxes: list[list[Tensor]] = [[] for _ in pictures]
    scores: list[list[Tensor]] = [[] for _ in pictures]

    def batch(network: VGG, pixels: list[np.ndarray]) -> Tensor:
        assert network.preprocessing is not None
        made = torch.stack([network.preprocessing.tensor(each) for each in pixels])
        return made.contiguous(memory_format=torch.channels_last).to(device)

    for scale in scales:
        for indices, pixels in _by_size(pictures, scale):
            seen = batch(namer, pixels)
            named, mirrored = namer.score_map(seen), namer.score_map(seen.flip(3))
            for each in (named, mirrored):
                posteriors[indices] += ops.sum_pool(each).softmax(1).double().cpu() / (2 * len(scales))
            placed = place_boxes(boxer.score_map(batch(boxer, pixels)).cpu(), crop, pixels[0].shape[:2])
            rated = named.softmax(1).flatten(2).transpose(1, 2).cpu()
            for index, own_boxes, own_scores in zip(indices, placed, rated, strict=True):
                boxes[index].append(own_boxes)
                scores[index].append(own_scores)
    return posteriors, [torch.cat(each) for each in boxes], [torch.cat(each) for each in scores]


def _best(posteriors: Tensor, boxes: Tensor, scores: Tensor, top: int, threshold: float) -> tuple[Tensor, ...]:
    """(top,) likeliest labels of one picture, their posteriors, and (top, 4) the box of each that scores highest once
    merged."""
    values, classes = posteriors.topk(top)
    count = boxes.shape[1]
    best = [merge(boxes[:, label % count], scores[:, label], threshold)[0][0] for label in classes.tolist()]
    return classes, values, torch.stack(best)
