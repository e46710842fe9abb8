"""Tiny-ImageNet as it is distributed: wnids.txt, words.txt, train/<wnid>/images/, val/val_annotations.txt."""

from __future__ import annotations

import itertools
from pathlib import Path

from vggfast.data.sources.base import ImageSet, check_classes, from_files
from vggfast.data.sources.listing import LeftOut, files_by_class, images_in
from vggfast.io import read_lines, shown


def open_tiny_imagenet(folder: str, split: str) -> ImageSet:
    root = Path(folder)
    for needed in ("wnids.txt", "words.txt", "train", "val/val_annotations.txt"):
        if not (root / needed).exists():
            raise FileNotFoundError(f"{root / needed}: not there; the folder must have Tiny-ImageNet's own layout")
    wnids = sorted(wnid for wnid in map(str.strip, read_lines(root / "wnids.txt")) if wnid)
    if twice := next((a for a, b in itertools.pairwise(wnids) if a == b), None):
        raise ValueError(f"{root / 'wnids.txt'} must name each class once, got {twice} twice")
    words = _words(root / "words.txt")
    classes = [words.get(wnid, wnid).split(",")[0] for wnid in wnids]
    if split == "train":
        beside = [path for path in (root / "train").glob("*/*")
                  if path.name not in ("images", f"{path.parent.name}_boxes.txt")]  # fmt: skip
        left_out = LeftOut(others={"beside the folders images": len(beside)})
        found, files, labels = files_by_class(root / "train", "images", left_out)
        check_classes(folder, wnids, found, "wnids.txt")
        return from_files(folder, classes, labels, files, root / "train")
    return _val(root, wnids, classes)


def _words(path: Path) -> dict[str, str]:
    """{wnid: its words}."""
    found: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        wnid, _, words = line.partition("\t")
        if line.strip() and not words.strip():
            raise ValueError(f"{path}, line {number} must be a wnid, a tab and words, got {line[:60]!r}")
        if found.setdefault(wnid, words) != words:
            raise ValueError(f"{path} must name each class once, got {wnid} as {found[wnid]!r} and {words!r}")
    return found


def _val(root: Path, wnids: list[str], classes: list[str]) -> ImageSet:
    annotations = root / "val" / "val_annotations.txt"
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    labels: dict[str, int] = {}
    for number, line in enumerate(read_lines(annotations), 1):
        if not line.strip():
            continue
        row = line.split("\t")
        if len(row) < 2 or row[1] not in label_of:
            raise ValueError(f"{annotations}, line {number} must be a file and a class of wnids.txt, got {line[:60]!r}")
        if row[0] in labels:
            raise ValueError(f"{annotations} must name each file once, and line {number} names {row[0]} again")
        labels[row[0]] = label_of[row[1]]
    if not labels:
        raise ValueError(f"{annotations} must have a file and its class on each line, and has no lines")
    folder, left_out = root / "val" / "images", LeftOut()
    there = set(images_in(folder, left_out))
    if missing := [name for name in labels if name not in there]:
        raise FileNotFoundError(
            f"{shown(folder / missing[0])}: not there, and {len(missing) - 1} more of val_annotations.txt"
        )
    left_out.other("images that val_annotations.txt does not name", len(there) - len(labels))
    left_out.warn(folder)
    return from_files(str(root), classes, [*labels.values()], [*labels], folder)
