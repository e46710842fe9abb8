"""A cache of decoded images on disk: reading and checking it. :mod:`vggfast.data.cache` writes it.

For each split, SPLIT.pixels has the images on end, uint8 (H, W, 3) each; SPLIT.index what they are, behind a magic
number and its own SHA-256. A split is there once its index is, which is written last. Blocks of the pixels have a
CRC-32 each.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vggfast._progress import Progress, silent
from vggfast.data.sources.base import SPLITS, ImageSet, Strings
from vggfast.data.sources.listing import LeftOut
from vggfast.io import write_atomically

_MAGIC = b"vggfast cache 1\n"
_READ = 1 << 22


@dataclass
class Index:
    """What a split's cache holds.

    Attributes:
        about: spec, split, size, name, classes, bad ([[image, message], ...]) and what it was made from.
        shapes: (n, 2) int32, height and width of each image.
        labels: (n,) int64.
        names: of the images' sources.
        block_images, block_bytes: (blocks,) int64, of each block of the pixels.
        checksums: (blocks,) uint32, CRC-32 of each.
    """

    about: dict[str, Any]
    shapes: np.ndarray
    labels: np.ndarray
    names: Strings
    block_images: np.ndarray
    block_bytes: np.ndarray
    checksums: np.ndarray

    def write(self, path: Path) -> None:
        about = np.frombuffer(json.dumps(self.about).encode(), np.uint8)
        file = io.BytesIO()
        np.savez(
            file, about=about, shapes=self.shapes, labels=self.labels, text=self.names.text, ends=self.names.ends,
            block_images=self.block_images, block_bytes=self.block_bytes, checksums=self.checksums,
        )  # fmt: skip
        payload = file.getvalue()
        content = _MAGIC + hashlib.sha256(payload).digest() + payload
        write_atomically(path, lambda temporary: temporary.write_bytes(content))

    @classmethod
    def read(cls, path: Path) -> Index:
        """
        Raises:
            FileNotFoundError, ValueError: not there, not an index, or damaged; the text names it.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not there; `vggfast cache` writes it, and goes on where it was stopped")
        content = path.read_bytes()
        digest, payload = content[len(_MAGIC) : len(_MAGIC) + 32], content[len(_MAGIC) + 32 :]
        if not content.startswith(_MAGIC):
            raise ValueError(f"{path} is not the index of a cache of this version: delete it and build the cache again")
        if hashlib.sha256(payload).digest() != digest:
            raise ValueError(f"{path} is damaged, its checksum does not fit: delete it and build the cache again")
        with np.load(io.BytesIO(payload)) as kept:
            return cls(
                json.loads(kept["about"].tobytes()), kept["shapes"], kept["labels"],
                Strings.of(kept["text"], kept["ends"]), kept["block_images"], kept["block_bytes"], kept["checksums"],
            )  # fmt: skip


class _Pictures:
    """Images of a mapped file by their number. The map is opened in each process that reads."""

    def __init__(self, path: str, shapes: np.ndarray) -> None:
        self.path, self.shapes = path, shapes
        self.offsets = np.concatenate(([0], np.cumsum(shapes.prod(1, dtype=np.int64) * 3)))
        self._map: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def __call__(self, index: int) -> np.ndarray:
        if self._map is None:
            if (found := os.path.getsize(self.path)) != self.offsets[-1]:
                raise ValueError(f"{self.path} must have {self.offsets[-1]} bytes, as when it was opened, got {found}")
            self._map = np.memmap(self.path, np.uint8, mode="r").view(np.ndarray)
        height, width = self.shapes[index]
        return self._map[self.offsets[index] : self.offsets[index + 1]].reshape(height, width, 3)


def open_cache(folder: str, split: str) -> ImageSet:
    """The images of a split's cache, as parts of a mapped file.

    Raises:
        FileNotFoundError, ValueError: not there, of another size than its index says, or the index is damaged; the
            text names the file. What is in the pixels :func:`verify` checks.
    """
    index, pixels = _open(Path(folder), split)
    LeftOut(others={"that did not decode when the cache was built": len(index.about["bad"])}).warn(pixels)
    pictures = _Pictures(str(pixels), index.shapes)
    return ImageSet(f"cache:{folder}", index.about["classes"], index.labels, range(len(index.labels)), pictures)


def _open(folder: Path, split: str) -> tuple[Index, Path]:
    index, pixels = Index.read(folder / f"{split}.index"), folder / f"{split}.pixels"
    if index.about["split"] != split:
        raise ValueError(f"{folder / split}.index must be of the split {split}, got that of {index.about['split']}")
    expected, found = int(index.block_bytes.sum()), pixels.stat().st_size if pixels.exists() else 0
    if expected != found:
        raise ValueError(f"{pixels} must have {expected} bytes, got {found}: delete {folder} and build the cache again")
    return index, pixels


def checksum(file: Any, bytes_: int) -> int:
    """CRC-32 of the next bytes of a file."""
    value = 0
    while bytes_ > 0 and (part := file.read(min(bytes_, _READ))):
        value = zlib.crc32(part, value)
        bytes_ -= len(part)
    return value


def verify(folder: str | os.PathLike, progress: Progress = silent) -> int:
    """Reads the whole cache, both splits, and compares every checksum; the number of blocks.

    `progress` is told how many bytes are done, of how many.

    Raises:
        FileNotFoundError, ValueError: something is missing or damaged; the text names the file, the blocks and the
            first images in them.
    """
    opened = [_open(Path(folder), split) for split in SPLITS if (Path(folder) / f"{split}.index").exists()]
    if not opened:
        raise FileNotFoundError(f"{folder}: no cache, neither train.index nor val.index is there")
    total, done = sum(int(index.block_bytes.sum()) for index, _ in opened), 0
    progress(0, total)
    for index, pixels in opened:
        damaged = []
        with pixels.open("rb") as file:
            for block, (bytes_, recorded) in enumerate(zip(index.block_bytes, index.checksums, strict=True)):
                if checksum(file, int(bytes_)) != recorded:
                    damaged.append(block)
                done += int(bytes_)
                progress(done, total)
        if damaged:
            first = int(index.block_images[: damaged[0]].sum())
            raise ValueError(
                f"{pixels}: {len(damaged)} of {len(index.checksums)} blocks are damaged, number {damaged[0]} first, "
                f"{index.block_images[damaged[0]]} images from {index.names[first]} on; delete {folder} and build the "
                "cache again"
            )
    return sum(len(index.checksums) for index, _ in opened)
