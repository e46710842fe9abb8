"""Checkpoints as people save them with torch, in every form of the file: what is read is what torch.load reads."""

from __future__ import annotations

import argparse
import datetime
import mmap
import pathlib
import random
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.fuzz.harness import Different
from vggfast.io import torch_file

_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.complex128, torch.uint16,
    torch.uint32, torch.uint64, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
)  # fmt: skip
_NUMPY = ("f4", "f8", "f2", "i8", "i4", "u1", "?", ">f4", ">i2", "c8", "S5", "U3")


def _tensor(chance: random.Random, shared: list[Tensor]) -> Tensor:
    """Of any dtype and layout, of its own memory or a part of another's."""
    if shared and chance.random() < 0.3:
        found = chance.choice(shared)
    else:
        shape = [chance.choice((0, 1, 1, 2, 3, 7)) for _ in range(chance.choice((0, 1, 1, 2, 3, 4)))]
        dtype = chance.choice(_DTYPES)
        size = dtype.itemsize * int(np.prod(shape, dtype=int))
        content = bytearray(chance.choices((0, 1) if dtype is torch.bool else range(256), k=size))
        found = torch.frombuffer(content, dtype=dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
        shared.append(found)
    match chance.randrange(10):
        case 0 if found.dim() > 1:
            found = found.transpose(0, -1)
        case 1:
            found = found.expand(chance.randint(1, 3), *found.shape)
        case 2 if found.dim() and len(found) > 1:
            found = found[1::2]
        case 3 if found.dim() == 4:
            found = found.to(memory_format=torch.channels_last)
        case 4 if found.is_complex() and found.dtype is not torch.complex32:
            found = found.conj()
        case 5 if found.is_complex() and found.dtype is not torch.complex32:
            found = found.conj().imag
        case 6 if found.is_floating_point() or found.is_complex():
            found = nn.Parameter(found, requires_grad=chance.random() < 0.5)
        case 7:
            found = nn.Buffer(found)
        case 8 if found.is_floating_point() and found.dtype.itemsize > 1:
            found.requires_grad_()
    return found


def _plain(chance: random.Random) -> Any:
    """What is beside weights in checkpoints."""
    kind = chance.choice(_NUMPY)
    array = np.frombuffer(bytes(chance.choices((0, 1, 65), k=6 * np.dtype(kind).itemsize)), kind).copy()
    if array.dtype.kind == "U":  # whose characters are not any numbers
        array = np.array(chance.choices(("", "A", "ü"), k=6), kind)
    return chance.choice(
        (
            None, True, chance.randrange(-5, 5), chance.getrandbits(80), chance.random(), float("nan"), -0.0, "text",
            "ü\N{GRINNING FACE}", b"", b"\0\xff", bytearray(b"ab"), 1 + 2j, (1, 2), [], (), {}, set(), {1, "a"},
            frozenset([1]), slice(1, None, 2), range(3), torch.Size([1, 2]), torch.float16, torch.device("cpu"),
            torch.strided, array, array.reshape(2, 3), np.asfortranarray(array.reshape(2, 3)),
            array[0], np.float64(0.5), np.dtype(kind), argparse.Namespace(lr=0.1, betas=(0.9, 0.999)),
            datetime.datetime(2020, 1, 2, 3, 4), datetime.timedelta(3), pathlib.PurePosixPath("a/b"),
            Counter("abca"), Counter({3: 1}), defaultdict(dict, a={}), OrderedDict(a=1),
        )
    )  # fmt: skip


def _value(chance: random.Random, shared: list[Tensor], seen: list[Any], depth: int = 0) -> Any:
    kind = chance.random()
    if depth and kind < 0.35:
        return _tensor(chance, shared)
    if depth and (kind < 0.6 or depth > 4):
        return _plain(chance)
    if kind < 0.65 and seen:
        return chance.choice(seen)
    items = [_value(chance, shared, seen, depth + 1) for _ in range(chance.choice((0, 1, 3, 5)))]
    kind = chance.choice((list, tuple, dict, dict, OrderedDict))
    if kind in (list, tuple):
        found = kind(items)
    else:
        found = kind((chance.choice((f"layer.{i}.weight", i, (i, "a"), f"ü{i}")), item) for i, item in enumerate(items))
    if kind is OrderedDict and chance.random() < 0.5:
        found._metadata = OrderedDict([("", {"version": 1}), ("layer", {"version": 2})])
    seen.append(found)
    return found


def _save(chance: random.Random, content: Any, path: Path) -> None:
    """By torch.save, with any of its settings."""
    torch.serialization.set_crc32_options(chance.random() < 0.7)
    protocol, archive = chance.choice((2, 2, 3, 4, 5)), chance.random() < 0.6
    try:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=archive)
    finally:
        torch.serialization.set_crc32_options(True)


def _compare(theirs: Any, ours: Any, place: str = "it") -> None:
    """That `ours` is `theirs`, where objects of classes may be their attributes, and Parameters plain tensors."""
    if isinstance(theirs, Tensor):
        same = isinstance(ours, Tensor) and theirs.shape == ours.shape
        # An empty storage that several tensors share has the dtype of any of them.
        same = same and (not theirs.numel() or (theirs.dtype == ours.dtype and _bytes(theirs) == _bytes(ours)))
    elif isinstance(theirs, np.ndarray):
        same = isinstance(ours, np.ndarray) and theirs.dtype == ours.dtype and theirs.shape == ours.shape
        same = same and theirs.tobytes() == ours.tobytes()
    elif isinstance(theirs, Mapping):
        same = isinstance(ours, Mapping) and list(theirs) == list(ours)
        for name in theirs if same else ():
            _compare(theirs[name], ours[name], f"{place}[{name!r}]")
    elif isinstance(theirs, list | tuple):
        same = isinstance(ours, list | tuple) and len(theirs) == len(ours)
        for i, item in enumerate(theirs if same else ()):
            _compare(item, ours[i], f"{place}[{i}]")
    elif isinstance(theirs, argparse.Namespace):
        _compare(vars(theirs), vars(ours), place)
        same = True
    else:
        same = theirs == ours or theirs != theirs or isinstance(theirs, _AS_OTHERS)
    if not same:
        raise Different(f"{place} is {str(ours)[:200]}, and by torch.load {str(theirs)[:200]}")


# What nobody needs of a checkpoint, and is read as something else of the same content.
_AS_OTHERS = (torch.device, torch.layout, range, np.dtype, datetime.datetime, datetime.timedelta)


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg().flatten().clone(memory_format=torch.contiguous_format)
    return plain.as_strided(plain.shape, (1,)).view(torch.uint8).numpy().tobytes()


def case(random: random.Random, folder: Path) -> bool | None:
    """A checkpoint, nested and of all types, in a form of torch's files."""
    content = _value(random, [], [])
    path = folder / "m.pt"
    try:
        _save(random, content, path)
    except RuntimeError:  # of tensors that share memory and have other dtypes
        return False
    try:
        theirs = torch.load(path, weights_only=False)
    except AttributeError:  # dtypes that torch itself does not read in the form of before torch 1.6
        return False
    with open(path, "rb") as file:
        _compare(theirs, torch_file.load(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)))
    return True
