"""An engine's steps on a GPU: the kernels of our ops, torch's products, and what passes between them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vggfast.engine.plan import E4M3, Plan, Step
from vggfast.graph.layers import Conv, Flatten, Layer, Linear, Lrn, MaxPool, Relu, RowMean, ScaledConv, Windows
from vggfast.ops import _packed
from vggfast.ops._backends import NARROW, Backend, TorchBackend, torch_rounds

Call = Callable[[], Any]


@dataclass(frozen=True)
class Precision:
    """Of activations and weights; `tf32`: products of float32 round their factors to TF32; `e4m3`: convolutions take
    values of e4m3 where that pays."""

    dtype: torch.dtype
    tf32: bool = False
    e4m3: bool = False


PRECISIONS = {
    "fp32": Precision(torch.float32),
    "tf32": Precision(torch.float32, tf32=True),
    "bf16": Precision(torch.bfloat16),
    "fp16": Precision(torch.float16),
    "fp8": Precision(torch.bfloat16, e4m3=True),
}


@dataclass(frozen=True)
class Bound:
    """A plan on an arena: `run` computes `outputs` from `input`, tensors within the arena."""

    input: Tensor
    outputs: tuple[Tensor, ...]
    calls: tuple[Call, ...]
    precision: Precision

    def run(self) -> None:
        float32 = self.precision.dtype == torch.float32
        with torch_rounds(self.precision.tf32, torch.backends.cuda.matmul) if float32 else contextlib.nullcontext():
            for call in self.calls:
                call()


class Steps:
    """What computes the steps of plans: one back end's kernels, in one precision."""

    def __init__(self, backend: Backend | TorchBackend, precision: Precision) -> None:
        self._backend = backend
        self._precision = precision
        self._packed: dict[int, Tensor] = {}  # by the id of the weight, which its layer holds

    @property
    def bytes(self) -> int:
        """Of the weights that were packed."""
        return sum(packed.nbytes for packed in self._packed.values())

    def pack(self, layers: Sequence[Layer]) -> None:
        """Packs the weights that kernels do not read where they lie. Before, and for images that are read by other
        kernels than these, each call packs them."""
        for layer in layers:
            if not isinstance(layer, Conv):
                continue
            channels, size = (layer.weight.shape[1], layer.weight.shape[0]), 32
            x, y = (_nhwc((1, each, size, size), self._precision.dtype) for each in channels)
            possible = ((x, layer.weight, layer.bias, True, pool, y, None) for pool in (False, True))
            if any(_packed.packs(self._backend, "conv_fprop", *args, tf32=self._precision.tf32) for args in possible):
                packed = _packed.pack(self._backend, layer.weight, False, self._precision.tf32)
                self._packed[id(layer.weight)] = packed

    def scratch_of(self, step: Step) -> int:
        """Bytes of a step's scratch memory."""
        if not isinstance(step.layer, Conv) or step.then or _is_scaled(step):
            return 0
        x, y = (_nhwc(each.shape, each.dtype) for each in (step.source, step.target))
        name, *arguments = self._conv(step, x, y)
        return self._backend.workspace(name, *arguments, tf32=self._precision.tf32)

    def takes_block1(self, layers: Sequence[Layer]) -> bool:
        """Whether one kernel computes the first two convolutions, if the layers begin with such, with their ReLUs and
        the pool after them."""
        match layers[:3]:
            case [Conv() as first, _, Conv() as second]:
                pass
            case _:
                return False
        if not isinstance(self._backend, Backend) or not self._backend.has("conv_block1"):
            return False
        if isinstance(second, ScaledConv) and second.leaving:
            return False  # its output is to be of e4m3
        shapes = first.weight.shape[:1] + first.weight.shape[2:], second.weight.shape
        return (
            self._precision.dtype in NARROW
            and first.weight.shape[1] <= 4
            and shapes == ((64, 3, 3), (64, 64, 3, 3))
            and self._backend.ops.has_conv_block1()
        )

    def bind(self, plan: Plan, arena: Tensor) -> Bound:
        calls = [self.call(step, arena) for step in plan.steps if not is_a_view(step)]
        outputs = tuple(output.on(arena) for output in plan.outputs)
        return Bound(plan.input.on(arena), outputs, tuple(calls), self._precision)

    def call(self, step: Step, arena: Tensor) -> Call:
        """What computes a step; not for views."""
        x, y = step.source.on(arena), step.target.on(arena)
        # The kernel before never writes weights: they are packed before the images are copied to the arena.
        run = partial(self._backend.run, tf32=self._precision.tf32, fixed_weights=True)
        match step.layer:
            case ScaledConv() if _is_scaled(step):
                return partial(run, "conv_fprop_scaled", *_scaled_arguments(step, x, y))
            case Conv(weight, bias) if step.then:
                return partial(run, "conv_block1", x, weight, bias, step.then.weight, step.then.bias, y)
            case Conv():
                return partial(run, *self._conv(step, x, y), workspace=arena[step.scratch])
            case MaxPool():
                return partial(run, "max_pool2x2", x, y, None)
            case Lrn(size, alpha, beta, k):
                return partial(run, "lrn_fprop", x, size, float(alpha), float(beta), float(k), y)
            case Relu():
                return partial(torch.clamp, x, min=0, out=y)
            case Flatten(size, by_pixel):
                return partial(_flatten, x, size, y, by_pixel)
            case Windows(size):
                return partial(_windows, x, size, y)
            case Linear(weight, bias):
                return partial(_linear, x, weight.t(), bias, step.relu, y)
            case RowMean():
                return partial(torch.mean, x.view(y.shape[0], -1, x.shape[1]), 1, dtype=y.dtype, out=y)
        raise AssertionError(step.layer)

    def _conv(self, step: Step, x: Tensor, y: Tensor) -> tuple:
        """A convolution's op and its arguments."""
        assert isinstance(step.layer, Conv)
        arguments = x, step.layer.weight, step.layer.bias, step.relu, step.pool, y, None
        packed = self._packed.get(id(step.layer.weight))
        return ("conv_fprop", *arguments) if packed is None else ("conv_fprop_prepacked", *arguments, packed)


