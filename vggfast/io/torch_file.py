"""torch's .pth and .pt files, zip archives and those of before torch 1.6, read on their mapped bytes.

torch.load trusts what a file says of its sizes, and some of what it calls for a file makes tensors of any size. Here a
file makes what is in it (torch_pickle.py).
"""

from __future__ import annotations

import zipfile
import zlib
from mmap import mmap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vggfast.io.limits import most_bytes
from vggfast.io.torch_pickle import check_operations, unpickled

_MAGIC = 0x1950A86A20F9469CFC6C


def load(content: mmap) -> Any:
    """What a file holds: mappings, lists, plain values, and tensors on the mapped bytes.

    Raises:
        ValueError: it is broken, or holds something else; the text does not have its path.
    """
    try:
        return (_of_archive if content[:4] == b"PK\3\4" else _of_stream)(content)
    except ValueError as error:
        if type(error) is ValueError:
            raise
        raise ValueError("its pickle is broken") from error
    except Exception as error:  # a broken pickle leads to all kinds
        raise ValueError("its pickle is broken") from error


# ---- archives --------------------------------------------------------------------------------------------------------


def _of_archive(content: mmap) -> Any:
    try:
        with zipfile.ZipFile(content) as archive:  # type: ignore[call-overload]
            records = {info.filename: info for info in archive.infolist()}
    except Exception as error:
        raise ValueError("its zip directory is broken") from error
    name = next((name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")), None)
    if name is None:
        raise ValueError("its zip archive has no data.pkl")
    folder = name.partition("/")[0]
    if f"{folder}/constants.pkl" in records:
        raise ValueError("it holds a program of TorchScript: save the network's state_dict instead")
    if f"{folder}/byteorder" in records and _record(content, records[f"{folder}/byteorder"]) != b"little":
        raise ValueError("its numbers are big-endian")
    storages: dict[str, Tensor] = {}

    def values_of(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in storages:
            info = records.get(f"{folder}/data/{key}")
            if info is None:
                raise ValueError(f"its record data/{key} is missing")
            storages[key] = _values(_record(content, info), dtype, count)
        return storages[key]

    return unpickled(bytes(_record(content, records[name])), values_of, most_bytes(len(content)))


def _record(content: mmap, info: zipfile.ZipInfo) -> memoryview:
    """The bytes of a record, where its checksum is right."""
    at = info.header_offset
    header = content[at : at + 30]
    begin = at + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    end = begin + info.compress_size
    if len(header) < 30 or header[:4] != b"PK\3\4" or end > len(content):
        raise ValueError(f"its record {info.filename} is not where the zip directory says")
    found = memoryview(content)[begin:end]
    if info.compress_type == zipfile.ZIP_DEFLATED:
        found = memoryview(bytearray(zlib.decompressobj(-15).decompress(found, info.file_size + 1)))
    elif info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"its record {info.filename} is compressed by a method that torch does not use")
    if len(found) != info.file_size or info.CRC not in (0, zlib.crc32(found)):  # torch can leave it out, as 0
        raise ValueError(f"its record {info.filename} is damaged: its checksum is not the one in the zip directory")
    return found


def _values(found: memoryview, dtype: torch.dtype, count: int) -> Tensor:
    if not 0 <= count * dtype.itemsize <= len(found):
        raise ValueError(f"it declares {count} values of {dtype} where it has {len(found)} bytes")
    if not count:
        return torch.empty(0, dtype=dtype)
    data = np.frombuffer(found, np.uint8)[: count * dtype.itemsize]
    if data.ctypes.data % dtype.itemsize:
        data = data.copy()
    return torch.frombuffer(data, dtype=dtype)


# ---- the form of before torch 1.6 ------------------------------------------------------------------------------------


def _of_stream(content: mmap) -> Any:
    """Pickles one after the other, a magic number, a version, the machine, the object and the storages' keys, and then
    the storages, each behind its number of values."""
    content.seek(0)
    parts = []
    for _ in range(5):
        begin = content.tell()
        check_operations(content)
        parts.append(content[begin : content.tell()])
        if len(parts) == 1 and _plain(parts[0]) != _MAGIC:
            raise ValueError("it is not a file that torch.save writes")
    dtypes: dict[str, torch.dtype] = {}

    def note(key: str, dtype: torch.dtype, count: int) -> Tensor:
        dtypes[key] = dtype
        return torch.empty(0, dtype=dtype)

    unpickled(parts[3], note, None)
    at, places = content.tell(), {}
    for key in _plain(parts[4]):
        count = int.from_bytes(content[at : at + 8], "little")
        places[key] = at + 8, count
        at += 8 + count * dtypes[key].itemsize
    if at != len(content):
        raise ValueError("its storages end elsewhere than it does")
    storages: dict[str, Tensor] = {}

    def values_of(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in storages:
            begin, number = places[key]
            storages[key] = _values(memoryview(content)[begin : begin + number * dtype.itemsize], dtype, count)
        return storages[key]

    return unpickled(parts[3], values_of, most_bytes(len(content)))


def _plain(text: bytes) -> Any:
    """What a pickle without tensors holds."""
    return unpickled(text, lambda *of: torch.empty(0), 0)
