"""torch's .pth and .pt files, zip archives and those of before torch 1.6, read on their mapped bytes.

torch.load trusts what a file says of its sizes, and some of what it calls for a file makes tensors of any size. Here a
pickle makes plain values and the tensors whose bytes are in the file; nothing else, and no code of others, is called.
"""

from __future__ import annotations

import io
import math
import pathlib
import pickle
import pickletools
import zipfile
import zlib
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from mmap import mmap
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vggfast.io.limits import most_bytes

_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "Untyped": torch.uint8,
}  # fmt: skip
_MOST_OPERATIONS = 2_000_000
_MAGIC = 0x1950A86A20F9469CFC6C
# What torch makes other tensors by, in words.
_OTHERS = {
    "_rebuild_sparse_tensor": "a sparse tensor", "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor on the meta device", "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_from_type_v2": "a tensor of a class of its own",
    "_rebuild_wrapper_subclass": "a tensor of a class of its own",
}  # fmt: skip


class _Storage(NamedTuple):
    """Values of a file, as one axis."""

    values: Tensor


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

    return _unpickled(bytes(_record(content, records[name])), values_of, most_bytes(len(content)))


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
        _check_operations(content)
        parts.append(content[begin : content.tell()])
        if len(parts) == 1 and _plain(parts[0]) != _MAGIC:
            raise ValueError("it is none of torch's files")
    dtypes: dict[str, torch.dtype] = {}

    def note(key: str, dtype: torch.dtype, count: int) -> Tensor:
        dtypes[key] = dtype
        return torch.empty(0, dtype=dtype)

    _unpickled(parts[3], note, None)
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

    return _unpickled(parts[3], values_of, most_bytes(len(content)))


def _plain(text: bytes) -> Any:
    """What a pickle without tensors holds."""
    return _unpickled(text, lambda *of: torch.empty(0), 0)


# ---- pickles ---------------------------------------------------------------------------------------------------------


def _operations(stream: Any) -> Iterator[Any]:
    """One pickle's operations and their arguments."""
    try:
        for operation, argument, _ in pickletools.genops(stream):
            yield operation.name, argument
    except ValueError as error:
        why = "a name in it is no UTF-8" if isinstance(error, UnicodeError) else error
        raise ValueError(f"its pickle is broken: {why}") from error


def _check_operations(stream: Any) -> None:
    """Reads one pickle's operations, none of which may ask for memory that it does not fill."""
    for count, (name, argument) in enumerate(_operations(stream)):
        if name.endswith("PUT") and isinstance(argument, int) and argument > count:
            raise ValueError(f"its pickle keeps the {argument}th of {count} values")
        if count == _MOST_OPERATIONS:
            raise ValueError(f"its pickle has more than {_MOST_OPERATIONS} operations")


