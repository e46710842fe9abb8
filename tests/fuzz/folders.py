"""Folders of classes: trees of odd names, links, special files. Each picture must be read with its own label, or be
named in an error, or be counted by the warning.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from tests.fuzz.harness import Different, attempt
from vggfast.data import open_dataset

_CLASSES = (b"ant", b"bee", b"0", b"1", b"10", b"2", b"01", b"Ant", b"caf\xe9", b"caf\xe8", b"a\nb", b"<b>", b"100%",
            b"a b", b"x" * 200, "日本".encode(), b"train", b"val", b"-1", b"$x$", b"'", b'"', b"\x1b[31m")  # fmt: skip
_PICTURES = (
    b"{}.png",
    b"{}.JPG",
    b"a.b.{}.jpeg",
    b"{}.jfif",
    b"\xff{}.png",
    b"deep/er/{}.webp",
    b"{} .png",
    b"n\n{}.bmp",
)
_OTHERS = (b"{}.txt", b"{}", b"{}.PSD", b"deep/{}.json", b"Thumbs.db{}")
_HIDDEN = (b"._{}.png", b".DS_Store{}", b".cache{}/a.png", b".{}.jpg")


def _name(random: Random, names: tuple[bytes, ...], number: int) -> bytes:
    return random.choice(names).replace(b"{}", b"%d" % number)


def _write(path: bytes, value: int | None) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if value is None:
        open(path, "wb").close()
    else:
        Image.new("L", (8, 8), value).save(path, "PNG")


def case(random: Random, folder: Path) -> bool:
    root = os.fsencode(folder / "set")
    classes = random.sample(_CLASSES, random.randint(1, 5))
    expected: dict[bytes, int] = {}
    counted, number = 0, 0
    for value, name in enumerate(classes):
        for _ in range(random.randint(1, 4)):
            number += 1
            path = os.path.join(root, name, _name(random, _PICTURES, number))
            _write(path, 20 * value)
            expected[path] = value
        for names in (_OTHERS, _HIDDEN):
            for _ in range(random.choice((0, 0, 1, 2))):
                number += 1
                _write(os.path.join(root, name, _name(random, names, number)), None)
                counted += 1
    if random.random() < 0.3:
        _write(os.path.join(root, b"readme.png"), None)
        counted += 1
    odd = random.random() < 0.3 and _odd(random, root, classes)
    split = b"train" in classes or classes == [b"val"]  # then it is a layout of another kind
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        images = attempt(open_dataset, f"imagefolder:{os.fsdecode(root)}", "train", True, names=["set"])
    if images is None:
        if not odd and not split:
            raise Different("a whole folder was refused")
        return False
    if any("\ud800" <= letter <= "\udfff" for name in images.classes for letter in name):
        raise Different(f"class names that are no UTF-8: {images.classes!a}")
    by_value: dict[int, set[int]] = {}
    for i in range(len(images)):
        pixels = attempt(images.pixels, i, names=["set"])
        path = os.fsencode(images.source(i))
        if not odd and (pixels is None or expected.pop(path, None) != round(float(np.mean(pixels)) / 20)):
            raise Different(f"{path!r} was not read as it was written")
        if pixels is not None:
            by_value.setdefault(round(float(np.mean(pixels)) / 20), set()).add(int(images.labels[i]))
    if not odd and any(len(labels) > 1 for labels in by_value.values()):
        raise Different(f"a class has several labels: {by_value}")
    total = sum(
        map(int, re.findall(r"(\d+) (?:files? of other|hidden|beside)", " ".join(str(s.message) for s in said)))
    )
    if not odd and not split and (expected or total != counted):
        raise Different(f"{len(expected)} pictures are missing; {counted} others were written, {total} counted")
    return True


def _odd(random: Random, root: bytes, classes: list[bytes]) -> bool:
    """Adds something that leads to an error, or doubles images."""
    place = os.path.join(root, random.choice(classes))
    match random.randrange(7):
        case 0:
            os.symlink(random.choice((b".", b"..", place, b"loop")), os.path.join(place, b"loop"))
        case 1:
            os.symlink(b"nowhere", os.path.join(place, b"gone.png"))
        case 2:
            os.mkfifo(os.path.join(place, b"pipe.png"))
        case 3:
            os.mkdir(os.path.join(root, b"empty"))
        case 4:
            os.symlink(place, os.path.join(root, b"again"))
        case 5:
            os.symlink(b"/dev/zero", os.path.join(place, b"zero.png"))
        case 6:
            _write(os.path.join(place, b"empty.png"), None)
    return True
