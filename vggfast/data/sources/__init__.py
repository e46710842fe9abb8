"""Data sets of labelled images, by a text: ``kind`` or ``kind:where``. One module per kind.

A module is imported when its kind is opened: what only names the kinds needs no package that reads images.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vggfast.io import shown

if TYPE_CHECKING:
    from vggfast.data.sources.base import ImageSet


class _Kind(NamedTuple):
    where: str  # what stands behind the colon
    opener: str  # the function, as module.name: of (where, split), or (where, split, whole)
    may_hold_out: bool = False  # without splits of its own, it holds out a part of each class, unless `whole`


KINDS = {
    "digits": _Kind("", "digits.open_digits", True),
    "imagefolder": _Kind("DIR", "folders.open_image_folder", True),
    "tiny-imagenet": _Kind("DIR", "tiny_imagenet.open_tiny_imagenet"),
    "imagenet": _Kind("DIR", "imagenet.open_imagenet"),
    "shards": _Kind("PATTERN", "shards.open_shards", True),
    "hf": _Kind("NAME_OR_DIR", "huggingface.open_hugging_face", True),
    "cache": _Kind("DIR", "cache.open_cache"),
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
    from vggfast.data.sources.base import SPLITS

    if not isinstance(spec, str):
        raise TypeError(f"spec must be a text, one of {SPECS}, got {spec!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(map(repr, SPLITS))}, got {split!r}")
    name, _, where = spec.partition(":")
    kind = KINDS.get(name)
    if kind is None or bool(kind.where) != bool(where):
        folder = f"; a folder with a folder for each class is imagefolder:{shown(spec)}" if Path(spec).is_dir() else ""
        raise ValueError(f"data must be one of {SPECS}, got {shown(spec)!r}{folder}")
    module, _, opener = kind.opener.partition(".")
    opened = getattr(importlib.import_module(f"{__name__}.{module}"), opener)
    found = opened(where, split, *((whole,) if kind.may_hold_out else ()))
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
    from vggfast.data.sources.base import check_classes

    apart = bool(val_data)
    train, val = open_dataset(data, "train", apart), open_dataset(val_data or data, "val", apart)
    val = val.ordered(train.classes)
    check_classes(val.name, val.classes, train.classes, "val")
    return train, val
