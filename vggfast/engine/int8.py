"""Layers of 8 bits in a network of float32: which they are, and their scales.

The input of such a layer, at least 0 behind a ReLU, lies as 0 to 255 times one scale: the one with the least mean
squared error on sample images, of those that cut the largest values off or do not. The weights lie as -127 to 127 times
a scale for each output channel, that of the largest; what their rounding adds to the mean output is taken off the bias.
The scales of a network that was quantised elsewhere are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vggfast.engine.calibrate import Calibration
from vggfast.graph import Network, Node
from vggfast.graph.layers import Conv, Layer, Linear, Quantised, QuantisedConv, QuantisedLinear, Relu
from vggfast.quantisation import LARGEST, Quantisation, integers

LARGEST_WEIGHT = 127
MOST_PRODUCTS = (2**31 - 1) // (LARGEST * 128)  # whose sum surely fits in int32, whoever chose the weights
BINS = 4096  # of histograms: 16 to a step of the finest scale that is tried
CUTS = 96  # scales that are tried, from a quarter of the largest on
MOST_ERROR = 0.01  # of the last FC layer alone: the others together make some 0.03, to which this adds 0.002
LEAST = 1e-30  # of a largest value: a layer that has none puts out nothing but zeros, as good as
CHANNELS_AT_A_TIME = 64  # of weights, in float64 meanwhile


@dataclass
class _Input:
    """What sample images show of a layer's input."""

    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))  # of values above 0
    mean: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))  # of each channel or value


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
        inputs = self._inputs({i - 1: largest[i - 1] for i in readers})
        made: list[Layer | Quantised] = list(self._given)
        for i in readers:
            made[i] = quantised(self._given[i], scale_of(inputs[i - 1].counts, largest[i - 1]), inputs[i - 1].mean)
        last = max((i for i, layer in enumerate(self._given) if isinstance(layer, Linear)), default=0)
        if isinstance(fc := made[last], QuantisedLinear) and self._error_of(fc, last) > MOST_ERROR:
            made[last] = self._given[last]
        return made

    def _error_of(self, fc: QuantisedLinear, last: int) -> float:
        """Relative L2 error that 8 bits of this layer alone make of its output, on the first images."""
        rows, exact = self._exact.run(next(self._batches()), (last - 1, last))
        values = (rows / fc.source).round().clamp(max=LARGEST)
        y = F.linear(values, fc.weight * fc.unit[:, None], fc.bias)
        return float((y - exact).norm() / exact.norm().clamp(LEAST))

    def _inputs(self, largest: dict[int, float]) -> dict[int, _Input]:
        """Of what these layers put out, whose largest values are known."""
        found = {end: _Input() for end in largest}
        for images in self._batches() if largest else ():
            for end, y in zip(largest, self._exact.run(images, tuple(largest)), strict=True):
                seen, share = found[end], len(images) / len(self._images)
                seen.counts += torch.histc(y[y > 0], BINS, 0, largest[end] or 1.0)
                seen.mean = seen.mean + y.mean((0, *range(2, y.dim())), dtype=torch.float64) * share
        return found


def with_scales(network: Network, quantisation: Quantisation) -> Network:
    """The network whose layers of 8 bits are those that its own scales name.

    Raises:
        ValueError: there is no such layer, or its weight is none of 8 bits with these scales; the text names it.
    """
    waiting = {path: scales for path, scales in quantisation.layers.items() if scales.source is not None}

    def scaled(nodes: Iterable[Node]) -> Iterator[Node]:
        for node in nodes:
            scales, layer = waiting.pop(node.path, None), node.layer
            if scales is None or scales.source is None or not isinstance(layer, Conv | Linear):
                yield node
            elif scales.weight is None:
                if isinstance(layer, Conv):
                    raise ValueError(f"{node.path} must have a weight of 8 bits, as what it reads, got one of float32")
                yield replace(node, layer=_rounding(layer.weight.shape[1], scales.source))
                yield node
            else:
                kind = QuantisedConv if isinstance(layer, Conv) else QuantisedLinear
                values = integers(f"{node.path}.weight", layer.weight, scales.weight)
                yield replace(node, layer=kind(values, layer.bias, scales.weight * scales.source, scales.source))

    head = network.head and replace(network.head, nodes=tuple(scaled(network.head.nodes)))
    network = Network(tuple(scaled(network.trunk)), head)
    if waiting:
        raise ValueError(f"model.quantisation has scales of {', '.join(waiting)}, which the model does not have")
    return network


def _rounding(values: int, source: float) -> QuantisedLinear:
    """What rounds rows before an FC layer of float32: each of its outputs is one of its inputs."""
    return QuantisedLinear(torch.eye(values, dtype=torch.int8), None, torch.full((values,), source), source)


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
    if largest < LEAST:
        return 1.0
    centres = (torch.arange(len(counts), dtype=torch.float64) + 0.5) * (largest / len(counts))
    scales = torch.linspace(0.25, 1, CUTS, dtype=torch.float64)[:, None] * (largest / LARGEST)
    errors = ((centres / scales).round().clamp(max=LARGEST) * scales - centres).square() @ counts
    return float(scales[errors.argmin()].float())


def quantised(layer: Layer, source: float, mean: Tensor) -> Quantised:
    """A convolution or FC layer with weights of 8 bits.

    Args:
        source: in units of which the input lies.
        mean: of the input's channels or values, (inputs,), float64.
    """
    assert isinstance(layer, Conv | Linear)
    kind = QuantisedConv if isinstance(layer, Conv) else QuantisedLinear
    parts = zip(*(_rounded(part, mean) for part in layer.weight.detach().split(CHANNELS_AT_A_TIME)), strict=True)
    values, scales, bias = map(torch.cat, parts)
    if layer.bias is not None:
        bias += layer.bias.detach()
    unit = (scales * source).float().clamp(torch.finfo(torch.float32).tiny)
    return kind(values, bias.float(), unit, source)


def _rounded(weight: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Some channels' weights in 8 bits, their scales, and what rounding takes off their mean outputs."""
    weight = weight.double()
    scales = weight.flatten(1).abs().amax(1) / LARGEST_WEIGHT
    scales[scales == 0] = 1
    units = scales.view(-1, *[1] * (weight.dim() - 1))
    values = (weight / units).round()
    lost = (weight - values * units).reshape(*weight.shape[:2], -1).sum(2) @ mean
    return values.to(torch.int8).contiguous(), scales, lost
