"""WebDataset-style shards: tar files in which photo.jpg and photo.cls (a number), or photo.json {"label": number}, are
a sample.

PATTERN may have {split}, which becomes train or val; ranges and choices in braces, {00..09}, {a,b}; and *, ?. Without
{split} a tenth of each class is held out. classes.txt beside the first shard, a name a line, names the classes; else
they are the numbers up to the highest of the training samples.
"""

from __future__ import annotations

import contextlib
import glob
import io
import itertools
import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vggfast.data.decode import decode
from vggfast.data.sources.base import SUFFIXES, ImageSet, Strings, own_part
from vggfast.io import write_atomically


class _Samples:
    """Where the samples of some shards lie; read by their number."""

    def __init__(self, shards: list[str], parts: list[dict[str, np.ndarray]]) -> None:
        self.shards = shards
        self.shard = np.repeat(np.arange(len(parts)), [len(part["labels"]) for part in parts])
        self.offsets, self.sizes, self.labels = (
            np.concatenate([part[name] for part in parts]) for name in ("offsets", "sizes", "labels")
        )
        self.names = [Strings.of(part["text"], part["ends"]) for part in parts]
        self.first = np.concatenate(([0], np.cumsum([len(part["labels"]) for part in parts])))

    def name(self, index: int) -> str:
        shard = int(self.shard[index])
        return f"{self.shards[shard]}:{self.names[shard][int(index - self.first[shard])]}"

    def __call__(self, index: int) -> Image.Image:
        name = self.name(index)
        try:
            with open(self.shards[self.shard[index]], "rb") as file:
                file.seek(int(self.offsets[index]))
                content = file.read(int(self.sizes[index]))
        except OSError as error:
            raise ValueError(f"{name}: not a sample that can be read ({error.strerror or error})") from error
        return decode(io.BytesIO(content), name)


def open_shards(pattern: str, split: str, whole: bool) -> ImageSet:
    own_split = "{split}" in pattern
    samples = _samples(pattern, split)
    trained = _samples(pattern, "train") if own_split and split != "train" else samples
    names = Path(trained.shards[0]).parent / "classes.txt"
    if names.is_file():
        classes = names.read_text().splitlines()
    else:
        classes = [str(number) for number in range(int(trained.labels.max()) + 1)]
    if len(odd := np.flatnonzero((samples.labels < 0) | (samples.labels >= len(classes)))):
        raise ValueError(
            f"{samples.name(odd[0])} must have a class of 0 to {len(classes) - 1}, got {samples.labels[odd[0]]}"
            f" ({len(odd)} such samples)"
        )
    chosen = own_part(samples.labels, 0.1, pattern, split, whole or own_split)
    return ImageSet(pattern, classes, samples.labels[chosen], chosen, samples)


def _samples(pattern: str, split: str) -> _Samples:
    shards = expand(pattern.replace("{split}", split))
    return _Samples(shards, [_index(shard) for shard in shards])


def expand(pattern: str) -> list[str]:
    """The files that a pattern of braces and globs names, in order.

    Raises:
        FileNotFoundError: one is not there; the text names it.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]
    found: list[str] = []
    for name in map("".join, itertools.product(*choices)):
        matches = sorted(glob.glob(name)) if re.search(r"[*?\[]", name) else [name]
        if not matches or not os.path.isfile(matches[0]):
            raise FileNotFoundError(f"{name}: no such shard")
        found += matches
    return found


def _choices(text: str) -> list[str]:
    """What stands in braces: "00..09", "a,b"."""
    if bounds := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        low, high = bounds.groups()
        return [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
    return text.split(",")


def _index(shard: str) -> dict[str, np.ndarray]:
    """Offsets, sizes, labels and names of a shard's samples; kept beside it where its folder may be written."""
    beside, state = Path(f"{shard}.index.npz"), os.stat(shard)
    stamp = np.array([1, state.st_size, state.st_mtime_ns])
    try:
        with np.load(beside) as kept:
            if np.array_equal(kept["stamp"], stamp):
                return dict(kept)
    except Exception:  # absent, of another version or damaged: it is made again
        pass
    made: dict[str, Any] = {**_scan(shard), "stamp": stamp}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **made)

    with contextlib.suppress(OSError):  # it only saves time
        write_atomically(beside, write)
    return made


def _scan(shard: str) -> dict[str, np.ndarray]:
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, name = os.path.split(member.name)
                key, _, ending = name.partition(".")
                key = f"{folder}/{key}"
                if not member.isfile():
                    continue
                if f".{ending.lower()}" in SUFFIXES:
                    images[key] = (member.name, member.offset_data, member.size)
                elif ending.lower() in ("cls", "json"):
                    content = archive.extractfile(member)
                    labels[key] = _label(content.read() if content else b"", ending.lower(), f"{shard}:{member.name}")
    except tarfile.TarError as error:
        raise ValueError(f"{shard}: not an uncompressed tar file ({error})") from error
    if lonely := sorted(images.keys() - labels.keys()):
        raise ValueError(f"{shard}:{images[lonely[0]][0]} must have a .cls or .json of its name, got no label")
    if not images:
        raise ValueError(f"{shard} must have images, names that end in one of {', '.join(SUFFIXES)}, got none")
    names = Strings(name for name, _, _ in images.values())
    return {
        "offsets": np.array([offset for _, offset, _ in images.values()], dtype=np.int64),
        "sizes": np.array([size for _, _, size in images.values()], dtype=np.int64),
        "labels": np.array([labels[key] for key in images], dtype=np.int64),
        "text": names.text, "ends": names.ends,
    }  # fmt: skip


def _label(content: bytes, ending: str, name: str) -> int:
    try:
        value: Any = json.loads(content)["label"] if ending == "json" else int(content)
        if type(value) is not int:
            raise ValueError
        return value
    except (ValueError, KeyError, TypeError):
        expected = 'a JSON object with a whole number "label"' if ending == "json" else "a whole number"
        raise ValueError(f"{name} must be {expected}, got {content[:40]!r}") from None
