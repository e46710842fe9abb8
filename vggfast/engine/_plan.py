"""What an engine on CUDA does for one shape of images: fused steps, and where in one arena their activations lie.

Activations go to and fro between the two ends of the arena: a step reads one end and writes the other, its scratch
memory lies between, and the arena is as large as the largest step. Outputs that later steps do not end with (taps) lie
before it, where nothing overwrites them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vggfast.graph.layers import Conv, Flatten, Layer, Linear, MaxPool, Relu, RowMean, ScaledConv, Windows

ALIGNMENT = 256  # bytes: more than any kernel asks for
E4M3 = torch.float8_e4m3fn

Shape = tuple[int, ...]  # (N, C, H, W), or (rows, values)


@dataclass(eq=False)
class Place:
    """A part of the arena, of one activation or of several that are written over each other."""

    bytes: int
    output: bool = False  # whether a caller gets what is there
    offset: int = 0


@dataclass(frozen=True)
class Activation:
    """Of 4 axes, it lies as NHWC."""

    shape: Shape
    dtype: torch.dtype
    place: Place

    def on(self, arena: Tensor) -> Tensor:
        """The tensor in an arena of bytes."""
        begin = self.place.offset
        flat = arena[begin : begin + bytes_of(self.shape, self.dtype)].view(self.dtype)
        if len(self.shape) == 2:
            return flat.view(self.shape)
        n, c, h, w = self.shape
        return flat.view(n, h, w, c).permute(0, 3, 1, 2)


@dataclass
class Step:
    """A layer and those fused into it."""

    layer: Layer
    source: Activation
    target: Activation
    relu: bool = False
    pool: bool = False
    then: Conv | None = None  # of block 1 in one step: its second convolution, between a ReLU and another
    scratch: Place = field(default_factory=lambda: Place(0))


@dataclass(frozen=True)
class Plan:
    input: Activation
    steps: tuple[Step, ...]
    outputs: tuple[Activation, ...]  # in the order of the layers
    bytes: int  # of the arena


@dataclass(frozen=True)
class Fused:
    """Layers [first, last] that one step computes."""

    first: int
    last: int
    relu: bool
    pool: bool
    then: Conv | None = None


def bytes_of(shape: Shape, dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def shape_after(layer: Layer, shape: Shape, images: int) -> Shape:
    """The shape that a layer makes of its input's.

    Raises:
        ValueError: it cannot take it.
    """
    match layer:
        case Conv(weight):
            if shape[1] != weight.shape[1]:
                raise ValueError(f"x must have {weight.shape[1]} channels, got {shape[1]}")
            return (shape[0], weight.shape[0], *shape[2:])
        case MaxPool(ceil_mode):
            n, c, h, w = shape
            oh, ow = ((extent + ceil_mode) // 2 for extent in (h, w))
            if oh == 0 or ow == 0:
                raise ValueError(f"x is too small: a max-pool needs at least 2 x 2 pixels, got {h} x {w}")
            return (n, c, oh, ow)
        case Flatten(size):
            return (shape[0], shape[1] * size * size)
        case Windows(size):
            n, c, h, w = shape
            if h < size or w < size:
                raise ValueError(f"x is too small: the head needs at least {size} x {size} places, got {h} x {w}")
            return (n * (h - size + 1) * (w - size + 1), c * size * size)
        case Linear(weight):
            if shape[1] != weight.shape[1]:
                raise ValueError(f"the head needs rows of {weight.shape[1]} values, got {shape[1]}")
            return (shape[0], weight.shape[0])
        case RowMean():
            return (images, shape[1])
    return shape


def output_shapes(layers: Sequence[Layer], shape: Shape, wanted: Sequence[int]) -> list[Shape]:
    """The shapes of the outputs of the layers `wanted`, ascending, for images of this shape.

    Raises:
        ValueError: a layer cannot take its input.
    """
    images, shapes = shape[0], []
    for i, layer in enumerate(layers[: wanted[-1] + 1]):
        shape = shape_after(layer, shape, images)
        if i in wanted:
            shapes.append(shape)
    return shapes


def no_block(first: Conv, second: Conv) -> bool:
    return False


def fuse(
    layers: Sequence[Layer], wanted: Sequence[int], takes_block: Callable[[Conv, Conv], bool] = no_block
) -> list[Fused]:
    """The layers up to the last output, in the longest runs that a step computes: none but the last of a run is an
    output. `takes_block` says whether one step computes the network's first two convolutions with their ReLUs and the
    pool after them."""
    count = wanted[-1] + 1

    def follower(end: int) -> Layer | None:
        """Layer `end`, where nobody else reads its input."""
        return layers[end] if end < count and end - 1 not in wanted else None

    runs = []
    first = 0
    match layers[:5]:
        case [Conv() as one, Relu(), Conv() as two, Relu(), MaxPool(False)] if wanted[0] >= 4 and takes_block(one, two):
            runs.append(Fused(0, 4, True, True, two))
            first = 5
    while first < count:
        end = first + 1
        relu = isinstance(layers[first], Conv | Linear) and isinstance(follower(end), Relu)
        end += relu
        pool = _fuses_pool(layers[first]) and follower(end) == MaxPool(ceil_mode=False)
        end += pool
        runs.append(Fused(first, end - 1, relu, pool))
        first = end
    return runs


def _fuses_pool(layer: Layer) -> bool:
    """The kernels of e4m3 have no pool after a 1x1 convolution."""
    return isinstance(layer, Conv) and (layer.weight.shape[2] == 3 or not isinstance(layer, ScaledConv))


def make_plan(
    layers: Sequence[Layer],
    shape: Shape,
    wanted: Sequence[int],
    dtype: torch.dtype,
    scratch_of: Callable[[Step], int],
    takes_block: Callable[[Conv, Conv], bool] = no_block,
) -> Plan:
    """Args:
    shape: of the images (N, C, H, W), none of it 0.
    wanted: the layers whose outputs the caller gets, ascending.
    dtype: of activations, but for those that leave as e4m3 and those that are means of rows.
    scratch_of: the bytes of scratch memory that a step needs.
    takes_block: see :func:`fuse`.
    """
    images = shape[0]
    first = value = Activation(shape, dtype, Place(bytes_of(shape, dtype)))
    steps, outputs = [], []
    for run in fuse(layers, wanted, takes_block):
        layer = layers[run.first]
        for each in layers[run.first : run.last + 1]:
            shape = shape_after(each, shape, images)
        made = _dtype_after(layer, run.last in wanted, dtype)
        place = value.place if _in_place(layer, value) else Place(bytes_of(shape, made))
        target = Activation(shape, made, place)
        step = Step(layer, value, target, run.relu, run.pool, run.then)
        step.scratch.bytes = scratch_of(step)
        steps.append(step)
        if run.last in wanted:
            place.output = True
            outputs.append(target)
        value = target
    return Plan(first, tuple(steps), tuple(outputs), _lay_out(steps))


def _dtype_after(layer: Layer, wanted: bool, dtype: torch.dtype) -> torch.dtype:
    """What a run's output leaves in. One that nobody gets ends where the convolution's `leaving` was made for."""
    if isinstance(layer, RowMean):
        return torch.float32
    return E4M3 if isinstance(layer, ScaledConv) and layer.leaving and not wanted else dtype


def _in_place(layer: Layer, source: Activation) -> bool:
    """Whether a layer writes over its input, or leaves it where it is as what it makes of it."""
    if source.place.output:
        return False
    if isinstance(layer, Flatten | Windows):
        return layer.by_pixel and source.shape[2:] == (layer.size, layer.size)
    return isinstance(layer, Relu)


def _lay_out(steps: Sequence[Step]) -> int:
    """Gives each place its offset; the bytes of all."""
    kept = 0
    for place in {step.target.place: None for step in steps if step.target.place is not steps[-1].target.place}:
        if place.output:
            place.offset, kept = kept, kept + aligned(place.bytes)

    def moves(place: Place) -> bool:
        return not place.output or place is steps[-1].target.place

    first = steps[0].source.place
    at_the_end = {first: False} if moves(first) else {}  # of those that go to and fro: which end of the arena
    room = 0
    for step in steps:
        source, target = step.source.place, step.target.place
        if target is not source and moves(target):
            at_the_end[target] = not at_the_end.get(source, True)
        places = {place: None for place in (source, target) if moves(place)}
        room = max(room, sum(aligned(place.bytes) for place in places) + aligned(step.scratch.bytes))
    for place, end in at_the_end.items():
        place.offset = kept + (room - aligned(place.bytes) if end else 0)
    for step in steps:
        near = [place for place in (step.source.place, step.target.place) if at_the_end.get(place) is False]
        step.scratch.offset = kept + (aligned(near[0].bytes) if near else 0)
    return kept + room
