"""Building a cache of decoded, resized images. The format: :mod:`vggfast.data.sources.cache`.

While a split is being built, SPLIT.journal has a line for each block that is on disk whole: a build that was stopped,
by whatever, checks those blocks and goes on behind them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vggfast._checks import MOST_WORKERS, check_whole
from vggfast._progress import Progress, StageProgress, silent
from vggfast.data.batches import ON_BAD_IMAGE
from vggfast.data.sources import open_splits
from vggfast.data.sources.base import ImageSet, Strings
from vggfast.data.sources.cache import Index, checksum
from vggfast.data.transforms import rescale

BLOCK_BYTES = 64 << 20
_CHUNK = 16  # images that a worker decodes at a time


@dataclass
class Built:
    """What :func:`build_cache` made of a split.

    Attributes:
        images: in the cache.
        bytes: of their pixels.
        bad: (image, message) of those that did not decode and are not in it.
        resumed: images that were there already.
    """

    images: int
    bytes: int
    bad: list[tuple[str, str]]
    resumed: int


@dataclass
class _Chunk:
    """Some images, decoded and resized: their pixels on end, and the messages of those that are missing."""

    end: int
    pixels: torch.Tensor
    shapes: list[tuple[int, int]]
    bad: list[tuple[int, str]]


class _Decoder(Dataset):
    def __init__(self, images: ImageSet, size: int | None) -> None:
        self.images, self.size = images, size

    def __getitem__(self, indices: range) -> _Chunk:
        pixels, bad = [], []
        for index in indices:
            try:
                pixels.append(self._decode(index))
            except (OSError, ValueError) as error:
                bad.append((index, str(error)))
        flat = np.concatenate([each.reshape(-1) for each in pixels]) if pixels else np.empty(0, np.uint8)
        shapes = [(each.shape[0], each.shape[1]) for each in pixels]
        return _Chunk(indices.stop, torch.from_numpy(flat), shapes, bad)

    def _decode(self, index: int) -> np.ndarray:
        image = self.images.image(index)
        shrinks = self.size is not None and min(image.size) > self.size
        return np.asarray(rescale(image, self.size) if shrinks and self.size else image)


@dataclass
class _Blocks:
    """Blocks on disk; what the journal has a line for each of."""

    images: int = 0  # of the source, done: in the cache or bad
    shapes: list[list[tuple[int, int]]] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: dict[str, Any]) -> None:
        self.images = line["images"]
        self.shapes.append(line["shapes"])
        self.bytes.append(line["bytes"])
        self.checksums.append(line["checksum"])
        self.bad += [(index, message) for index, message in line["bad"]]


class _Writer:
    """SPLIT.pixels and SPLIT.journal, block by block; `done` says what of them is on disk, from earlier builds too."""

    def __init__(self, pixels: Path, journal: Path, identity: dict[str, Any]) -> None:
        self.pixels, self.journal, self.identity = pixels, journal, identity
        self.done = _Blocks()
        lines = self._resume()
        for path in (pixels, journal):
            path.touch()
        self._pixels, self._journal = pixels.open("r+b"), journal.open("r+b")
        self._pixels.truncate(sum(self.done.bytes))
        self._journal.truncate(lines)
        for file in (self._pixels, self._journal):
            file.seek(0, os.SEEK_END)
        if not lines:
            self._write_line(identity)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._pixels, self._journal):
            with contextlib.suppress(OSError):  # what a full disk did not take was reported when it was written
                file.close()

    def _resume(self) -> int:
        """Takes up the journal's blocks that are whole; the bytes of its lines that hold."""
        if not self.journal.exists() or not self.pixels.exists():
            return 0
        good = 0
        with self.journal.open("rb") as journal, self.pixels.open("rb") as pixels:
            for number, raw in enumerate(journal):
                line = _parse_line(raw)
                if number == 0 and line not in (None, self.identity):
                    raise ValueError(
                        f"{self.journal} is of a cache that is made from something else, or the images' names or "
                        f"classes have changed since: delete {self.journal.parent} or choose another folder"
                    )
                if line is None or (number and checksum(pixels, line["bytes"]) != line["checksum"]):
                    break
                if number:
                    self.done.add(line)
                good += len(raw)
        return good

    def add(self, images: int, parts: list[_Chunk]) -> None:
        """Appends a block, whole once its line stands in the journal."""
        value = 0
        for part in parts:
            content = part.pixels.numpy().data
            value = zlib.crc32(content, value)
            self._pixels.write(content)
        self._pixels.flush()
        os.fsync(self._pixels.fileno())
        line = {
            "images": images, "shapes": [shape for part in parts for shape in part.shapes],
            "bytes": sum(part.pixels.numel() for part in parts), "checksum": value,
            "bad": [bad for part in parts for bad in part.bad],
        }  # fmt: skip
        self._write_line(line)
        self.done.add(line)

    def _write_line(self, line: dict[str, Any]) -> None:
        text = json.dumps(line).encode()
        self._journal.write(b"%08x %s\n" % (zlib.crc32(text), text))
        self._journal.flush()
        os.fsync(self._journal.fileno())


def _parse_line(raw: bytes) -> dict[str, Any] | None:
    """A journal's line; None where it is cut off or damaged."""
    check, _, text = raw.rstrip(b"\n").partition(b" ")
    return json.loads(text) if raw.endswith(b"\n") and check == b"%08x" % zlib.crc32(text) else None


