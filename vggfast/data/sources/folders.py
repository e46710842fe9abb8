"""Folders of classes: DIR/train/<class>/ and DIR/val/<class>/; or DIR/<class>/, a tenth of each class held out.

Classes are in the order of their names; of their numbers, where all names are whole numbers.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from vggfast.data.sources.base import ImageSet, check_classes, from_files, own_part
from vggfast.data.sources.listing import LeftOut, class_folders, files_by_class, names_of

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}  # which are no classes


def open_image_folder(folder: str, split: str, whole: bool) -> ImageSet:
    root = Path(folder)
    if (root / "train").is_dir():
        left_out = LeftOut(others={"beside train and val": len({*os.listdir(root)} - {"train", "val"})})
        classes, files, labels = files_by_class(root / split, left_out=left_out)
        if split != "train":
            check_classes(folder, classes, class_folders(root / "train"), split)
        return from_files(folder, names_of(classes), labels, files, root / split)
    classes, files, labels = files_by_class(root)
    if all(name.lower() in _SPLITS for name in classes):
        raise ValueError(f"{folder} must have class folders, or the folders train and val, got {', '.join(classes)}")
    as_texts = sorted(range(len(classes)), key=lambda label: classes[label])  # as when numbers were in that order too
    chosen = own_part(np.array(labels), 0.1, folder, split, whole, as_texts)
    return from_files(folder, names_of(classes), np.array(labels)[chosen], [files[i] for i in chosen], root)
