"""What every kind of data set is made of."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from vggfast.data.decode import open_image
from vggfast.io import shown

SPLITS = ("train", "val")
_SPLIT_SEED = 1409_1556  # the paper's number; splits that a data set does not bring are drawn with it


class Strings(Sequence):
    """Many strings in one block of memory, each with `prefix` before it: a million paths cost a worker nothing.

    Attributes:
        text: (bytes,) uint8, all of them on end, UTF-8.
        ends: (n,) int64, where each ends.
    """

    def __init__(self, values: Iterable[str], prefix: str = "") -> None:
        encoded = [value.encode("utf-8", "surrogateescape") for value in values]
        self.prefix = prefix
        self.text = np.frombuffer(b"".join(encoded), np.uint8)
        self.ends = np.cumsum([len(value) for value in encoded], dtype=np.int64)

    @classmethod
    def of(cls, text: np.ndarray, ends: np.ndarray) -> Strings:
        """From the two arrays."""
        made = cls(())
        made.text, made.ends = text, ends
        return made

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index must be less than {len(self)}, got {index}")
        index = int(index) % len(self)
        begin = int(self.ends[index - 1]) if index else 0
        return self.prefix + self.text[begin : self.ends[index]].tobytes().decode("utf-8", "surrogateescape")


class Images:
    """Images that a network is to name, whether or not their labels are known.

    Attributes:
        name: for messages.
        classes: class names.
        sources: what `read` makes an image of: a path, or an index.
        read: gives an RGB image, or uint8 (H, W, 3); a ValueError that names the image where it does not decode.
    """

    name: str
    classes: list[str]
    sources: Sequence[Any] | np.ndarray
    read: Callable[[Any], Image.Image | np.ndarray]

    def __len__(self) -> int:
        return len(self.sources)

    def pixels(self, index: int) -> np.ndarray:
        """The index-th image, uint8 (H, W, 3), which may be part of a mapped file.

        Raises:
            FileNotFoundError, ValueError: it does not decode; the text names the file.
        """
        return np.asarray(self.read(self.sources[index]))

    def image(self, index: int) -> Image.Image:
        """The index-th image, RGB; errors as of :meth:`pixels`."""
        found = self.read(self.sources[index])
        return Image.fromarray(found) if isinstance(found, np.ndarray) else found

    def source(self, index: int) -> str:
        """What the index-th image is called: its path where it has one."""
        found = self.sources[index]
        return found if isinstance(found, str) else f"{self.name}, image {found}"


class ImageFiles(Images):
    """Image files without labels.

    Args:
        paths: the files.
        classes: names of those among which a network is to choose.
    """

    def __init__(self, paths: Sequence[str], classes: list[str]) -> None:
        self.name, self.classes, self.sources, self.read = "images", classes, paths, open_image


_Set = TypeVar("_Set", bound="ImageSet")


@dataclass
class ImageSet(Images):
    """Labelled images of one split. They travel to other processes cheaply, however many they are.

    Attributes:
        name: what the images are called in messages, such as "digits".
        classes: their names, in the order of the numbers in `labels`.
        labels: (n,) int64, indices into `classes`.

    The other fields are those of :class:`Images`.
    """

    name: str
    classes: list[str]
    labels: np.ndarray
    sources: Sequence[Any] | np.ndarray
    read: Callable[[Any], Image.Image | np.ndarray]

    def ordered(self: _Set, classes: list[str]) -> _Set:
        """This set with its classes in another order, where `classes` are the same whole numbers; else as it is.

        They were in the order of their texts once, 0, 1, 10, 2, and are so in networks that were trained then.
        """
        if not all(map(str.isdecimal, classes)) or sorted(classes) != sorted(self.classes):
            return self
        places = {name: i for i, name in enumerate(classes)}
        new = np.array([places[name] for name in self.classes], dtype=np.int64)
        return replace(self, classes=classes, labels=new[self.labels])

    def digest(self) -> str:
        """A SHA-256 of what the images are called, their order and their labels."""
        found = hashlib.sha256()
        for i, label in enumerate(self.labels.tolist()):
            found.update(f"{self.source(i)}\0{label}\n".encode("utf-8", "surrogateescape"))
        return found.hexdigest()


def from_files(name: str, classes: list[str], labels: Any, files: Iterable[str], folder: Path) -> ImageSet:
    """A data set of image files, named from `folder` on."""
    sources = Strings(files, prefix=f"{folder}{os.sep}")
    return ImageSet(name, classes, np.asarray(labels, dtype=np.int64), sources, open_image)


def own_part(
    labels: np.ndarray, fraction: float, name: str, split: str, whole: bool, drawn: Iterable[int] | None = None
) -> np.ndarray:
    """Indices of a split's images in a data set that brings no splits.

    For validation `fraction` of each class is held out, the same images every time; with `whole`, all are of the split.
    Which images these are depends on the order in which the classes are drawn: that of their labels, or `drawn`.
    """
    if whole:
        return np.arange(len(labels))
    generator = np.random.default_rng(_SPLIT_SEED)
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels) if drawn is None else drawn:
        members = generator.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise ValueError(
                f"class number {label} of {shown(name)} must have two images, one of them to hold out, got one"
            )
        mask[members[: max(1, round(fraction * len(members)))]] = True
    return np.flatnonzero(mask == (split == "val"))


def check_classes(name: str, of_split: list[str], of_train: list[str], split: str) -> None:
    """Raises ValueError where the classes of a split are not those of the training images, naming some."""
    if of_split != of_train:
        odd = sorted(set(of_split) ^ set(of_train)) or ["their order"]
        more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
        raise ValueError(shown(f"{name}: train and {split} have different classes ({', '.join(odd[:5])}{more})"))
