"""Convolutions of e4m3 values in a network of bfloat16: which layers take them, and their scales.

A tensor t lies as e4m3 of t / scale, with one scale for all of it, max|t| / 448, so that its largest value is e4m3's. A
weight's is its own; an activation's is taken from sample images, by a network of float32. Larger ones that come later
become 448 times the scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from vggfast.engine.calibrate import Calibration
from vggfast.engine.plan import E4M3
from vggfast.graph.layers import Conv, Layer, Scaled, ScaledConv

LARGEST = torch.finfo(E4M3).max
LEAST_CHANNELS = 128  # of an input in e4m3: fewer do not fill the 128 bytes of a row that the kernels take at a time


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


class E4m3(Calibration):
    """Makes an engine's layers read and write e4m3."""

    def quantise(self, layers: Sequence[Layer], names: Sequence[str]) -> list[Layer]:
        """The layers, whose weights are in bfloat16, with scales and weights in e4m3 where they take them.

        Raises:
            ValueError: the layers cannot take the images, or put out what is not finite.
        """
        made: list[Layer] = [
            ScaledConv(layer.weight, layer.bias, _wide(given.bias))
            if isinstance(layer, Conv) and isinstance(given, Conv) and _can_leave(layer)
            else layer
            for layer, given in zip(layers, self._given, strict=True)
        ]
        self._find_runs(made)
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


def _wide(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def _e4m3(weight: Tensor) -> tuple[Tensor, float]:
    """A weight in e4m3, as (Cout, K, K, Cin), dense; and its scale."""
    scale = float(weight.abs().amax()) / LARGEST or 1.0
    scaled = (weight.double() / scale).to(E4M3)  # the largest is 448 but for float64's rounding: not yet NaN
    return scaled.contiguous(memory_format=torch.channels_last), scale
