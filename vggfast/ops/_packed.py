"""Weights of convolutions as the CUDA kernels read them, kept from one call to the next while they cannot change.

Those kernels read some weights in an order of their own: dgrad's mirrored, others where they do not lie as needed. An
op by itself packs them at each call, for what writes to a tensor through ``.data`` leaves no trace. Only within
:func:`unchanged`, whose caller answers for it that nothing writes so, are they packed once, at the first call. What
torch counts in a tensor's ``_version`` is seen there, too (its fused optimisers it does not count), and so is other
memory in a tensor's place. All that is kept goes when the block ends: for each weight at most the two orders of fprop
and dgrad, and its copy in autocast's dtype.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from vggfast.ops._backends import tf32_allowed


class _Held:
    """What is kept for the memory of one weight, whose life it prolongs, so that nothing else comes to lie there."""

    def __init__(self, weight: Tensor, scope: object) -> None:
        self.weight, self.scope = weight.detach(), scope  # it shares memory and version
        self._version = weight._version
        self._made: dict[Any, Tensor] = {}

    def get(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        if self._version != self.weight._version:
            self._made.clear()
            self._version = self.weight._version
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @property
    def bytes(self) -> int:
        return sum(made.nbytes for made in self._made.values())


_held: dict[int, _Held] = {}  # by the address of the storage


@contextlib.contextmanager
def unchanged(weights: Iterable[Tensor]) -> Iterator[None]:
    """The caller answers for it that until the block ends nothing writes to these weights unless by an operation that
    torch counts: no hook, fused optimiser, other thread or kernel does so through ``.data`` or their address."""
    scope = object()
    for weight in weights:
        if not weight.is_inference():
            _held.setdefault(_address(weight), _Held(weight, scope))
    try:
        yield
    finally:
        for address, held in list(_held.items()):
            if held.scope is scope:
                del _held[address]


def held_bytes() -> int:
    """Bytes of all that is kept now."""
    return sum(held.bytes for held in _held.values())


def run(backend: Any, name: str, weight: Tensor, *args: Any, exact: bool | None) -> None:
    """Runs the back end's "conv_fprop" or "conv_dgrad" for these arguments, `weight` among them."""
    held = _of(weight)
    if held is None or not packs(backend, name, *args):
        backend.run(name, *args, exact=exact)
        return
    lies = weight.storage_offset(), weight.shape, weight.stride(), weight.dtype, weight.is_neg()
    key = (name, *lies, tf32_allowed(), backend.stream(weight))
    made = held.get(key, lambda: pack(backend, weight, name == "conv_dgrad"))
    backend.run(f"{name}_prepacked", *args, made, exact=exact)


def cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """`t.to(dtype)`; of a weight that gradients reach the same tensor each time, which is kept and packed as it is."""
    held = _of(t)
    if held is None or not (t.is_leaf and t.requires_grad and torch.is_grad_enabled()):
        return t.to(dtype)

    def make() -> Tensor:
        made = t.to(dtype)
        _held[_address(made)] = _Held(made, held.scope)
        return made

    return held.get((id(t), dtype), make)


def packs(backend: Any, name: str, *args: Any, tf32: bool | None = None) -> bool:
    """Whether the back end's kernels for these arguments, which may be on the meta device, read packed weights."""
    if not backend.has(f"{name}_prepacked"):
        return False
    nothing = args[0].new_empty(0, dtype=torch.uint8)
    without = backend.workspace(name, *args, tf32=tf32)
    return without > backend.workspace(f"{name}_prepacked", *args, nothing, tf32=tf32)


def pack(backend: Any, weight: Tensor, mirrored: bool, tf32: bool | None = None) -> Tensor:
    """The weights of fprop, or `mirrored` those of dgrad, for the back end's "conv_fprop_prepacked" and the like."""
    size = backend.workspace("conv_pack", weight, mirrored, tf32=tf32)
    packed = backend.empty(weight, (size,), torch.uint8)
    backend.run("conv_pack", weight, mirrored, workspace=packed, tf32=tf32)
    return packed


def _of(weight: Tensor) -> _Held | None:
    if not _held or weight.is_inference():
        return None
    try:
        return _held.get(_address(weight))
    except (NotImplementedError, RuntimeError):  # torch.func's tensors have no storage
        return None


def _address(t: Tensor) -> int:
    return t.untyped_storage()._cdata
