"""Folders of classes: DIR/train/<class>/ and DIR/val/<class>/; or DIR/<class>/, a tenth of each class held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vggfast.data.sources.base import ImageSet, check_classes, class_folders, files_by_class, from_files, own_part


def open_image_folder(folder: str, split: str, whole: bool) -> ImageSet:
    root = Path(folder)
    if (root / "train").is_dir():
        classes, files, labels = files_by_class(root / split)
        if split != "train":
            check_classes(folder, classes, class_folders(root / "train"), split)
        return from_files(folder, classes, labels, files, root / split)
    classes, files, labels = files_by_class(root)
    chosen = own_part(np.array(labels), 0.1, folder, split, whole)
    return from_files(folder, classes, np.array(labels)[chosen], [files[i] for i in chosen], root)
