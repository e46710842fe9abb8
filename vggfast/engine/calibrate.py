"""Convolutions of e4m3 values in a network of bfloat16: which layers take them, their scales, and what they cost.

A tensor t lies as e4m3 of t / scale, with one scale for all of it, max|t| / 448, so that its largest value is e4m3's. A
weight's is its own; an activation's is taken from sample images, by a network of float32. Larger ones that come later
become 448 times the scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from vggfast.engine.options import Deviation, Network
from vggfast.engine.plan import E4M3, fuse, output_shapes
from vggfast.graph.layers import Conv, Layer, Scaled, ScaledConv

LARGEST = torch.finfo(E4M3).max
LEAST_CHANNELS = 128  # of an input in e4m3: fewer do not fill the 128 bytes of a row that the kernels take at a time
IMAGES_AT_A_TIME = 8  # of those for calibration: every layer's output is kept in float32 meanwhile

Outputs = Callable[[Tensor], Iterable[Tensor]]  # of each step, for these images, in float32


def _can_leave(layer: Layer) -> bool:
    """Whether conv_fprop_scaled takes the layer's input as bfloat16."""
    return isinstance(layer, Conv) and layer.weight.shape[1] % 8 == 0


def _can_read(layer: Layer) -> bool:
    """Whether it takes the input as e4m3, whatever the output, and that pays. What makes such an input has whole 16s of
    output channels then, as e4m3 needs."""
    if not isinstance(layer, Conv):
        return False
    cout, cin = layer.weight.shape[:2]
    return cin >= LEAST_CHANNELS and cin % 16 == 0 and cout % 8 == 0


class Calibration:
    """Makes an engine's layers read and write e4m3, and says what that costs.

    Args:
        exact: a network of float32 without layers, on the images' device.
        images: (N, C, H, W).
    """

    def __init__(self, exact: Network, images: Tensor) -> None:
        if 0 in images.shape:
            raise ValueError(f"calibration must have no empty axis, got shape {tuple(images.shape)}")
        self._exact = exact
        self._images = images
        self._given: list[Layer] = []
        self._runs: list[Any] = []  # of layers that one kernel computes, as `fuse` finds them

    def add(self, layer: Layer) -> None:
        """The network's next layer, its weights as they were given."""
        self._given.append(layer)
        self._exact.add(layer)

    def quantise(self, layers: Sequence[Layer], names: Sequence[str]) -> list[Layer]:
        """The layers, whose weights are in bfloat16, with scales and weights in e4m3 where they take them.

        Raises:
            ValueError: the layers cannot take the images, or put out what is not finite.
        """
        last = len(layers) - 1
        try:
            output_shapes(layers, tuple(self._images.shape), (last,))
        except ValueError as error:
            raise ValueError(f"calibration does not fit: {error}") from None
        made: list[Layer] = [
            ScaledConv(layer.weight, layer.bias, _wide(given.bias))
            if isinstance(layer, Conv) and isinstance(given, Conv) and _can_leave(layer)
            else layer
            for layer, given in zip(layers, self._given, strict=True)
        ]
        self._runs = fuse(made, (last,))
        scales = [largest / LARGEST if largest else 1.0 for largest in self._largest(names)]
        for (run, following), scale in zip(pairwise(self._runs), scales, strict=False):
            writer, reader, given = made[run.first], made[following.first], self._given[following.first]
            if isinstance(writer, ScaledConv) and isinstance(reader, ScaledConv) and _can_read(reader):
                assert isinstance(given, Conv)
                bias = None if writer.wide_bias is None else writer.wide_bias / scale
                made[run.first] = replace(writer, leaving=Scaled(bias, scale))
                weight, own = _e4m3(given.weight)
                made[following.first] = replace(reader, reading=Scaled(weight, scale * own))
        return made

    def deviation(self, outputs: Outputs, names: Sequence[str]) -> Deviation:
        """Of the network whose steps put out what `outputs` says, from the exact one."""
        sums = torch.zeros(len(self._runs), 2, dtype=torch.float64, device=self._images.device)
        agreeing = 0
        for images in self._batches():
            y = expected = images
            for i, (y, expected) in enumerate(zip(outputs(images), self._outputs(images), strict=True)):
                exact = expected.double()
                sums[i] += torch.stack([(y - exact).square().sum(), exact.square().sum()])
            if len(self._given) > len(names):
                agreeing += int((y.argmax(1) == expected.argmax(1)).sum())
        errors = [(off / (total or 1)) ** 0.5 for off, total in sums.tolist()]
        ends = [run.last for run in self._runs]
        layers = {names[end]: error for end, error in zip(ends, errors, strict=True) if end < len(names)}
        top1 = agreeing / len(self._images) if len(self._given) > len(names) else None
        return Deviation(errors[-1], top1, layers)

    def _batches(self) -> Iterator[Tensor]:
        return iter(self._images.split(IMAGES_AT_A_TIME))

    def _outputs(self, images: Tensor) -> list[Tensor]:
        """Of each run, exactly."""
        return self._exact.run(images, tuple(run.last for run in self._runs))

    def _largest(self, names: Sequence[str]) -> list[float]:
        """The largest absolute value that each run puts out."""
        batches = [torch.stack([y.abs().amax() for y in self._outputs(images)]) for images in self._batches()]
        found: list[float] = torch.stack(batches).amax(0).tolist()  # which keeps NaN
        for run, value in zip(self._runs, found, strict=True):
            if not value < float("inf"):
                name = names[run.last] if run.last < len(names) else "the head"
                raise ValueError(f"calibration must make {name} put out finite values, got {value}")
        return found


def _wide(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def _e4m3(weight: Tensor) -> tuple[Tensor, float]:
    """A weight in e4m3, as (Cout, K, K, Cin), dense; and its scale."""
    scale = float(weight.abs().amax()) / LARGEST or 1.0
    scaled = (weight.double() / scale).to(E4M3)  # the largest is 448 but for float64's rounding: not yet NaN
    return scaled.contiguous(memory_format=torch.channels_last), scale