def _unpickled(text: bytes, values_of: Callable[[str, torch.dtype, int], Tensor], most: int | None) -> Any:
    """What a pickle holds.

    Args:
        text: the pickle.
        values_of: the values of a storage by its key, dtype and number of values.
        most: bytes that all its tensors may have; None where they are not wanted, but only their storages.
    """
    _check_operations(io.BytesIO(text))
    return _Unpickler(text, values_of, most).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, text: bytes, values_of: Callable[[str, torch.dtype, int], Tensor], most: int | None) -> None:
        super().__init__(io.BytesIO(text))
        self._values_of, self._most = values_of, most

    def persistent_load(self, place: Any) -> _Storage:
        match place:
            case ("storage", torch.dtype() as dtype, str(key), str(), int(count), *rest) if rest in ([], [None]):
                return _Storage(self._values_of(key, dtype, count))
        raise ValueError(f"its pickle refers to {str(place)[:80]}, which is no storage")

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a global: made anew, so that no pickle can change what another one gets."""
        if module in ("torch", "torch.storage") and name.endswith("Storage") and name[:-7] in _STORAGES:
            return _STORAGES[name[:-7]]
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module == "torch._utils" and name in _OTHERS) or (module == "torch._tensor" and name in _OTHERS):
            raise ValueError(f"it holds {_OTHERS[name]}: save plain tensors instead")
        known = {"__builtin__": "builtins", "numpy._core.multiarray": "numpy.core.multiarray"}.get(module, module)
        found = _makers(self._tensor).get(f"{known}.{name}")
        if found is None:
            raise ValueError(
                f"it holds an object of {module}.{name}, whose code would run: save the network's state_dict alone"
            )
        return found

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
        """The tensor of some values of a storage."""
        numbers = (offset, *size, *stride)
        if not isinstance(storage, _Storage) or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("its pickle makes a tensor of what is no storage, or of a negative size")
        if len(size) != len(stride):
            raise ValueError(f"a tensor of {len(size)} axes has {len(stride)} strides")
        values = storage.values
        if self._most is None:
            return values
        if len(rest) > 2 and isinstance(rest[2], torch.dtype):  # of _rebuild_tensor_v3, whose storages have no dtype
            values = values.view(rest[2])
        last = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= len(values):
            raise ValueError(f"a tensor of shape {tuple(size)} reaches past the {len(values)} values of its storage")
        self._most -= math.prod(size) * values.element_size()
        if self._most < 0:
            raise ValueError("its tensors are larger together than a file of its size may hold")
        return values.as_strided(size, stride, offset) if math.prod(size) else values.new_empty(size)


class _Array(np.ndarray):
    """numpy's array as a pickle makes it: empty at first, and then of a state that is checked."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, np.dtype) or dtype.kind not in "fiubSU" or not isinstance(content, bytes):
            raise ValueError("it holds an array of numpy's that is none of numbers")
        if math.prod(shape) * dtype.itemsize != len(content):
            raise ValueError(f"it holds an array of numpy's of shape {shape} in {len(content)} bytes")
        super().__setstate__((1, tuple(shape), dtype, bool(fortran), content))  # type: ignore[arg-type]


def _makers(tensor: Callable[..., Tensor]) -> dict[str, Any]:
    """What a pickle may call, by its name: each makes a value and does nothing else."""

    class Values:
        """An object whose class is not loaded: its attributes alone."""

    def encode(text: str, encoding: str = "latin1") -> bytes:
        return text.encode("latin1" if encoding.startswith("latin") else "utf-8")

    def dtype(code: str, *_: Any) -> np.dtype:
        return np.dtype(str(code)[:8])

    def scalar(kind: np.dtype, content: bytes) -> Any:
        return np.frombuffer(content, kind, 1)[0]

    def path(*parts: str) -> pathlib.PurePath:
        return pathlib.PurePath(*parts)

    array = type("ndarray", (_Array,), {})
    makers = {
        "collections.OrderedDict": lambda *of: OrderedDict(*of),
        "collections.defaultdict": lambda *_: defaultdict(None), "collections.Counter": lambda *of: Counter(*of),
        "builtins.set": lambda *of: set(*of), "builtins.list": lambda *of: list(*of),
        "builtins.dict": lambda *of: dict(*of), "builtins.complex": lambda *of: complex(*of),
        "builtins.frozenset": lambda *of: frozenset(*of), "builtins.slice": lambda *of: slice(*of),
        **{f"datetime.{name}": lambda *of: of for name in ("date", "datetime", "timedelta", "timezone")},
        "_codecs.encode": encode, "argparse.Namespace": Values,
        "torch.Size": lambda *of: tuple(*of), "torch.device": lambda *of: ":".join(map(str, of)),
        "torch.serialization._get_layout": lambda name: name,
        "torch._utils._rebuild_tensor": tensor, "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_tensor_v3": tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
        "numpy.ndarray": array, "numpy.dtype": dtype, "numpy.core.multiarray.scalar": scalar,
        "numpy.core.multiarray._reconstruct": lambda *_: np.ndarray.__new__(array, (0,)),
    }  # fmt: skip
    for module in ("pathlib", "pathlib._local"):
        for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
            makers[f"{module}.{kind}"] = path
    return makers
