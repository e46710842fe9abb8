"""Checks of arguments that all rooms share: each error names the argument, the value it has and what is allowed."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn.parameter import is_lazy

_STRIDED = torch.strided
PLAIN = (Tensor, torch.nn.Parameter)  # no subclasses
_MOST = 2**63 - 1
MOST_WORKERS = 1024  # processes that decode images
MOST_THREADS = 1024  # as csrc/include/vggfast/tensor.h says: more are a mistake, and the runtime would try them


def check_whole(value: Any, name: str, least: int, most: int = _MOST) -> int:
    """The whole number `value`, which must be at least `least` and at most `most`.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is too small or too large.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer | torch.SymInt):
        raise TypeError(f"{name} must be a whole number, got {described(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")
    return int(value) if isinstance(value, np.integer) else value  # type: ignore[return-value]


def check_number(value: Any, name: str) -> float:
    """`value` as a float. Raises TypeError where it is no number."""
    if isinstance(value, bool) or not isinstance(value, float | int | np.number):
        raise TypeError(f"{name} must be a number, got {described(value)}")
    return float(value)


def check_flag(value: Any, name: str) -> bool:
    """`value` as a bool. Raises TypeError where it is none, nor 0 or 1."""
    if value is True or value is False:
        return value
    if not isinstance(value, int | np.bool_) or value not in (0, 1):
        raise TypeError(f"{name} must be True or False, got {described(value)}")
    return bool(value)


def check_flag_or_none(value: Any, name: str) -> bool | None:
    """As :func:`check_flag`, of what may also be None."""
    if value is None:
        return None
    try:
        return check_flag(value, name)
    except TypeError:
        raise TypeError(f"{name} must be True, False or None, got {described(value)}") from None


def check_sequence(values: Any, name: str) -> None:
    """Raises TypeError where something else than several values was given, such as one alone."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Collection):
        raise TypeError(f"{name} must be a sequence, such as [{values!r}], got {described(values)}")


def check_dense(t: Any, name: str) -> None:
    """Raises TypeError for what is no tensor, or a sparse or nested one, whose elements have no strides, and ValueError
    for a parameter of a lazy module that never ran. What stands in for a tensor passes."""
    if type(t) not in PLAIN:
        if not isinstance(t, Tensor):
            if hasattr(type(t), "__torch_function__"):  # as torch.fx has in a tensor's place
                return
            raise TypeError(f"{name} must be a tensor, got {described(t)}")
        if is_lazy(t):
            raise ValueError(f"{name} must be initialised, got {type(t).__name__}: run its lazy module once")
    if t.layout is not _STRIDED or t.is_nested:
        raise TypeError(f"{name} must be a strided tensor, got {'nested' if t.is_nested else t.layout}")


def check_tensors(*optional: str, **tensors: Any) -> None:
    """:func:`check_dense` for all arguments of a call, of which `optional` may be None.

    Raises:
        TypeError: also where one is a fake tensor and another is none, and the fake one's mode forbids that.
    """
    special = False
    for name, t in tensors.items():
        if type(t) in PLAIN and t.layout is _STRIDED and not t.is_nested:
            continue  # at once: small ops take some 20 us
        if t is not None or name not in optional:
            check_dense(t, name)
            special = True
    if special:
        _check_fakes({name: t for name, t in tensors.items() if t is not None})


def _check_fakes(tensors: dict[str, Tensor]) -> None:
    fakes = [name for name, t in tensors.items() if isinstance(t, FakeTensor)]
    others = [name for name in tensors if name not in fakes]
    if fakes and others and not tensors[fakes[0]].fake_mode.allow_non_fake_inputs:  # type: ignore[attr-defined]
        raise TypeError(f"{others[0]} must be a fake tensor, as {fakes[0]} is, got {described(tensors[others[0]])}")


def is_recorded() -> bool:
    """Whether torch records ops instead of running them (jit.trace, make_fx, export, modes of fake tensors): what runs
    beside torch would become a constant there, or memory that nobody wrote."""
    proxy, fake = torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FAKE
    modes = (torch._C._get_dispatch_mode(proxy), torch._C._get_dispatch_mode(fake))
    return torch.jit.is_tracing() or any((*modes, torch._ops._get_dispatch_mode_pre_dispatch(proxy)))


def check_memory(t: Tensor, name: str) -> None:
    """Raises unless all elements of `t` are in memory, by strides.

    Raises:
        TypeError: as check_dense; or its elements lie elsewhere, as those of a fake tensor or within torch.func.
        ValueError: its storage was freed, or cut.
    """
    try:
        held = t.untyped_storage().nbytes() - t.storage_offset() * t.itemsize
    except (RuntimeError, NotImplementedError):
        check_dense(t, name)
        raise TypeError(f"{name} must be a tensor with memory of its own, got {described(t)}") from None
    if held < t.nbytes != 0 and held < (needed := _extent(t) * t.itemsize):
        raise ValueError(f"{name} must have {needed} bytes of memory for shape {tuple(t.shape)}, got {held}: freed?")


def _extent(t: Tensor) -> int:
    """From a tensor's first element to its last, in elements."""
    return 1 + sum((extent - 1) * stride for extent, stride in zip(t.shape, t.stride(), strict=True))


def check_room(shape: Sequence[int], dtype: torch.dtype) -> int:
    """The bytes of a tensor on the CPU. Raises MemoryError where they are more than the machine has."""
    bytes_ = math.prod(shape) * dtype.itemsize
    if bytes_ > _machine_bytes():
        raise no_memory(shape, dtype)
    return bytes_


def no_memory(shape: Sequence[int], dtype: torch.dtype) -> MemoryError:
    bytes_ = math.prod(shape) * dtype.itemsize
    return MemoryError(f"a tensor of shape {tuple(shape)} and {dtype} needs {bytes_} bytes, more memory than there is")


@functools.cache
def _machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")


def described(value: Any) -> str:
    """What an error says of a value of the wrong kind."""
    if value is None or isinstance(value, int | float | complex):
        return repr(value)
    kind = type(value)
    room = kind.__module__.partition(".")[0]
    name = kind.__name__ if room == "builtins" else f"{room}.{kind.__name__}"
    if isinstance(value, str):
        return f"{name} {value[:40]!r}"
    return f"{name} of shape {tuple(value.shape)}" if isinstance(value, Tensor | np.ndarray) else name
