"""Forms of one tensor: the same values laid out in every way that torch knows, and what no kernel takes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

Random = random.Random
Form = Callable[[Random, Tensor], Any]

# ---- tensors of the same values, otherwise laid out -----------------------------------------------------------------


def _offset(random: Random, t: Tensor) -> Tensor:
    gap = random.randint(1, 9)
    held = t.new_zeros(t.numel() + 2 * gap)
    held[gap : gap + t.numel()] = t.reshape(-1)
    return held[gap : gap + t.numel()].view(t.shape)


def _unaligned(random: Random, t: Tensor) -> Tensor:
    """At an address that is no multiple of the dtype's size."""
    held = bytearray(t.numel() * t.itemsize + 8)
    shift = random.randint(1, 7)
    if not t.numel():
        return t
    out = torch.frombuffer(held, dtype=t.dtype, count=t.numel(), offset=shift)
    return out.copy_(t.reshape(-1)).view(t.shape)


def _permuted(random: Random, t: Tensor) -> Tensor:
    order = random.sample(range(t.dim()), t.dim())
    return t.permute(order).contiguous().permute([order.index(i) for i in range(t.dim())])


def _strided(random: Random, t: Tensor) -> Tensor:
    axis = random.randrange(t.dim())
    held = t.repeat_interleave(2, axis)
    return held[(slice(None),) * axis + (slice(random.randint(0, 1), None, 2),)]


def _odd_strides(random: Random, t: Tensor) -> Tensor:
    """Where an extent is 1, its stride says nothing."""
    strides = [
        random.choice([0, 1, 7, 1000, stride]) if n == 1 else stride
        for n, stride in zip(t.shape, t.stride(), strict=True)
    ]
    return t.as_strided(t.shape, strides)


def _expanded(random: Random, t: Tensor) -> Tensor:
    axis = random.randrange(t.dim())
    return t.narrow(axis, 0, 1).expand(t.shape) if t.shape[axis] else t


def _overlapping(random: Random, t: Tensor) -> Tensor:
    strides = [random.randint(0, 3) for _ in t.shape]
    held = t.new_empty(1 + sum((n - 1) * s for n, s in zip(t.shape, strides, strict=True)) if t.numel() else 0)
    values = t.reshape(-1)
    held[:] = values[torch.arange(len(held)) % max(len(values), 1)]
    return held.as_strided(t.shape, strides)


def _negative(random: Random, t: Tensor) -> Tensor:
    if not t.is_floating_point():
        return t
    if random.random() < 0.5 or t.dtype not in (torch.float32, torch.float64):
        return torch._neg_view(t.neg())
    return torch.complex(t, t.neg()).conj().imag


def _part_of_complex(random: Random, t: Tensor) -> Tensor:
    return torch.complex(t, t).real if t.dtype in (torch.float32, torch.float64) else t


def _subclass(random: Random, t: Tensor) -> Tensor:
    return t.as_subclass(_Subclass)


class _Subclass(Tensor):
    pass


SAME: dict[str, Form] = {
    "as it is": lambda random, t: t,
    "channels_last": lambda random, t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
    "offset": _offset,
    "unaligned": _unaligned,
    "permuted": _permuted,
    "strided": _strided,
    "odd strides": _odd_strides,
    "expanded": _expanded,
    "overlapping": _overlapping,
    "negative": _negative,
    "part of complex": _part_of_complex,
    "parameter": lambda random, t: nn.Parameter(t) if t.is_floating_point() else t,
    "subclass": _subclass,
    "inference": lambda random, t: _inference(t),
    "flipped": lambda random, t: t.flip(0).flip(0),
    "transposed": lambda random, t: t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t,
}


def _inference(t: Tensor) -> Tensor:
    with torch.inference_mode():
        return t.clone()


# ---- tensors that no kernel takes -----------------------------------------------------------------------------------


def _resized(t: Tensor, bytes_: int) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(bytes_)
    return t


def _huge(random: Random, t: Tensor) -> Tensor:
    shape = list(t.shape)
    for axis in random.sample(range(t.dim()), random.randint(1, t.dim())):
        shape[axis] = 2 ** random.randint(36, 44)
    device = random.choice(["cpu", "meta"])
    return torch.zeros((), dtype=t.dtype, device=device).expand(shape)


def _quantised(random: Random, t: Tensor) -> Tensor:
    return torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8)


def _wrong_dtype(random: Random, t: Tensor) -> Tensor:
    others = [torch.bool, torch.int8, torch.int64, torch.complex64, torch.float8_e4m3fn, torch.bfloat16, torch.float16,
              torch.float32, torch.float64, torch.uint16, torch.complex32]  # fmt: skip
    return t.to(random.choice([other for other in others if other != t.dtype]))


def _wrong_shape(random: Random, t: Tensor) -> Tensor:
    axis = random.randrange(t.dim())
    return random.choice(
        [
            lambda: t[None],
            lambda: t.select(axis, 0) if t.shape[axis] else t[None],
            lambda: t.reshape(-1)[:1].reshape(()) if t.numel() else t[None],
            lambda: torch.cat([t, t], axis) if t.shape[axis] else t[None],
            lambda: t.narrow(axis, 0, 0),
            lambda: t.reshape(-1),
        ]
    )()


ODD: dict[str, Form] = {
    "coo": lambda random, t: t.to_sparse(),
    "csr": lambda random, t: t.reshape(len(t), -1).to_sparse_csr(),
    "bsr": lambda random, t: torch.ones(4, 4).to_sparse_bsr((2, 2)),
    "mkldnn": lambda random, t: t.float().to_mkldnn(),
    "nested": lambda random, t: torch.nested.nested_tensor([t, t]),
    "jagged": lambda random, t: torch.nested.nested_tensor([t, torch.cat([t, t])], layout=torch.jagged),
    "quantised": _quantised,
    "freed": lambda random, t: _resized(t, 0),
    "cut": lambda random, t: _resized(t, max(t.nbytes - random.randint(1, 8), 0)),
    "fake": lambda random, t: FakeTensorMode().from_tensor(t),
    "meta": lambda random, t: t.to("meta"),
    "huge": _huge,
    "dtype": _wrong_dtype,
    "shape": _wrong_shape,
    "conj": lambda random, t: torch.complex(t.float(), t.float()).conj(),
    "numpy": lambda random, t: t.numpy(),
    "list": lambda random, t: t.tolist(),
    "none": lambda random, t: None,
    "text": lambda random, t: "x",
    "number": lambda random, t: 3,
    "lazy": lambda random, t: nn.UninitializedParameter(),
}
