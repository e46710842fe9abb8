"""The core's plans (csrc/plan/plan.h) for an engine on CUDA, in terms of its layers and of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vggfast import _native
from vggfast.graph.layers import Conv, Flatten, Layer, Linear, Lrn, MaxPool, Relu, RowMean, ScaledConv, Windows

ALIGNMENT = 256  # bytes: more than any kernel asks for
E4M3 = torch.float8_e4m3fn
OTHER_KINDS = {Relu: "relu", Lrn: "lrn", RowMean: "row_mean"}

Shape = tuple[int, ...]  # (N, C, H, W), or (rows, values)


@dataclass(frozen=True)
class Activation:
    """Of 4 axes, it lies as NHWC."""

    shape: Shape
    dtype: torch.dtype
    offset: int  # in the arena, once the whole plan is made

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def on(self, arena: Tensor) -> Tensor:
        """The tensor in an arena of bytes."""
        flat = arena[self.offset : self.offset + self.bytes].view(self.dtype)
        if len(self.shape) == 2:
            return flat.view(self.shape)
        n, c, h, w = self.shape
        return flat.view(n, h, w, c).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Step:
    """A layer and those fused into it."""

    layer: Layer
    source: Activation
    target: Activation
    relu: bool
    pool: bool
    then: Conv | None  # of block 1 in one step: its second convolution, between a ReLU and another
    in_place: bool  # whether the target lies where the source does
    scratch: slice  # of the arena


@dataclass(frozen=True)
class Plan:
    input: Activation
    steps: tuple[Step, ...]
    outputs: tuple[Activation, ...]  # in the order of the layers
    bytes: int  # of the arena


def _described(layers: Sequence[Layer]) -> list[Any]:
    """The layers as the planner sees them."""
    describe = _native.load().plan.Layer

    def described(layer: Layer) -> Any:
        match layer:
            case Conv(weight):
                scaled = layer if isinstance(layer, ScaledConv) else None
                pools = weight.shape[2] == 3 or not scaled  # the kernels of e4m3 fuse no pool after a 1x1 convolution
                leaves = _name(E4M3) if scaled and scaled.leaving else None
                return describe("conv", weight.shape[1], weight.shape[0], fuses_pool=pools, leaves=leaves)
            case Linear(weight):
                return describe("linear", weight.shape[1], weight.shape[0])
            case MaxPool(ceil_mode):
                return describe("max_pool", ceil_mode=ceil_mode)
            case Flatten(size, by_pixel):
                return describe("flatten", size=size, nhwc_rows=by_pixel)
            case Windows(size, by_pixel):
                return describe("windows", size=size, nhwc_rows=by_pixel)
        return describe(OTHER_KINDS[type(layer)])

    return list(map(described, layers))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def fuse(layers: Sequence[Layer], outputs: Sequence[int], *, block1: bool = False) -> list[Any]:
    """The layers up to the last of `outputs`, in the longest runs that one step computes: `first`, `last`, `relu`,
    `pool` and `block1` of each. An output ends a run."""
    return _native.load().plan.fuse(_described(layers), outputs, block1)


def output_shapes(layers: Sequence[Layer], images: Shape, outputs: Sequence[int]) -> list[Shape]:
    """The shapes of the outputs of the layers of these numbers, ascending, for images of this shape.

    Raises:
        ValueError: a layer cannot take its input.
    """
    return _native.load().plan.output_shapes(_described(layers), images, outputs)


def make_plan(
    layers: Sequence[Layer],
    images: Shape,
    outputs: Sequence[int],
    dtype: torch.dtype,
    scratch_of: Callable[[Step], int],
    *,
    block1: bool = False,
) -> Plan:
    """Args:
    images: their shape (N, C, H, W), none of it 0.
    outputs: the numbers of the layers whose outputs are asked for, ascending.
    dtype: of activations, but for those that leave as e4m3 and those that are means of rows.
    scratch_of: the bytes of scratch memory that a step takes.
    block1: whether one step computes the network's first two convolutions with their ReLUs and the pool after them.
    """

    def activation(made: Any) -> Activation:
        return Activation(made.shape, getattr(torch, made.dtype), made.offset)

    def step(made: Any, source: Activation, target: Activation) -> Step:
        then: Any = layers[made.first + 2] if made.block1 else None
        scratch = slice(made.scratch_offset, made.scratch_offset + made.scratch_bytes)
        return Step(layers[made.first], source, target, made.relu, made.pool, then, made.in_place, scratch)

    plan = _native.load().plan.make_plan(
        _described(layers),
        images,
        outputs,
        dtype=_name(dtype),
        alignment=ALIGNMENT,
        block1=block1,
        scratch=lambda made, source, target: scratch_of(step(made, activation(source), activation(target))),
    )
    activations = list(map(activation, plan.activations))
    steps = tuple(map(step, plan.steps, activations, activations[1:]))
    requested = tuple(each for each, made in zip(activations, plan.activations, strict=True) if made.output >= 0)
    return Plan(activations[0], steps, requested, plan.bytes)
