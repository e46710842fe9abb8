"""Folders of classes: DIR/train/<class>/ and DIR/val/<class>/; or DIR/<class>/, a tenth of each class held out.

Classes are in the order of their names; of their numbers, where all names are whole numbers.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from vggfast.data.sources.base import ImageSet, check_classes, from_files, own_part
from vggfast.data.sources.listing import LeftOut, class_folders, files_by_class, names_of


def open_image_folder(folder: str, split: str, whole: bool) -> ImageSet:
    root = Path(folder)
    if (root / "train").is_dir():
        left_out = LeftOut(others={"beside train and val": len({*os.listdir(root)} - {"train", "val"})})
        classes, files, labels = files_by_class(root / split, left_out=left_out)
        if split != "train":
            check_classes(folder, classes, class_folders(root / "train"), split)
        return from_files(folder, names_of(classes), labels, files, root / split)
    classes, files, labels = files_by_class(root)
    chosen = own_part(np.array(labels), 0.1, folder, split, whole)
    return from_files(folder, names_of(classes), np.array(labels)[chosen], [files[i] for i in chosen], root)
