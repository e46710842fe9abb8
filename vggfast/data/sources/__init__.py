"""Data sets of labelled images, by a text: ``kind`` or ``kind:where``. One module per kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vggfast.data.sources.base import SPLITS, ImageSet, check_classes
from vggfast.data.sources.cache import open_cache
from vggfast.data.sources.digits import open_digits
from vggfast.data.sources.folders import open_image_folder
from vggfast.data.sources.huggingface import open_hugging_face
from vggfast.data.sources.imagenet import open_imagenet
from vggfast.data.sources.shards import open_shards
from vggfast.data.sources.tiny_imagenet import open_tiny_imagenet
from vggfast.io import shown


class _Kind(NamedTuple):
    where: str  # what stands behind the colon
    open: Callable[..., ImageSet]  # of (where, split), or (where, split, whole)
    may_hold_out: bool = False  # without splits of its own, it holds out a part of each class, unless `whole`


KINDS = {
    "digits": _Kind("", open_digits, True),
    "imagefolder": _Kind("DIR", open_image_folder, True),
    "tiny-imagenet": _Kind("DIR", open_tiny_imagenet),
    "imagenet": _Kind("DIR", open_imagenet),
    "shards": _Kind("PATTERN", open_shards, True),
    "hf": _Kind("NAME_OR_DIR", open_hugging_face, True),
    "cache": _Kind("DIR", open_cache),
}
SPECS = ", ".join(f"{name}:{kind.where}" if kind.where else name for name, kind in KINDS.items())


def open_dataset(spec: str, split: str, whole: bool = False) -> ImageSet:
    """The images of one split.

    Args:
        spec: one of :data:`SPECS`.
        split: "train" or "val".
        whole: nothing is held out, for data of one split alone.

    Raises:
        FileNotFoundError, ValueError: an unknown spec, a missing folder, an empty class, a class or annotation that
            the training images do not know; the text names it.
        ImportError: the package that the kind needs is not installed.
        TypeError: spec is no text.
    """
    if not isinstance(spec, str):
        raise TypeError(f"spec must be a text, one of {SPECS}, got {spec!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(map(repr, SPLITS))}, got {split!r}")
    name, _, where = spec.partition(":")
    kind = KINDS.get(name)
    if kind is None or bool(kind.where) != bool(where):
        raise ValueError(f"data must be one of {SPECS}, got {shown(spec)!r}")
    found = kind.open(where, split, *((whole,) if kind.may_hold_out else ()))
    found.classes = [shown(name) for name in found.classes]
    return found


def open_splits(data: str, val_data: str | None = None) -> tuple[ImageSet, ImageSet]:
    """(training images, validation images): of one data set; or all training images of one, validated on another's.

    Args:
        data: spec of the training images.
        val_data: spec of the validation images, if another one; their classes must be those of `data`.

    Raises:
        As :func:`open_dataset`; ValueError: the classes differ.
    """
    apart = bool(val_data)
    train, val = open_dataset(data, "train", apart), open_dataset(val_data or data, "val", apart)
    val = val.ordered(train.classes)
    check_classes(val.name, val.classes, train.classes, "val")
    return train, val
