"""Data sets of labelled images: digits (ships inside scikit-learn), folders of classes, Tiny-ImageNet's own layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SPLITS = ("train", "val")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
_SPLIT_SEED = 1409_1556  # the paper's number; splits that a data set does not bring are drawn with it


@dataclass
class ImageSet:
    """Labelled images of one split.

    Attributes:
        name: for messages.
        classes: class names; a label is an index into them.
        labels: (n,) int64.
        sources: what `read` makes an image of: a path, or an index.
    """

    name: str
    classes: list[str]
    labels: np.ndarray
    sources: list[Any]
    read: Callable[[Any], Image.Image]

    def __len__(self) -> int:
        return len(self.sources)

    def image(self, index: int) -> Image.Image:
        """The index-th image, RGB.

        Raises:
            ValueError: it does not decode; the text names the file.
        """
        return self.read(self.sources[index])

    def pixels(self, index: int) -> np.ndarray:
        """The index-th image, uint8 (H, W, 3); errors as of :meth:`image`."""
        return np.asarray(self.image(index))


def open_image(path: str | Path) -> Image.Image:
    """An image file as RGB, turned as its EXIF says.

    Raises:
        FileNotFoundError, ValueError: no such file, or it does not decode; the text names it.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not an image that decodes ({error})") from error


def _held_out(labels: np.ndarray, fraction: float) -> np.ndarray:
    """A mask of the images to hold out: `fraction` of each class, the same ones every time."""
    generator = np.random.default_rng(_SPLIT_SEED)
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise ValueError(f"class number {label} has one image: two are wanted, one of them to hold out")
        mask[members[: max(1, round(fraction * len(members)))]] = True
    return mask


def _digits(split: str) -> ImageSet:
    """1,797 handwritten digits (8x8, scikit-learn), enlarged to 32x32; a fifth of each class is held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    chosen = np.flatnonzero(_held_out(labels, 0.2) == (split == "val"))
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)

    def read(index: int) -> Image.Image:
        return Image.fromarray(pixels[index]).resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")

    return ImageSet("digits", [str(i) for i in range(10)], labels[chosen], chosen.tolist(), read)


def _files_by_class(root: Path, subfolder: str = "") -> tuple[list[str], list[Path], np.ndarray]:
    """(classes, files, labels) of a folder with a folder per class."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    classes = sorted(path.name for path in root.iterdir() if path.is_dir())
    if not classes:
        raise ValueError(f"{root} has no class folders: DIR/<class>/<image> is wanted")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = root / name / subfolder
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
        if not found:
            raise ValueError(f"{folder} has no images: at least one of {', '.join(sorted(_SUFFIXES))} is wanted")
        files += found
        labels += [label] * len(found)
    return classes, files, np.array(labels, dtype=np.int64)


def _image_folder(root: Path, split: str) -> ImageSet:
    """DIR/train/<class>/ and DIR/val/<class>/; or DIR/<class>/, of which a tenth of each class is then held out."""
    if (root / "train").is_dir():
        classes, files, labels = _files_by_class(root / split)
        trained = _files_by_class(root / "train")[0] if split != "train" else classes
        if classes != trained:
            odd = sorted(set(classes) ^ set(trained))
            raise ValueError(f"{root}: train and {split} have different classes ({', '.join(odd[:5])})")
        return ImageSet(str(root), classes, labels, list(files), open_image)
    classes, files, labels = _files_by_class(root)
    chosen = np.flatnonzero(_held_out(labels, 0.1) == (split == "val"))
    return ImageSet(str(root), classes, labels[chosen], [files[i] for i in chosen], open_image)


def _tiny_imagenet(root: Path, split: str) -> ImageSet:
    """Tiny-ImageNet as it is distributed: wnids.txt, words.txt, train/<wnid>/images/, val/val_annotations.txt."""
    for needed in ("wnids.txt", "words.txt", "train", "val/val_annotations.txt"):
        if not (root / needed).exists():
            raise FileNotFoundError(f"{root / needed}: not there; Tiny-ImageNet's own layout is wanted")
    wnids = sorted((root / "wnids.txt").read_text().split())
    words = dict(line.split("\t", 1) for line in (root / "words.txt").read_text().splitlines())
    classes = [words.get(wnid, wnid).split(",")[0] for wnid in wnids]
    if split == "train":
        found, files, labels = _files_by_class(root / "train", "images")
        if found != wnids:
            raise ValueError(f"{root / 'train'} and {root / 'wnids.txt'} do not name the same classes")
        return ImageSet(str(root), classes, labels, list(files), open_image)
    rows = [line.split("\t")[:2] for line in (root / "val" / "val_annotations.txt").read_text().splitlines()]
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    if strangers := {wnid for _, wnid in rows} - label_of.keys():
        raise ValueError(f"{root / 'val' / 'val_annotations.txt'} has {min(strangers)}, which wnids.txt has not")
    paths = [root / "val" / "images" / name for name, _ in rows]
    if missing := [path for path in paths if not path.exists()]:
        raise FileNotFoundError(f"{missing[0]}: not there, and {len(missing) - 1} more of val_annotations.txt")
    return ImageSet(str(root), classes, np.array([label_of[wnid] for _, wnid in rows]), list(paths), open_image)


def open_dataset(spec: str, split: str) -> ImageSet:
    """The images of one split.

    Args:
        spec: "digits", "imagefolder:DIR" or "tiny-imagenet:DIR".
        split: "train" or "val".

    Raises:
        FileNotFoundError, ValueError: an unknown spec, a missing folder, an empty class; the text names it.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}: one of {', '.join(map(repr, SPLITS))} is wanted")
    kind, _, folder = spec.partition(":")
    if kind == "digits" and not folder:
        return _digits(split)
    if kind == "imagefolder" and folder:
        return _image_folder(Path(folder), split)
    if kind == "tiny-imagenet" and folder:
        return _tiny_imagenet(Path(folder), split)
    raise ValueError(f"data is {spec!r}: digits, imagefolder:DIR or tiny-imagenet:DIR is wanted")
