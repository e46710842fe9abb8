"""Files of the format safetensors, read on their mapped bytes, and written with checksums of their tensors.

The format: 8 bytes, the length of the header (little-endian); the header, JSON; the tensors' bytes, without holes. Its
own library writes the metadata in an order that changes from file to file; ours are equal for equal tensors.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "U64": torch.uint64,
    "U32": torch.uint32, "U16": torch.uint16, "C64": torch.complex64, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MOST_HEADER = 8 << 20  # a VGG's has some 10 KiB; one of the 100 MB that the format allows takes gigabytes to read
_METADATA, _SUMS = "__metadata__", "crc32"


class Entry(NamedTuple):
    """A tensor of a file: its name there, dtype, shape, and the place of its bytes in the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    def tensor(self, content: mmap) -> Tensor:
        """It, on the mapped bytes themselves, whose pages are copied where it is written to."""
        count = math.prod(self.shape)
        if not count:
            return torch.empty(self.shape, dtype=self.dtype)
        if self.begin % self.dtype.itemsize:  # written without padding, by an early version of the format's library
            part = bytearray(content[self.begin : self.end])
            return torch.frombuffer(part, dtype=self.dtype).reshape(self.shape)
        return torch.frombuffer(content, dtype=self.dtype, count=count, offset=self.begin).reshape(self.shape)


def read_header(content: mmap) -> tuple[dict[str, Entry], dict[str, str]]:
    """(the tensors by name, the metadata) of a file.

    Raises:
        ValueError: it is broken; the text does not have its path.
    """
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 + length:
        raise ValueError(f"its header of {length} bytes is cut off")
    if length > _MOST_HEADER:
        raise ValueError(f"its header must have at most {_MOST_HEADER >> 20} MiB, got {length >> 20}")
    try:
        header = json.loads(content[8 : 8 + length].decode(), object_pairs_hook=_without_doubles)
    except UnicodeDecodeError:
        raise ValueError("its header is no UTF-8") from None
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError(f"its header must be a JSON object, got a {type(header).__name__}")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata must be a JSON object of texts")
    entries = {name: _entry(name, entry, 8 + length) for name, entry in header.items()}
    at = 8 + length
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.end > len(content):
            raise ValueError(f"{entry.name} is cut off")
        if entry.begin != at:
            raise ValueError(f"{entry.name} must begin at byte {at}, where the one before it ends, got {entry.begin}")
        at = entry.end
    if at != len(content):
        raise ValueError(f"it has {len(content) - at} bytes that are no tensor's")
    return entries, metadata


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"its header has {next(name for name in names if names.count(name) > 1)} twice")
    return found


def _entry(name: str, entry: Any, origin: int) -> Entry:
    """One tensor's part of the header, checked."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"{name} must have dtype, shape and data_offsets, got {str(entry)[:80]}")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise ValueError(f"the dtype of {name} must be one of {', '.join(DTYPES)}, got {str(kind)[:80]!r}")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
            raise ValueError(f"the {what} of {name} must be integers from 0 on, got {str(numbers)[:80]}")
    if len(offsets) != 2 or len(shape) > 64:
        raise ValueError(f"{name} must have two data_offsets and at most 64 axes, got {len(offsets)} and {len(shape)}")
    count = math.prod(shape) * DTYPES[kind].itemsize
    if offsets[1] - offsets[0] != count:
        raise ValueError(f"{name} has {offsets[1] - offsets[0]} bytes, which are not those of its shape {shape}")
    return Entry(name, DTYPES[kind], tuple(shape), origin + offsets[0], origin + offsets[1])


def check_sums(content: mmap, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
    """That tensors and metadata are as they were written, where the file has checksums.

    Raises:
        ValueError: they are not; the text names the tensor.
    """
    if _SUMS not in metadata:
        return
    try:
        sums = dict(json.loads(metadata[_SUMS]))
    except (ValueError, TypeError):
        raise ValueError("its checksums are damaged") from None
    found = {entry.name: _sum_of(entry, memoryview(content)[entry.begin : entry.end]) for entry in entries.values()}
    found[""] = _sum_of_metadata(metadata)
    if odd := sorted(name for name in sums.keys() | found.keys() if sums.get(name) != found.get(name)):
        what = "its metadata are" if odd == [""] else f"{odd[-1]} is"
        raise ValueError(f"{what} damaged: not what the checksum is of")


def _sum_of(entry: Entry, content: Any) -> str:
    start = zlib.crc32(f"{entry.name} {_NAMES[entry.dtype]} {list(entry.shape)}".encode())
    return f"{zlib.crc32(content, start):08x}"


def _sum_of_metadata(metadata: Mapping[str, str]) -> str:
    others = {name: text for name, text in metadata.items() if name != _SUMS}
    return f"{zlib.crc32(json.dumps(others, sort_keys=True).encode()):08x}"


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a file, with checksums among its metadata.

    Raises:
        OSError: it could not be written.
    """
    # The widest first: so each lies at a multiple of its elements' size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    entries: list[Entry] = []
    parts: list[memoryview] = []
    at = 0
    for name, tensor in ordered:
        part = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        entries.append(Entry(name, tensor.dtype, tuple(tensor.shape), at, at := at + part.nbytes))
        parts.append(part.data)
    sums = {entry.name: _sum_of(entry, part) for entry, part in zip(entries, parts, strict=True)}
    sums[""] = _sum_of_metadata(metadata)
    header: dict[str, Any] = {_METADATA: {**metadata, _SUMS: json.dumps(sums)}}
    for entry in entries:
        offsets = [entry.begin, entry.end]
        header[entry.name] = {"dtype": _NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(parts)
