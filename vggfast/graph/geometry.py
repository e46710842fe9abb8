"""How a map lies over the image: what a cell of it sees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vggfast.graph.layers import Conv, MaxPool
from vggfast.graph.recognise import Node


@dataclass(frozen=True)
class Geometry:
    """Of a trunk.

    Attributes:
        in_channels, out_channels: of the image and of the map.
        stride: pixels of a cell of the map along an axis.
        reach: pixels that a cell sees beyond its own on each side.
    """

    in_channels: int
    out_channels: int
    stride: int
    reach: int


def geometry(trunk: Iterable[Node]) -> Geometry:
    """The geometry of a trunk.

    Raises:
        ValueError: it has no convolution, or a pool that rounds sizes up; the text names it.
    """
    stride, reach = 1, 0
    channels: list[int] = []
    for node in trunk:
        match node.layer:
            case Conv(weight):
                reach += weight.shape[2] // 2 * stride
                channels += [weight.shape[1], weight.shape[0]]
            case MaxPool(ceil_mode):
                if ceil_mode:
                    raise ValueError(f"{node.path} must be a pool whose ceil_mode is False, got {node.module}")
                stride *= 2
    if not channels:
        raise ValueError("model must have a convolution before its head, got none")
    return Geometry(channels[0], channels[-1], stride, reach)
