"""The layers that memory bounds, on CUDA: max-pool, LRN and sum-pool, forward and backward, by vggfast and by torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import vggfast.ops
from gpu import choice
from gpu.candidates import FORMATS, Candidate, reason

LRN = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}  # the paper's, section 2.1
POOLS = ((64, 224), (128, 112), (256, 56), (512, 28), (512, 14))
MAPS = (1000, 12)  # classes, and height of a dense evaluation's map


class Case(NamedTuple):
    """An op and the (N, C, H, H) of its input."""

    op: str
    channels: int
    size: int
    batch: int
    dtype: str

    @property
    def title(self) -> str:
        return f"{self.op}, {self.channels} x {self.size}²"


def cases(batch: int, dtype: str) -> list[Case]:
    found = [Case(f"max_pool {way}", c, size, batch, dtype) for way in ("forward", "backward") for c, size in POOLS]
    found += [Case(f"lrn {way}", 64, 224, batch, dtype) for way in ("forward", "backward")]
    return [*found, Case("sum_pool forward", *MAPS, batch, dtype)]


def _torchs(op: str) -> Callable[[Tensor], Tensor]:
    return {
        "max_pool": lambda x: F.max_pool2d(x, 2),
        "lrn": lambda x: F.local_response_norm(x, **LRN),
        "sum_pool": lambda x: x.mean((2, 3)),
    }[op]


def _ours(op: str) -> Callable[[Tensor], Tensor]:
    return {
        "max_pool": vggfast.ops.max_pool2x2,
        "lrn": lambda x: vggfast.ops.local_response_norm(x, **LRN),
        "sum_pool": vggfast.ops.sum_pool,
    }[op]


class Layer:
    """The input and the gradient of a case, and its candidates."""

    def __init__(self, case: Case) -> None:
        like = {"dtype": choice.torch_dtype(case.dtype), "device": choice.DEVICE}
        self.case = case
        self.op, self.way = case.op.split()
        self.x = torch.randn(case.batch, case.channels, case.size, case.size, **like)
        one = _torchs(self.op)(self.x[:1]).shape
        self.gy = torch.randn(case.batch, *one[1:], **like)

    @property
    def bytes(self) -> int:
        """The least that must move: inputs read and results written once, bits of a mask not counted."""
        item, y = self.x.element_size(), self.gy.numel()
        moved = {"forward": self.x.numel() + y, "backward": self.x.numel() + y}[self.way]
        if self.op == "lrn" and self.way == "backward":
            moved += self.x.numel()
        return item * moved

    def _call(self, op: Callable[[Tensor], Tensor], layout: str) -> Callable[[], Any]:
        x = self.x.contiguous(memory_format=FORMATS[layout])
        if self.way == "forward":
            return lambda: op(x)
        gy = self.gy.contiguous(memory_format=FORMATS[layout])
        x = x.detach().requires_grad_()
        y = op(x)
        return lambda: torch.autograd.grad(y, x, gy, retain_graph=True)[0]

    def candidates(self) -> tuple[dict[str, Candidate], dict[str, str]]:
        """({name: candidate}, {name: why there is none})."""
        found, missing = {}, {}
        try:
            found["vggfast"] = Candidate(self._call(_ours(self.op), "NHWC"), "all")
        except (RuntimeError, TypeError, ValueError) as error:
            missing["vggfast"] = reason(error)
        for layout in FORMATS:
            found[f"eager {layout}"] = Candidate(self._call(_torchs(self.op), layout), "all")
        return found, missing

    def exact(self, _: str) -> Tensor:
        """In float64 by torch: of the same inputs, so that maxima are where they are for all."""
        x = self.x.double().requires_grad_(self.way == "backward")
        y = _torchs(self.op)(x)
        return y if self.way == "forward" else torch.autograd.grad(y, x, self.gy.double())[0]
