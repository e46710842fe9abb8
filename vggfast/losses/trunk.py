"""The frozen network behind a loss: where it comes from, what brings images to it, its maps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vggfast._checks import described
from vggfast.graph import fold, trunk_names, whole
from vggfast.graph.layers import Conv, Lrn, MaxPool
from vggfast.layers import Conv1x1, Conv3x3, LocalResponseNorm, MaxPool2x2
from vggfast.nn import FusedSequential
from vggfast.preprocessing import Preprocessing, preprocessing_of
from vggfast.weights.fetch import place_of
from vggfast.weights.files import load_model


def fetched(name: str) -> Path:
    """The file of published weights. Raises FileNotFoundError, with the command that fetches it."""
    path = place_of(name)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weight file; the command `vggfast weights get {name}` fetches it")
    return path


def published_convolutions() -> nn.Module:
    """Those of VGG-16. Raises FileNotFoundError, with the command that fetches them."""
    return load_model(fetched("vgg16-conv"))[0]


Networks = Mapping[str, Callable[[], nn.Module]]
PUBLISHED: Networks = {"vgg16": published_convolutions, "vgg16-conv": published_convolutions}


def check_net(net: Any, named: Networks, name: str = "net") -> None:
    """Raises TypeError or FileNotFoundError for what :func:`find_network` does not take; `name` is the argument's."""
    if isinstance(net, nn.Module) or (isinstance(net, str) and net in named):
        return
    allowed = f"{name} must be {', '.join(map(repr, named))}, a file of vggfast's or a model"
    if not isinstance(net, str | PathLike):
        raise TypeError(f"{allowed}, got {described(net)}")
    if not Path(net).is_file():
        raise FileNotFoundError(f"{allowed}, and there is no file {str(net)!r}")


def find_network(
    net: str | PathLike[str] | nn.Module, named: Networks = PUBLISHED
) -> tuple[nn.Module, Preprocessing | None]:
    """The network that a loss is asked to use, and what it was trained on, where that is known.

    Args:
        net: a name of `named`; a file of ours; or a model.
        named: what loads a network, by its name.

    Raises:
        FileNotFoundError, ValueError: no such file, or none of ours; the text names it.
        TypeError: `net` is something else.
    """
    check_net(net, named)
    if isinstance(net, str) and net in named:
        net = named[net]()
    model = net if isinstance(net, nn.Module) else load_model(Path(net))[0]
    kind = type(getattr(model, "_orig_mod", model))  # torch.compile puts a module around the network
    known = Preprocessing.torchvision() if kind.__module__.startswith("torchvision.") else None
    return model, preprocessing_of(model) or known


class Scaling(nn.Module):
    """(x - shift) / scale, of images in [low, 1] to what a network takes. Input (N, 3 or 1, H, W), RGB or gray."""

    shift: Tensor
    scale: Tensor

    def __init__(self, preprocessing: Preprocessing, low: float) -> None:
        super().__init__()
        self.swaps = preprocessing.order == "BGR"
        rgb = (
            torch.tensor([preprocessing.rgb_mean, preprocessing.rgb_std], dtype=torch.float64).view(2, 1, 3, 1, 1) / 255
        )
        mean, std = (1 - low) * rgb
        self.register_buffer("shift", (low + mean).float())
        self.register_buffer("scale", std.float())

    def forward(self, x: Tensor) -> Tensor:
        y = (x - self.shift) / self.scale
        return y.flip(1) if self.swaps else y


class Trunk(nn.Module):
    """The convolutional layers of a VGG, frozen, as far as the deepest of the maps that are asked for.

    A copy in our layers, of which each part ends with one map: ``slice1.0.weight`` is the weight of ``features.0``.
    Parameters require no gradients, so that the graph of a call keeps bits of each ReLU and pool, and no maps. Batch
    norm is folded into its convolution, as in :class:`vggfast.Engine`.

    Args:
        model: whatever :class:`vggfast.Engine` takes.
        layers: names of maps, such as "relu3_3".

    Attributes:
        taps: these names, from the first layer to the deepest.
        widths: channels of their maps.

    Raises:
        ValueError, TypeError: there is no such map, or a layer that is none of a VGG's; the text names it.
    """

    def __init__(self, model: nn.Module, layers: Collection[str]) -> None:
        super().__init__()
        network = whole(model, head=False)
        network.check_values()
        named = list(trunk_names(fold(network.trunk)))
        names = [name for name, _ in named]
        if unknown := [layer for layer in layers if layer not in names]:
            raise ValueError(f"layers must be among {', '.join(names)}, got {unknown[0]!r}")
        self.taps = [name for name in names if name in layers]
        self.widths: list[int] = []
        width = 0
        self.halvings = 0  # by pools: how small an image may be
        part: OrderedDict[str, nn.Module] = OrderedDict()
        for name, node in named[: names.index(self.taps[-1]) + 1]:
            part[node.path.partition(".")[2].replace(".", "_")] = _frozen(node.layer)
            self.halvings += isinstance(node.layer, MaxPool) and not node.layer.ceil_mode
            width = node.layer.weight.shape[0] if isinstance(node.layer, Conv) else width
            if name in layers:
                self.widths.append(width)
                self.add_module(f"slice{len(self._modules) + 1}", FusedSequential(part))
                part = OrderedDict()
        if not width:
            raise ValueError(f"layers must be behind a convolution, got {self.taps[-1]!r}")

    @property
    def channels(self) -> int:
        """Of the network's input."""
        return self.weight.shape[1]

    @property
    def weight(self) -> Tensor:
        """The first convolution's: of the dtype and on the device of all."""
        return next(self.parameters())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The map of each tap, (N, C, h, w), as channels_last, of what the network takes."""
        x = x.contiguous(memory_format=torch.channels_last)
        return {tap: (x := part(x)) for tap, part in zip(self.taps, self.children(), strict=True)}


def _frozen(layer: Any) -> nn.Module:
    """A module of its own that computes a layer."""
    match layer:
        case Conv(weight, bias):
            with torch.device("meta"):  # which draws no random numbers
                kind = Conv3x3 if weight.shape[2] == 3 else Conv1x1
                conv = kind(weight.shape[1], weight.shape[0], bias=bias is not None)
            conv.weight = nn.Parameter(weight.clone(), requires_grad=False)
            if bias is not None:
                conv.bias = nn.Parameter(bias.to(weight.dtype, copy=True), requires_grad=False)
            return conv
        case MaxPool(ceil_mode):
            return MaxPool2x2(ceil_mode)
        case Lrn(size, alpha, beta, k):
            return LocalResponseNorm(size, alpha, beta, k)
    return nn.ReLU()  # not in place: the map before it may be asked for
