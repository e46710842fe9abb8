"""Layers of 8 bits in a network of float32: which they are, and their scales.

The input of such a layer, at least 0 behind a ReLU, lies as 0 to 255 times one scale: the one with the least mean
squared error on sample images, of those that cut the largest values off or do not. The weights lie as -127 to 127 times
a scale for each output channel, that of the largest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vggfast.engine.calibrate import Calibration
from vggfast.graph.layers import Conv, Layer, Linear, Quantised, QuantisedConv, QuantisedLinear, Relu

LARGEST, LARGEST_WEIGHT = 255, 127
MOST_PRODUCTS = 2**31 // (LARGEST * 128)  # whose sum surely fits in int32, with weights of -128 too
BINS = 4096  # of histograms: 16 to a step of the finest scale that is tried
CUTS = 96  # scales that are tried, from a quarter of the largest on


class Int8(Calibration):
    """Makes layers of 8 bits of a network's convolutions and FC layers."""

    def quantise(self, names: Sequence[str]) -> list[Layer | Quantised]:
        """The layers that were added, where they can with 8 bits.

        Raises:
            ValueError: the layers cannot take the images, or put out what is not finite.
        """
        self._find_runs(self._given)
        largest = dict(zip(self.ends, self._largest(names), strict=True))
        readers = _readers(self._given)
        counts = self._histograms({i - 1: largest[i - 1] for i in readers})
        made: list[Layer | Quantised] = list(self._given)
        for i in readers:
            made[i] = quantised(self._given[i], scale_of(counts[i - 1], largest[i - 1]))
        return made

    def _histograms(self, largest: dict[int, float]) -> dict[int, Tensor]:
        """Of the values above 0 that these layers put out, in BINS up to their largest."""
        counts = {end: torch.zeros(BINS, dtype=torch.float64) for end in largest}
        for images in self._batches() if largest else ():
            for end, y in zip(largest, self._exact.run(images, tuple(largest)), strict=True):
                counts[end] += torch.histc(y[y > 0], BINS, 0, largest[end] or 1.0)
        return counts


def _readers(layers: Sequence[Layer]) -> list[int]:
    """The numbers of the layers that can take 8 bits: their input is at least 0."""
    found, positive = [], False
    for i, layer in enumerate(layers):
        if isinstance(layer, Relu):
            positive = True
        elif isinstance(layer, Conv | Linear):
            if positive and layer.weight[0].numel() <= MOST_PRODUCTS:
                found.append(i)
            positive = False
    return found


def scale_of(counts: Tensor, largest: float) -> float:
    """What a step of 8 bits counts, so that the mean squared error is least.

    Args:
        counts: of values above 0, in equal bins up to `largest`.
    """
    if not largest:
        return 1.0
    centres = (torch.arange(len(counts), dtype=torch.float64) + 0.5) * (largest / len(counts))
    scales = torch.linspace(0.25, 1, CUTS, dtype=torch.float64)[:, None] * (largest / LARGEST)
    errors = ((centres / scales).round().clamp(max=LARGEST) * scales - centres).square() @ counts
    return float(scales[errors.argmin()].float())


def quantised(layer: Layer, source: float) -> Quantised:
    """A convolution or FC layer with weights of 8 bits, for an input that lies in units of `source`."""
    assert isinstance(layer, Conv | Linear)
    kind = QuantisedConv if isinstance(layer, Conv) else QuantisedLinear
    weight = layer.weight.detach().double()
    scales = weight.flatten(1).abs().amax(1) / LARGEST_WEIGHT
    scales[scales == 0] = 1
    values = (weight / scales.view(-1, *[1] * (weight.dim() - 1))).round().to(torch.int8)
    bias = None if layer.bias is None else layer.bias.detach().to(torch.float32, copy=True)
    return kind(values.contiguous(), bias, (scales * source).float(), source)
