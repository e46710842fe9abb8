"""WebDataset-style shards: tar files in which photo.jpg and photo.cls (a number), or photo.json {"label": number}, are
a sample. :mod:`vggfast.data.sources.tar` says which members belong together.

PATTERN may have {split}, which becomes train or val; ranges and choices in braces, {00..09}, {a,b}; and *, ?. Without
{split} a tenth of each class is held out. classes.txt beside the shards, a name a line, names the classes; else they
are the numbers up to the highest of the training samples.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vggfast.data.decode import decode
from vggfast.data.sources.base import ImageSet, Strings, own_part
from vggfast.data.sources.listing import LeftOut, read_classes
from vggfast.data.sources.patterns import INDEX, expand
from vggfast.data.sources.tar import scan
from vggfast.io import on_one_line, write_atomically

_VERSION = 2  # of what an index holds, and of the rules by which it was made
_ARRAYS = {"offsets", "sizes", "labels", "text", "ends", "left_out", "stamp"}
_MOST_CLASSES = 1 << 20  # that have no names


class _Samples:
    """Where the samples of some shards lie; read by their number."""

    def __init__(self, shards: list[str], parts: list[dict[str, np.ndarray]]) -> None:
        self.shards = shards
        self.stamps = [part["stamp"] for part in parts]
        self.shard = np.repeat(np.arange(len(parts)), [len(part["labels"]) for part in parts])
        self.offsets, self.sizes, self.labels = (
            np.concatenate([part[name] for part in parts]) for name in ("offsets", "sizes", "labels")
        )
        self.names = [Strings.of(part["text"], part["ends"]) for part in parts]
        self.first = np.concatenate(([0], np.cumsum([len(part["labels"]) for part in parts])))

    def name(self, index: int) -> str:
        shard = int(self.shard[index])
        return on_one_line(f"{self.shards[shard]}:{self.names[shard][int(index - self.first[shard])]}")

    def __call__(self, index: int) -> Image.Image:
        name, shard = self.name(index), self.shard[index]
        try:
            with open(self.shards[shard], "rb") as file:
                if not np.array_equal(_stamp(os.fstat(file.fileno())), self.stamps[shard]):
                    raise ValueError(f"{name}: the shard has changed since it was opened")
                file.seek(int(self.offsets[index]))
                content = file.read(int(self.sizes[index]))
        except OSError as error:
            raise ValueError(f"{name}: not a sample that can be read ({error.strerror or error})") from error
        return decode(io.BytesIO(content), name)


def open_shards(pattern: str, split: str, whole: bool) -> ImageSet:
    own_split = "{split}" in pattern and not os.path.isfile(pattern)
    samples = _samples(pattern, split)
    trained = _samples(pattern, "train") if own_split and split != "train" else samples
    classes = _names(dict.fromkeys(Path(shard).parent for shard in [*trained.shards, *samples.shards]))
    if not classes:
        classes = [str(number) for number in range(min(max(int(trained.labels.max()), 0), _MOST_CLASSES) + 1)]
    if len(odd := np.flatnonzero((samples.labels < 0) | (samples.labels >= len(classes)))):
        raise ValueError(
            f"{samples.name(odd[0])} must have a class of 0 to {len(classes) - 1}, got {samples.labels[odd[0]]}"
            f" ({len(odd)} such samples)"
        )
    chosen = own_part(samples.labels, 0.1, pattern, split, whole or own_split)
    return ImageSet(pattern, classes, samples.labels[chosen], chosen, samples)


def _names(folders: Iterable[Path]) -> list[str]:
    """The names of the classes, [] where none of the shards' folders has a classes.txt; ValueError where two differ."""
    said = {path: read_classes(path) for path in (folder / "classes.txt" for folder in folders) if path.is_file()}
    first = next(iter(said), None)
    for path, classes in said.items():
        if first and classes != said[first]:
            raise ValueError(on_one_line(f"{first} and {path} must name the same classes in the same order"))
    return said[first] if first else []


def _samples(pattern: str, split: str) -> _Samples:
    name = pattern if os.path.isfile(pattern) else pattern.replace("{split}", split)
    shards = expand(name)
    parts = [_index(shard) for shard in shards]
    left_out = LeftOut()
    for part in parts:
        left_out.add(LeftOut(**json.loads(part["left_out"].tobytes())))
    left_out.warn(name)
    return _Samples(shards, parts)


def _stamp(state: os.stat_result) -> np.ndarray:
    return np.array([_VERSION, state.st_size, state.st_mtime_ns])


def _index(shard: str) -> dict[str, np.ndarray]:
    """Offsets, sizes, labels and names of a shard's samples; kept beside it where its folder may be written."""
    beside, stamp = Path(shard + INDEX), _stamp(os.stat(shard))
    try:
        with np.load(beside if beside.is_file() else "") as kept:
            if np.array_equal(kept["stamp"], stamp) and kept.keys() == _ARRAYS:
                return dict(kept)
    except Exception:  # absent, of another version or damaged: it is made again
        pass
    samples, left_out = scan(shard)
    names = Strings(sample.name for sample in samples)
    made: dict[str, Any] = {
        **{name: np.array([getattr(sample, name[:-1]) for sample in samples], dtype=np.int64)
           for name in ("offsets", "sizes", "labels")},
        "text": names.text, "ends": names.ends, "stamp": stamp,
        "left_out": np.frombuffer(json.dumps(vars(left_out)).encode(), np.uint8),
    }  # fmt: skip

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **made)

    with contextlib.suppress(OSError):  # it only saves time
        write_atomically(beside, write)
    return made
