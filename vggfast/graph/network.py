"""A whole network: its convolutional layers and its head, from the model that somebody hands in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vggfast._checks import PLAIN, check_memory, described
from vggfast.graph.fuse import fold
from vggfast.graph.guard import check, check_hooks, is_optimized, kind_of, known_class, unknown
from vggfast.graph.layers import (
    AveragePool,
    BatchNorm,
    Conv,
    Elementwise,
    Flatten,
    Layer,
    Linear,
    Lrn,
    MaxPool,
    Relu,
    RowMean,
    Rows,
    WindowConv,
    Windows,
)  # fmt: skip
from vggfast.graph.names import trunk_names
from vggfast.graph.recognise import Node, recognise, recognise_one

_TRUNK = "a 3x3 or 1x1 convolution that keeps the size, batch norm, ReLU, LRN, a 2x2 max-pool or dropout"
_HEAD = "an FC layer, ReLU or dropout"


@dataclass(frozen=True)
class Head:
    """FC layers behind a map.

    Attributes:
        nodes: those with a Linear, and what stands between and around them.
        size: cells along an axis of the window that the first reads.
        dense: whether it runs on every window of the map and its scores are averaged (the paper's section 3.2); else
            on the map's average over a grid of size x size.
    """

    nodes: tuple[Node, ...]
    size: int
    dense: bool

    @property
    def weights(self) -> list[Tensor]:
        """(outputs, inputs) of each FC layer. Raises ValueError where there is none."""
        found = [node.layer.weight for node in self.nodes if isinstance(node.layer, Linear)]
        if not found:
            raise ValueError("classifier must have an FC layer, got none")
        return found

    def layers(self) -> Iterator[Layer]:
        """In order. Raises TypeError where a layer is no engine's."""
        yield Windows(self.size) if self.dense else Flatten(self.size)
        for node in self.nodes:
            if isinstance(node.layer, Elementwise):
                raise unknown(node.path, node.module, f"a layer of a head must be {_HEAD}")
            if node.layer is not None:
                yield node.layer  # type: ignore[misc]
        if self.dense:
            yield RowMean()


@dataclass(frozen=True)
class Network:
    """The layers of a model as :func:`whole` found them, or a part of them."""

    trunk: tuple[Node, ...]
    head: Head | None

    @property
    def device(self) -> torch.device:
        """Where the first tensor is; the CPU for a network without one."""
        return next((tensor.device for _, tensor in self.tensors()), torch.device("cpu"))

    def trunk_layers(self) -> Iterator[tuple[Layer, str]]:
        """The layers before the head in order, batch norm folded, each with the name of its output."""
        return ((node.layer, name) for name, node in trunk_names(fold(self.trunk)))  # type: ignore[misc]

    def check_values(self) -> None:
        """Raises TypeError where a tensor is fake or on the meta device, and ValueError where its memory was freed."""
        for path, tensor in self.tensors():
            if tensor.is_meta or type(tensor) not in PLAIN:
                raise TypeError(f"{path} must have tensors with values, got {described(tensor)} on {tensor.device}")
            check_memory(tensor, path)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor of a layer, with the path of its module."""
        for node in (*self.trunk, *(self.head.nodes if self.head else ())):
            for value in vars(node.layer).values() if node.layer else ():
                if isinstance(value, Tensor):
                    yield node.path, value


def whole(model: Any, head: bool = True) -> Network:
    """The layers of a VGG, ours or torchvision's, or of an ``nn.Sequential`` of convolutional layers.

    Args:
        model: the network. Its training mode does not matter: the layers are those of evaluation mode.
        head: False leaves the FC layers out, whatever they are.

    Raises:
        TypeError: a module whose code or settings are not known, of the model itself or in it; the text names it and
            what is not known about it.
    """
    if is_optimized(model):
        check_hooks("model", model)
        model = model._orig_mod  # torch.compile changes how it is computed, not what
    if isinstance(model, nn.Sequential):
        network = Network(_trunk(model, "model"), None)
    else:
        check_model(model)
        network = Network(_trunk(getattr(model, "features", None), "features"), head_of(model) if head else None)
    width = _check_widths(network.trunk)
    if network.head:
        _check_widths(network.head.nodes, width and width * network.head.size**2)
    return network


def _check_widths(nodes: Sequence[Node], width: int | None = None) -> int | None:
    """How many channels or values come out of some layers into which `width` go; None where that is not known.

    Raises TypeError where a layer takes another number than the one before it puts out.
    """
    for node in nodes:
        match node.layer:
            case Conv(weight) | Linear(weight):
                outputs, inputs = weight.shape[:2]
            case BatchNorm(mean):
                outputs = inputs = len(mean)
            case _:
                continue
        if width not in (None, inputs):
            raise unknown(node.path, node.module, f"it must have {width} inputs, as many as reach it, got {inputs}")
        width = outputs
    return width


def head_of(model: Any) -> Head | None:
    """The FC layers of a VGG; None where it has none. Raises as :func:`whole`."""
    check_model(model)
    classifier = getattr(model, "classifier", None)
    match model.head if hasattr(known_class(model), "head") else "linear":  # torchvision's are all linear
        case "none":
            return None
        case "conv":
            return _dense_head(classifier)
    return linear_head(getattr(model, "avgpool", None), classifier)


def check_model(model: Any) -> None:
    """Raises TypeError where a model's own forward is no known VGG's."""
    kind = known_class(model) if isinstance(model, nn.Module) else None
    if kind is None or kind.__name__ != "VGG":
        raise TypeError(
            f"model must be a VGG of vggfast or torchvision, or an nn.Sequential of its layers, got {kind_of(model)}"
        )
    check("model", model)


def _trunk(features: Any, path: str) -> tuple[Node, ...]:
    kinds = (Conv, BatchNorm, Relu, MaxPool, Lrn)
    return _only(recognise(features, path), kinds, f"a layer before the head must be {_TRUNK}")


def _only(nodes: Sequence[Node], kinds: tuple[type, ...], why: str) -> tuple[Node, ...]:
    for node in nodes:
        if node.layer is not None and not isinstance(node.layer, kinds):
            raise unknown(node.path, node.module, why)
    return tuple(nodes)


def _classifier(classifier: Any) -> list[Node]:
    if isinstance(classifier, nn.Sequential):
        return recognise(classifier, "classifier")
    return [recognise_one(classifier, "classifier")]


def linear_head(avgpool: Any, classifier: Any) -> Head:
    """The head of FC layers behind an average pool. Raises as :func:`whole`."""
    pool = recognise_one(avgpool, "avgpool")
    if not isinstance(pool.layer, AveragePool):
        raise unknown("avgpool", avgpool, "it must be an nn.AdaptiveAvgPool2d")
    nodes = [replace(node, layer=None) if isinstance(node.layer, Rows) else node for node in _classifier(classifier)]
    why = f"a layer of a head behind avgpool must be {_HEAD}"
    return _head(nodes, pool.layer.size, False, why)


def _dense_head(classifier: Any) -> Head:
    """The head whose FC layers are convolutions, the first of them on windows."""
    nodes: list[Node] = []
    size = None
    why = "a layer of a dense head must be a 1x1 convolution (the first, any without padding), ReLU or dropout"
    for node in _classifier(classifier):
        if isinstance(node.layer, Conv | WindowConv):
            weight = node.layer.weight
            extent = weight.shape[2]
            padded = isinstance(node.layer, Conv) and extent > 1
            if padded or (size is not None and extent > 1):
                raise unknown(node.path, node.module, why)
            size = size or extent
            node = replace(node, layer=Linear(weight.flatten(1), node.layer.bias))
        elif isinstance(node.layer, Linear):  # which would run along the rows of a map
            raise unknown(node.path, node.module, why)
        nodes.append(node)
    return _head(nodes, size or 1, True, why)


def _head(nodes: Sequence[Node], size: int, dense: bool, why: str) -> Head:
    head = Head(_only(nodes, (Linear, Relu, Elementwise), why), size, dense)
    _check_widths(head.nodes)
    first = next((node for node in head.nodes if isinstance(node.layer, Linear)), None)
    if first and (inputs := first.layer.weight.shape[1]) % size**2:  # type: ignore[union-attr]
        raise unknown(first.path, first.module, f"it must have a multiple of {size} x {size} inputs, got {inputs}")
    return head
