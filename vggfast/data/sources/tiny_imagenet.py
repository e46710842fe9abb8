"""Tiny-ImageNet as it is distributed: wnids.txt, words.txt, train/<wnid>/images/, val/val_annotations.txt."""

from __future__ import annotations

from pathlib import Path

from vggfast.data.sources.base import ImageSet, files_by_class, from_files


def open_tiny_imagenet(folder: str, split: str) -> ImageSet:
    root = Path(folder)
    for needed in ("wnids.txt", "words.txt", "train", "val/val_annotations.txt"):
        if not (root / needed).exists():
            raise FileNotFoundError(f"{root / needed}: not there; the folder must have Tiny-ImageNet's own layout")
    wnids = sorted((root / "wnids.txt").read_text().split())
    words = dict(line.split("\t", 1) for line in (root / "words.txt").read_text().splitlines() if "\t" in line)
    classes = [words.get(wnid, wnid).split(",")[0] for wnid in wnids]
    if split == "train":
        found, files, labels = files_by_class(root / "train", "images")
        if found != wnids:
            raise ValueError(f"{root / 'train'} and {root / 'wnids.txt'} do not name the same classes")
        return from_files(folder, classes, labels, files, root / "train")
    return _val(root, wnids, classes)


def _val(root: Path, wnids: list[str], classes: list[str]) -> ImageSet:
    annotations = root / "val" / "val_annotations.txt"
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    names, labels = [], []
    for number, line in enumerate(annotations.read_text().splitlines(), 1):
        row = line.split("\t")
        if len(row) < 2 or row[1] not in label_of:
            raise ValueError(f"{annotations}, line {number} must be a file and a class of wnids.txt, got {line[:60]!r}")
        names.append(row[0])
        labels.append(label_of[row[1]])
    there = {path.name for path in (root / "val" / "images").glob("*")}
    if missing := [name for name in names if name not in there]:
        raise FileNotFoundError(
            f"{root / 'val' / 'images' / missing[0]}: not there, and {len(missing) - 1} more of val_annotations.txt"
        )
    return from_files(str(root), classes, labels, names, root / "val" / "images")
