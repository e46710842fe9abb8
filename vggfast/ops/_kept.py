"""Weights of convolutions as kernels read them, kept from one call to the next while no gradient changes them.

Kernels on the CPU read weights in an order of their own, Winograd's after a transform, which takes up to two thirds of
a call (``conv_packing`` in csrc/include/vggfast/conv.h says for which calls it counts). The second call with the same
weights keeps them so, beside a copy of what they were made of, and each call after it compares the weights with that
copy, bit by bit: whatever wrote to them, through ``.data`` or NumPy too, is seen. They go when the memory of the
weights goes, when it has other values, and in training. For Winograd's F(m x m, 3 x 3) their size is the weights' times
(m + 2)^2 / 9, and the copy.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Packed(NamedTuple):
    original: Tensor
    packed: Tensor


class _Seen(NamedTuple):
    """What a call leaves that kept nothing."""

    version: int | None


_Key = tuple[int, torch.Size, tuple[int, ...], str]  # where in the memory the weights lie, and the packed ones' layout
_kept: dict[int, tuple[weakref.ref, dict[_Key, _Packed | _Seen]]] = {}  # by the id of the storage


def fprop(
    backend: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    relu: bool,
    pool: bool,
    y: Tensor,
    mask: Tensor | None,
    exact: bool | None,
) -> bool:
    """Runs the back end's "conv_fprop" for these arguments, if there are packed weights for it; returns whether."""
    if weight.dtype != torch.float32 or not backend.has("conv_fprop_packed") or weight.is_neg():
        return False
    if torch.is_grad_enabled() and weight.requires_grad:
        if _kept:
            _kept.pop(id(weight.untyped_storage()), None)
        return False
    layout, size = backend.run("conv_packing", x, weight, relu, pool, exact=exact)
    if not size or not _is_dense(weight):
        return False
    found = _of(weight.untyped_storage())
    key = (int(weight.storage_offset()), weight.shape, weight.stride(), layout)
    version = None if weight.is_inference() else weight._version
    match found.get(key):
        case _Seen(before) if before == version:
            original = weight.detach().clone()
            packed = backend.empty(x, (size,), torch.uint8)
            backend.run("conv_pack", x, original, relu, pool, packed, exact=exact)
            kept = found[key] = _Packed(original, packed)
        case _Packed() as kept:
            pass
        case _:
            found[key] = _Seen(version)
            return False
    if backend.run("conv_fprop_packed", x, weight, *kept, bias, relu, pool, y, mask, exact=exact):
        return True
    found[key] = _Seen(version)
    return False


def _is_dense(weight: Tensor) -> bool:
    return weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)


def _of(storage: torch.UntypedStorage) -> dict[_Key, _Packed | _Seen]:
    """What is kept for the weights in a storage, which takes it along when it goes."""
    number = id(storage)
    reference, found = _kept.get(number, (None, {}))
    if reference is None or reference() is not storage:
        found = {}
        _kept[number] = (weakref.ref(storage, lambda _: _kept.pop(number, None)), found)
    return found
