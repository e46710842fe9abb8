"""ImageNet (ILSVRC 2012): train/<wnid>/*.JPEG; val/<wnid>/*.JPEG, or flat val/ILSVRC2012_val_*.JPEG with its labels
from one of

    val.txt                    "file number" or "file wnid" rows; numbers count the sorted wnids from 0
    LOC_val_solution.csv       "file,wnid box ..." rows
    ILSVRC2012_validation_ground_truth.txt and meta.mat, the devkit's

in DIR, val/, the devkit's folder or its data/. Names of the classes come from LOC_synset_mapping.txt or
synset_words.txt ("wnid words" rows) where one is there.
"""

from __future__ import annotations

import os
from pathlib import Path

from vggfast.data.sources.base import ImageSet, check_classes, from_files
from vggfast.data.sources.listing import LeftOut, class_folders, files_by_class, images_in, is_hidden, names_of
from vggfast.io import read_lines, shown

_BELOW = ("", "val", "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12/data", "data", "devkit/data")
_NAMES = ("LOC_synset_mapping.txt", "synset_words.txt")
_GROUND_TRUTH, _META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"


def open_imagenet(folder: str, split: str) -> ImageSet:
    root = Path(folder)
    images = root / "ILSVRC" / "Data" / "CLS-LOC"
    images = images if images.is_dir() else root
    words = _words(root)
    wnids = class_folders(images / "train") if (images / "train").is_dir() else sorted(words)
    if not wnids:
        raise FileNotFoundError(f"{images / 'train'}: no such folder, and none of {', '.join(_NAMES)} in {root}")
    if words and words.keys().isdisjoint(wnids):
        raise ValueError(
            f"{root}: {' or '.join(_NAMES)} there must have rows such as '{shown(wnids[0])} its name', and has none of "
            f"a class of {images / 'train'}"
        )
    classes = names_of([words.get(wnid, wnid) for wnid in wnids])
    if split == "val" and not _has_folders(images / "val"):
        return _flat(root, images / "val", wnids, classes)
    found, files, labels = files_by_class(images / split)
    check_classes(folder, found, wnids, split)
    return from_files(folder, classes, labels, files, images / split)


def _has_folders(folder: Path) -> bool:
    if not folder.is_dir():
        raise FileNotFoundError(f"{shown(folder)}: no such folder")
    with os.scandir(folder) as entries:
        return any(entry.is_dir() and not is_hidden(entry.name) for entry in entries)


def _find(root: Path, name: str) -> Path | None:
    return next((root / below / name for below in _BELOW if (root / below / name).is_file()), None)


def _words(root: Path) -> dict[str, str]:
    """{wnid: the class' first name}, {} where no file says."""
    path = next((path for path in (_find(root, name) for name in _NAMES) if path), None)
    rows = [line.split(maxsplit=1) for line in read_lines(path)] if path else []
    found: dict[str, str] = {}
    for row in filter(None, rows):
        if found.setdefault(row[0], row[-1]) != row[-1]:
            raise ValueError(f"{path} must name each class once, got {row[0]} as {found[row[0]]!r} and {row[-1]!r}")
    return {wnid: words.split(",")[0] for wnid, words in found.items()}


def _flat(root: Path, folder: Path, wnids: list[str], classes: list[str]) -> ImageSet:
    left_out = LeftOut()
    files = images_in(folder, left_out, known="val.txt")
    if not files:
        raise ValueError(f"{shown(folder)} must have images, val/<wnid>/*.JPEG or val/ILSVRC2012_val_*.JPEG, got none")
    label_of = _flat_labels(root, files, wnids)
    if missing := [name for name in files if name not in label_of]:
        raise ValueError(f"{shown(folder / missing[0])} has no label; images without one: {len(missing)}")
    if lost := sorted(label_of.keys() - set(files)):
        raise FileNotFoundError(f"{shown(folder / lost[0])}: not there, and {len(lost) - 1} more that have a label")
    left_out.warn(folder)
    return from_files(str(root), classes, [label_of[name] for name in files], files, folder)


def _flat_labels(root: Path, files: list[str], wnids: list[str]) -> dict[str, int]:
    """{file: label} of the flat validation images, from whichever file says."""
    if path := _find(root, "val.txt"):
        return _rows(path, [line.rsplit(maxsplit=1) for line in read_lines(path) if line.strip()], wnids)
    if path := _find(root, "LOC_val_solution.csv"):
        lines = [line.replace(",", " ").split() for line in read_lines(path)[1:] if line.strip()]
        return _rows(path, [[f"{row[0]}.JPEG", *dict.fromkeys(row[1::5])] for row in lines], wnids)
    truth, meta = _find(root, _GROUND_TRUTH), _find(root, _META)
    if truth and meta:
        return _devkit(truth, meta, files, wnids)
    raise FileNotFoundError(
        f"{root}: the images of val/ are in no class folders, and none of val.txt, LOC_val_solution.csv, or "
        f"{_GROUND_TRUTH} with {_META} says what they are"
    )


def _rows(path: Path, rows: list[list[str]], wnids: list[str]) -> dict[str, int]:
    number_of = {wnid: number for number, wnid in enumerate(wnids)}
    found: dict[str, int] = {}
    for row in rows:
        name = row[1] if len(row) == 2 else ""
        number, label = int(name) if name.isdecimal() and len(name) < 10 else -1, number_of.get(name, -1)
        if label < 0:
            label = number
        elif 0 <= number < len(wnids) and number != label:
            raise ValueError(
                f"{path} must say which class {name} means: a class of this name is there, which is number {label}"
            )
        if not 0 <= label < len(wnids):
            raise ValueError(
                f"{path} must name a file and its class, a wnid or a number below {len(wnids)}, in each row, "
                f"got {' '.join(row)[:80]!r}"
            )
        if found.setdefault(os.path.basename(row[0]), label) != label:
            raise ValueError(f"{path} must give each file one class, got two for {row[0]}")
    return found


def _devkit(truth: Path, meta: Path, files: list[str], wnids: list[str]) -> dict[str, int]:
    from scipy.io import loadmat

    try:
        synsets = loadmat(str(meta), squeeze_me=True)["synsets"]
        wnid_of = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    except Exception as error:  # scipy's reader of damaged files raises whatever it trips over
        raise ValueError(f"{meta} is not the devkit's: {' '.join(str(error).split())}") from error
    rows = [row for row in map(str.strip, read_lines(truth)) if row]
    if len(rows) != len(files):
        raise ValueError(f"{truth} must have a label for each of the {len(files)} images of val/, got {len(rows)}")
    known = set(wnids)
    named = []
    for file, row in zip(files, rows, strict=True):
        wnid = wnid_of.get(int(row), "") if row.isdecimal() and len(row) < 10 else ""
        if wnid not in known:
            raise ValueError(f"{truth} has {row!r} for {file}, which is no class of the training images by {meta}")
        named.append([file, wnid])
    return _rows(truth, named, wnids)
