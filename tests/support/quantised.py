"""What networks with layers of 8 bits compute, by torch's own ops: the same integers as an engine's."""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vggfast.graph.layers import (
    Conv,
    Flatten,
    Layer,
    Linear,
    Lrn,
    MaxPool,
    Quantised,
    Relu,
    RowMean,
    Windows,
)  # fmt: skip


def integers(x: Tensor, source: float) -> Tensor:
    """An input of 8 bits, in float64."""
    return (x * (1 / torch.tensor(source))).round().clamp(0, 255).double()


def _sums(layer: Quantised, x: Tensor) -> Tensor:
    q, weight = integers(x, layer.source), layer.weight.double()
    return F.conv2d(q, weight, padding="same") if weight.dim() == 4 else q @ weight.T  # exact: whole numbers below 2^53


def _applied(layer: Layer | Quantised, x: Tensor, images: int) -> Tensor:
    match layer:
        case Quantised(_, bias, unit):
            channels = (1, -1, 1, 1)[: x.dim()]
            y = _sums(layer, x).float() * unit.view(channels)
            return y if bias is None else y + bias.view(channels)
        case Conv(weight, bias):
            return F.conv2d(x, weight, bias, padding="same")
        case Linear(weight, bias):
            return F.linear(x, weight, bias)
        case Relu():
            return x.relu()
        case MaxPool(ceil_mode):
            return F.max_pool2d(x, 2, 2, ceil_mode=ceil_mode)
        case Lrn(size, alpha, beta, k):
            return F.local_response_norm(x, size, alpha, beta, k)
        case Flatten(size):
            return F.adaptive_avg_pool2d(x, size).flatten(1)
        case Windows(size):
            return F.unfold(x, size).transpose(1, 2).flatten(0, 1)
        case RowMean():
            return x.unflatten(0, (images, -1)).mean(1)
    raise AssertionError(layer)


@torch.no_grad()
def outputs(layers: Iterable[Layer | Quantised], x: Tensor) -> Iterator[Tensor]:
    """Of each layer in turn, float32; x: (N, C, H, W)."""
    images = len(x)
    for layer in layers:
        x = _applied(layer, x, images)
        yield x