def is_a_view(step: Step) -> bool:
    """Whether what the step makes is there already, under another shape."""
    return step.in_place and not isinstance(step.layer, Relu)


def _nhwc(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """What can be said of a tensor before there is an arena: all but its address."""
    return torch.empty(tuple(shape), dtype=dtype, device="meta", memory_format=torch.channels_last)


def _is_scaled(step: Step) -> bool:
    return E4M3 in (step.source.dtype, step.target.dtype)


def _scaled_arguments(step: Step, x: Tensor, y: Tensor) -> tuple:
    layer = step.layer
    assert isinstance(layer, ScaledConv)
    weight, bias, scale = layer.weight, layer.wide_bias, 1.0
    if x.dtype == E4M3:
        assert layer.reading
        assert layer.reading.values is not None
        weight, scale = layer.reading.values, layer.reading.scale
    if y.dtype == E4M3:
        assert layer.leaving
        bias, scale = layer.leaving.values, scale / layer.leaving.scale
    return x, weight, bias, scale, step.relu, step.pool, y


def _flatten(x: Tensor, size: int, rows: Tensor, by_pixel: bool) -> None:
    n, c = x.shape[:2]
    pooled = F.adaptive_avg_pool2d(x, size)
    if by_pixel:
        rows.view(n, size, size, c).copy_(pooled.permute(0, 2, 3, 1))
    else:
        rows.view(n, c, size, size).copy_(pooled)


def _windows(x: Tensor, size: int, rows: Tensor) -> None:
    windows = x.permute(0, 2, 3, 1).unfold(1, size, 1).unfold(2, size, 1)  # (N, rows, columns, C, size, size)
    windows = windows.permute(0, 1, 2, 4, 5, 3)
    rows.view(windows.shape).copy_(windows)


def _linear(x: Tensor, transposed: Tensor, bias: Tensor | None, relu: bool, y: Tensor) -> None:
    if bias is None:
        torch.mm(x, transposed, out=y)
    else:
        torch.addmm(bias, x, transposed, out=y)
    if relu:
        y.relu_()
