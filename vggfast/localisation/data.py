"""Data sets whose images come with the boxes of their objects: Tiny-ImageNet's, and ImageNet's localisation task.

Images without a box are left out, which a warning counts: half of ImageNet's training images have none.
"""

from __future__ import annotations

import functools
import math
import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vggfast.data.sources import open_dataset
from vggfast.data.sources.base import ImageSet
from vggfast.data.sources.listing import LeftOut
from vggfast.io import read_lines

_TINY_SIDE = 64  # pixels of every image of Tiny-ImageNet
KINDS = ("tiny-imagenet:DIR", "imagenet:DIR")


@dataclass
class BoxSet(ImageSet):
    """Labelled images, each with one box or more.

    Attributes:
        boxes: (m, 4) float64 corners relative to the picture, of all images on end.
        starts: (n + 1,) int64: image i has the boxes starts[i] to starts[i + 1].
    """

    boxes: np.ndarray
    starts: np.ndarray

    def boxes_of(self, index: int) -> np.ndarray:
        """(k, 4): the boxes of an image."""
        return self.boxes[self.starts[index] : self.starts[index + 1]]

    @functools.cached_property
    def largest(self) -> np.ndarray:
        """(n, 4): of each image the box with the largest area, the first of equals; the one that training aims at."""
        every = (self.boxes_of(index) for index in range(len(self)))
        return np.array([boxes[(boxes[:, 2:] - boxes[:, :2]).prod(1).argmax()] for boxes in every])

    def mean_box(self) -> np.ndarray:
        """(4,): the mean of the corners of the largest boxes: what one says of an image without looking at it."""
        return self.largest.mean(0)


def with_boxes(images: ImageSet, boxes_of: Callable[[int], Iterable[np.ndarray]]) -> BoxSet:
    """The images that have boxes, with them.

    Args:
        images: a data set.
        boxes_of: gives the boxes of the image with this index.

    Raises:
        ValueError: no image has a box.
    """
    found = [np.reshape([*boxes_of(index)], (-1, 4)) for index in range(len(images))]
    kept = [index for index, boxes in enumerate(found) if len(boxes)]
    if not kept:
        raise ValueError(f"{images.name}: none of its {len(images)} images has a box")
    LeftOut(others={"without a box": len(images) - len(kept)}).warn(images.name)
    return BoxSet(
        images.name, images.classes, images.labels[kept], [images.sources[index] for index in kept], images.read,
        np.concatenate([found[index] for index in kept]), np.cumsum([0, *(len(found[index]) for index in kept)]),
    )  # fmt: skip


def open_boxes(spec: str, split: str) -> BoxSet:
    """The images of one split that have boxes.

    Args:
        spec: "tiny-imagenet:DIR", with its own train/<wnid>/<wnid>_boxes.txt and val/val_annotations.txt; or
            "imagenet:DIR", with Annotations/CLS-LOC/<split>/ below DIR or DIR/ILSVRC.
        split: "train" or "val".

    Raises:
        FileNotFoundError, ValueError: another kind of data set, annotations that are not there, or a line or file of
            them that is none; the text names it.
    """
    kind, _, where = spec.partition(":")
    readers = {"tiny-imagenet": _tiny_boxes, "imagenet": _imagenet_boxes}
    if kind not in readers:
        raise ValueError(f"data must be one with boxes, {' or '.join(KINDS)}, got {spec!r}")
    images = open_dataset(spec, split)
    return with_boxes(images, readers[kind](images, Path(where), split))


# ---- Tiny-ImageNet ------------------------------------------------------------------------------------------------


def _tiny_boxes(images: ImageSet, root: Path, split: str) -> Callable[[int], list[np.ndarray]]:
    """The files list images that are not there too."""
    if split == "val":
        files, first = [root / "val" / "val_annotations.txt"], 2
    else:
        wnids = [wnid for wnid in map(str.strip, read_lines(root / "wnids.txt")) if wnid]
        files, first = [root / "train" / wnid / f"{wnid}_boxes.txt" for wnid in wnids], 1
    found: dict[str, list[np.ndarray]] = {}
    for file in files:
        for name, box in _tiny_rows(file, first):
            found.setdefault(os.path.join(file.parent, "images", name), []).append(box)
    return lambda index: found.get(images.source(index), [])


def _tiny_rows(file: Path, first: int) -> Iterable[tuple[str, np.ndarray]]:
    """(name, box) of each line; the numbers, from column `first` on, are the first and last pixels inside."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file of boxes")
    for number, line in enumerate(read_lines(file), 1):
        row = line.split("\t")
        pixels = [int(text) if text.isdecimal() and len(text) < 10 else -1 for text in row[first:]]
        box = np.array(pixels)
        if len(box) != 4 or box.min() < 0 or box.max() >= _TINY_SIDE or (box[:2] > box[2:]).any():
            raise ValueError(
                f"{file}, line {number} must have left, top, right and bottom in its last columns, in pixels of 0 to "
                f"{_TINY_SIDE - 1}, got {line[:60]!r}"
            )
        yield row[0], (box + np.array([0, 0, 1, 1])) / _TINY_SIDE


# ---- ImageNet -----------------------------------------------------------------------------------------------------


def _imagenet_boxes(images: ImageSet, root: Path, split: str) -> Callable[[int], list[np.ndarray]]:
    folders = [below / "Annotations" / "CLS-LOC" / split for below in (root, root / "ILSVRC")]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            f"{folders[0]}: no such folder, nor {folders[1]}: ImageNet's boxes must be in one of them"
        )

    def boxes_of(index: int) -> list[np.ndarray]:
        image = Path(images.source(index))
        paths = (folder / image.parent.name / f"{image.stem}.xml", folder / f"{image.stem}.xml")
        path = next((path for path in paths if path.is_file()), None)
        return read_xml(path) if path else []

    return boxes_of


def read_xml(path: Path) -> list[np.ndarray]:
    """The boxes of an annotation in ImageNet's (PASCAL VOC's) form, (4,) corners relative to the size it names.

    What reaches over the picture's edge is cut off.

    Raises:
        ValueError: it is no such file, or a box in it is none; the text names it.
    """
    try:
        root = ET.parse(path).getroot()
        size = np.array([_number(root, f"size/{name}") for name in ("width", "height")] * 2)
        corners = [[_number(each, f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
                   for each in root.iter("object")]  # fmt: skip
    except (ET.ParseError, ValueError, LookupError) as error:  # an encoding that Python does not know
        raise ValueError(f"{path} is no annotation of boxes: {error}") from error
    for box in corners:
        if not 0 < min(size) <= max(size) < math.inf or not (box[0] < box[2] and box[1] < box[3]):
            raise ValueError(
                f"{path} must have boxes with xmin < xmax and ymin < ymax, got {box} in a picture of "
                f"{size[0]:g}x{size[1]:g}"
            )
        if not (box[0] < size[0] and box[1] < size[1] and box[2] > 0 and box[3] > 0):
            raise ValueError(f"{path} must have boxes in its picture of {size[0]:g}x{size[1]:g}, got {box}")
    return [np.clip(np.array(box) / size, 0, 1) for box in corners]


def _number(element: ET.Element, path: str) -> float:
    text = element.findtext(path)
    try:
        return float(text or "")
    except ValueError:
        raise ValueError(f"{path} must be a number, got {text!r}") from None
