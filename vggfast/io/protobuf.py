"""How many fields a protobuf file has, which its library turns into objects of a hundred bytes and more each."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MOST = 100_000  # a VGG has some hundreds
_FIXED = {1: 8, 5: 4}  # bytes of a value, by its wire type


def check_fields(path: Path, messages: dict[int, Any]) -> None:
    """That a file has no more fields than a network may.

    Args:
        path: the file.
        messages: the fields that are messages whose own fields count, by their numbers, and theirs.

    Raises:
        ValueError: it has; the text names it.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for count, _ in enumerate(_fields(data, 0, len(data), messages)):
            if count == _MOST:
                raise ValueError(f"{path} has more than {_MOST} parts, which no network has")


def _fields(data: mmap.mmap, at: int, end: int, messages: dict[int, Any]) -> Iterator[int]:
    """The number of each field; up to what is no field, which the library will name."""
    while at < end:
        key, at = _varint(data, at, end)
        number, kind = key >> 3, key & 7
        yield number
        if kind == 2:
            size, at = _varint(data, at, end)
            if number in messages:
                yield from _fields(data, at, min(at + size, end), messages[number])
            at += size
        elif kind in _FIXED:
            at += _FIXED[kind]
        elif kind == 0:
            _, at = _varint(data, at, end)
        elif kind not in (3, 4):  # the begin and the end of a group, whose fields follow
            return


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """(a number of up to ten bytes, the place behind it)."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            break
    return value, at
