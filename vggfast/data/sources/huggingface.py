"""Hugging Face `datasets`, where installed: a folder that its save_to_disk wrote, or a name that load_dataset knows.

The columns are found by their types: one Image, one ClassLabel. The split for validation is called validation, valid or
val; where there is none, a tenth of each class is held out.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vggfast.data.decode import decode, open_image
from vggfast.data.sources.base import ImageSet, own_part

_VALIDATION = ("validation", "valid", "val")


class _Rows:
    """Images of a data set's column, by their number."""

    def __init__(self, name: str, rows: Any, column: str) -> None:
        self.name, self.rows, self.column = name, rows, column

    def __call__(self, index: int) -> Image.Image:
        found = self.rows[int(index)][self.column]
        if found and found["bytes"] is not None:
            return decode(io.BytesIO(found["bytes"]), f"{self.name}, row {index}")
        if not found or not found["path"]:
            raise ValueError(f"{self.name}, row {index}: it has no image")
        return open_image(found["path"])


def open_hugging_face(name: str, split: str, whole: bool) -> ImageSet:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"data 'hf:{name}' needs Hugging Face's package: pip install datasets") from error
    found = (datasets.load_from_disk if Path(name).is_dir() else datasets.load_dataset)(name)
    splits = dict(found) if isinstance(found, dict) else {"train": found}
    if "train" not in splits:
        raise ValueError(f"{name} must have the split train, got {', '.join(splits)}")
    validation = next((splits[each] for each in _VALIDATION if each in splits), None)
    rows = splits["train"] if split == "train" or validation is None else validation
    image, label = (_column(name, rows.features, kind) for kind in (datasets.Image, datasets.ClassLabel))
    classes = list(splits["train"].features[label].names)
    labels = np.asarray(rows[label], dtype=np.int64)
    if len(odd := np.flatnonzero((labels < 0) | (labels >= len(classes)))):
        raise ValueError(f"{name}, row {odd[0]} must have a class of 0 to {len(classes) - 1}, got {labels[odd[0]]}")
    chosen = own_part(labels, 0.1, name, split, whole or validation is not None)
    rows = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return ImageSet(name, classes, labels[chosen], chosen, _Rows(name, rows, image))


def _column(name: str, features: Any, kind: type) -> str:
    """The one column of a type."""
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        raise ValueError(
            f"{name} must have one column of type {kind.__name__}, got {len(found)} among the columns "
            f"{', '.join(features)}"
        )
    return found[0]