def build_cache(
    spec: str, out: str | Path, size: int | None = 256, *, workers: int = 0, on_bad_image: str = "fail",
    block_bytes: int = BLOCK_BYTES, progress: StageProgress = silent,
) -> dict[str, Built]:  # fmt: skip
    """Decodes the images of both splits once, resizes them and keeps them in a folder, for ``cache:DIR``.

    What an earlier call that was stopped has written is checked and kept; a split that is complete is left as it is.
    Images that were replaced under the same names since are not noticed.

    Args:
        spec: what :func:`vggfast.data.open_dataset` takes.
        out: the folder; made where absent.
        size: pixels of the shorter side, at least 1; smaller images, and with None all, keep their size.
        workers: processes that decode. The files are the same for any number.
        on_bad_image: "fail" stops at an image that does not decode; "skip" leaves it out, and lists it in the index.
        block_bytes: of the pixels that share a checksum, at least.
        progress: told the split, images done and images in all.

    Returns:
        What was made, by split.

    Raises:
        ValueError: an image does not decode, or the folder holds another cache; the text names it.
        OSError: the disk is full, or a folder may not be written; the text says what to do.
    """
    return {
        split: build_split(images, spec, split, Path(out), size, workers=workers, on_bad_image=on_bad_image,
                           block_bytes=block_bytes, progress=functools.partial(progress, split))
        for split, images in zip(("train", "val"), open_splits(spec), strict=True)
    }  # fmt: skip


def build_split(
    images: ImageSet, spec: str, split: str, out: Path, size: int | None, *, workers: int = 0,
    on_bad_image: str = "fail", block_bytes: int = BLOCK_BYTES,
    progress: Progress = silent,
) -> Built:  # fmt: skip
    """One split of :func:`build_cache`, of images that are open already."""
    size = None if size is None else check_whole(size, "size", 1)
    workers = check_whole(workers, "workers", 0, MOST_WORKERS)
    if on_bad_image not in ON_BAD_IMAGE:
        raise ValueError(f"on_bad_image must be one of {', '.join(ON_BAD_IMAGE)}, got {on_bad_image!r}")
    identity = {"spec": spec, "split": split, "size": size, "images": len(images), "digest": _digest(images)}
    index_file = out / f"{split}.index"
    if index_file.exists():
        found = Index.read(index_file)
        if any(found.about[name] != value for name, value in {**identity, "classes": images.classes}.items()):
            raise ValueError(
                f"{out} holds the cache of {found.about['spec']} at size {found.about['size']}, or the images' names "
                "or classes have changed since: delete it or choose another folder"
            )
        (out / f"{split}.journal").unlink(missing_ok=True)  # of a build that ended between its last two steps
        bad = [(name, message) for name, message in found.about["bad"]]
        return Built(len(found.labels), int(found.block_bytes.sum()), bad, len(images))
    if odd := next((path for path in (out, *out.parents) if path.exists() and not path.is_dir()), None):
        raise ValueError(f"{out} must be a folder for the cache, and {odd} is not a folder")
    resumed = kept = 0
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _Writer(out / f"{split}.pixels", out / f"{split}.journal", identity) as writer:
            resumed = kept = writer.done.images
            for kept in _write_blocks(writer, images, size, workers, on_bad_image, block_bytes):
                progress(kept, len(images))
        built = _finish(index_file, images, identity, writer.done, resumed)
    except OSError as error:
        if errno.ENOSPC in (error.errno, getattr(error.__cause__, "errno", None)):
            raise OSError(
                f"{out / split}.pixels could not be written whole: the disk is full, {kept} of {len(images)} images "
                "are kept; make room and run the same again, which goes on from there"
            ) from error
        raise
    writer.journal.unlink()
    return built


def _write_blocks(
    writer: _Writer, images: ImageSet, size: int | None, workers: int, on_bad_image: str, block_bytes: int
) -> Iterator[int]:
    """Writes what is missing; gives the number of images done after each block."""

    def check(bad: list[tuple[int, str]]) -> None:
        if bad and on_bad_image == "fail":
            raise ValueError(bad[0][1])

    check(writer.done.bad)
    yield writer.done.images
    parts: list[_Chunk] = []
    for chunk in _decoded(images, size, writer.done.images, workers):
        check(chunk.bad)
        parts.append(chunk)
        if sum(part.pixels.numel() for part in parts) >= block_bytes or chunk.end == len(images):
            writer.add(chunk.end, parts)
            parts = []
            yield chunk.end


def _decoded(images: ImageSet, size: int | None, first: int, workers: int) -> Iterator[_Chunk]:
    """The images from number `first` on, in order."""
    plan = [range(begin, min(begin + _CHUNK, len(images))) for begin in range(first, len(images), _CHUNK)]
    loader: Any = DataLoader(
        _Decoder(images, size), batch_size=None, sampler=plan, num_workers=workers, collate_fn=_as_it_is,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return iter(loader)


def _as_it_is(chunk: Any) -> Any:
    return chunk


def _digest(images: ImageSet) -> str:
    """What the images of a set are, by their names and labels."""
    found = hashlib.sha256(images.labels.tobytes())
    found.update("\0".join(map(images.source, range(len(images)))).encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def _finish(path: Path, images: ImageSet, identity: dict[str, Any], done: _Blocks, resumed: int) -> Built:
    """Writes the index, with which the split is there."""
    missing = {index for index, _ in done.bad}
    kept = [index for index in range(len(images)) if index not in missing]
    if not kept:
        raise ValueError(f"{images.name}: none of its {len(images)} images decodes; the first: {done.bad[0][1]}")
    bad = [(images.source(index), message) for index, message in done.bad]
    about = {**identity, "name": images.name, "classes": images.classes, "bad": bad}
    shapes = np.array([shape for block in done.shapes for shape in block], dtype=np.int32)
    Index(
        about, shapes, images.labels[kept], Strings(map(images.source, kept)),
        np.array([len(block) for block in done.shapes]), np.array(done.bytes),
        np.array(done.checksums, dtype=np.uint32),
    ).write(path)  # fmt: skip
    return Built(len(kept), sum(done.bytes), bad, resumed)
