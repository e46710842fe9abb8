"""Hugging Face `datasets`, where installed: a folder that its save_to_disk wrote, or a name or folder that load_dataset
knows.

The columns are found by their types: one Image, one ClassLabel. Of several, NAME#COLUMN chooses, such as
cifar100#fine_label, or NAME#COLUMN,COLUMN. The split for validation is called validation, valid or
val; where there is none, a tenth of each class is held out. A warning counts the rows of other splits.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vggfast.data.decode import decode, open_image
from vggfast.data.sources.base import ImageSet, check_classes, own_part
from vggfast.data.sources.listing import LeftOut
from vggfast.io import on_one_line

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
    spec, chosen_columns = name, []
    if "#" in name and not Path(name).is_dir():
        name, _, columns = name.rpartition("#")
        chosen_columns = columns.split(",")
    saved = any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        found = (datasets.load_from_disk if saved else datasets.load_dataset)(name)
        splits = dict(found) if isinstance(found, dict) else {"train": found}
        for each in splits.values():
            each.data.validate(full=True)  # of a damaged file: reading it would end the process
    except FileNotFoundError:
        raise
    except Exception as error:  # of a damaged or empty set, whatever the package trips over
        raise ValueError(on_one_line(f"hf:{name} is not a data set that can be read ({error})")) from error
    if "train" not in splits:
        raise ValueError(f"{name} must have the split train, got {', '.join(splits)}")
    train, validation = splits.pop("train"), next((splits.pop(each) for each in _VALIDATION if each in splits), None)
    rows = (train if split == "train" or validation is None else validation).with_format(None)
    kinds = (datasets.Image, datasets.ClassLabel)
    image, label = (_column(name, rows.features, kind, chosen_columns) for kind in kinds)
    if strangers := set(chosen_columns) - {image, label}:
        raise ValueError(
            f"{name} must have the columns {', '.join(chosen_columns)}, one of type Image or ClassLabel each, got "
            f"{', '.join(rows.features)}; {', '.join(sorted(strangers))} is none of these"
        )
    classes = list(rows.features[label].names)
    check_classes(name, classes, getattr(train.features.get(label), "names", []), split)
    labels = np.array([-1 if value is None else value for value in rows[label]], dtype=np.int64)
    if not len(labels):
        raise ValueError(f"{name} must have rows for {split}, got none")
    if len(odd := np.flatnonzero((labels < 0) | (labels >= len(classes)))):
        got = rows[label][int(odd[0])]
        raise ValueError(f"{name}, row {odd[0]} must have a class of 0 to {len(classes) - 1}, got {got}")
    left_out = LeftOut()
    for each, others in splits.items():
        left_out.other(f"rows of its split {each}", len(others))
    left_out.warn(name)
    chosen = own_part(labels, 0.1, name, split, whole or validation is not None)
    rows = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return ImageSet(spec, classes, labels[chosen], chosen, _Rows(name, rows, image))


def _column(name: str, features: Any, kind: type, chosen: list[str]) -> str:
    """The one column of a type, or that of `chosen`."""
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    if len(found) > 1:
        found = [column for column in found if column in chosen] or found
    if len(found) != 1:
        hint = f"; hf:{name}#COLUMN chooses one" if found else ""
        raise ValueError(
            f"{name} must have one column of type {kind.__name__}, got {len(found)} among the columns "
            f"{', '.join(features)}{hint}"
        )
    return found[0]
