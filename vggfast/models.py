"""The networks of the paper, A, A-LRN, B, C, D and E, as drop-in modules: torchvision's module tree and keys.

Source: Simonyan & Zisserman, table 1 (configurations), section 3.1 (initialisation), section 3.2 (dense head).
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vggfast import graph, ops
from vggfast._checks import check_flag, check_number, check_whole
from vggfast.initialisation import INITS, initialise
from vggfast.nn import Conv1x1, Conv3x3, FusedSequential, Linear, LocalResponseNorm, MaxPool2x2
from vggfast.preprocessing import Preprocessing, preprocessing_of
from vggfast.pretrained import by_place, classes_in, fill, in_one_form, read_weights
from vggfast.quantisation import Quantisation, quantisation_of

# A number is a 3x3 convolution of so many channels, "1x1" a 1x1 one that keeps them, "M" the max-pool.
CONFIGURATIONS: dict[str, list[int | str]] = {
    "A": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "A-LRN": [64, "LRN", "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "B": [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "C": [64, 64, "M", 128, 128, "M", 256, 256, "1x1", "M", 512, 512, "1x1", "M", 512, 512, "1x1", "M"],
    "D": [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"],
    "E": [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"],
}  # fmt: skip
HEADS = ("linear", "conv", "none")


def _one_of(name: str, value: Any, allowed) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def make_features(config: str, in_channels: int, batch_norm: bool, width: float) -> tuple[FusedSequential, int]:
    """The convolutional layers of a configuration, and the channels that come out."""
    layers: list[nn.Module] = []
    channels = in_channels
    for item in CONFIGURATIONS[config]:
        if item == "M":
            layers.append(MaxPool2x2())
        elif item == "LRN":
            layers.append(LocalResponseNorm())
        else:
            if isinstance(item, int):
                out = max(1, round(item * width))
                layers.append(Conv3x3(channels, out))
                channels = out
            else:
                layers.append(Conv1x1(channels, channels))
            if batch_norm:
                layers.append(nn.BatchNorm2d(channels))
            layers.append(nn.ReLU(inplace=True))
    return FusedSequential(*layers), channels


def _linear_head(channels: int, pool_size: int, hidden: int, num_classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        Linear(channels * pool_size**2, hidden),
        nn.ReLU(True),
        nn.Dropout(p=dropout),
        Linear(hidden, hidden),
        nn.ReLU(True),
        nn.Dropout(p=dropout),
        Linear(hidden, num_classes),
    )


@graph.know
class VGG(nn.Module):
    """A network of the paper.

    Args:
        config: "A", "A-LRN", "B", "C", "D" or "E" (11, 11, 13, 16, 16 and 19 weight layers).
        num_classes: outputs of the last layer.
        in_channels: channels of the input; 3 for RGB.
        dropout: probability, in [0, 1), after each of the first two FC layers.
        batch_norm: a BatchNorm2d after each convolution (not in the paper; torchvision's ``_bn`` variants).
        head: "linear": FC layers behind an adaptive average pool to `pool_size`, as torchvision has them.
            "conv": the same layers as convolutions over the whole map, their class score map averaged (the paper's
            dense evaluation). "none": no head, the model returns its feature map.
        init: "glorot", "paper" (normal, std 0.01), "paper-literal" (normal, variance 0.01, so std 0.1; diverges),
            "torchvision" (Kaiming by fan-out; FC layers normal, std 0.01), "he" (Kaiming by fan-in, so that every
            layer keeps its input's scale), or None for what the layers' own constructors do.
        width: scales the channels of every convolution, for networks smaller than the paper's.
        hidden: width of the two hidden FC layers.
        pool_size: extent of the map that the head sees; the paper's 224 / 32 = 7.

    Input: (N, in_channels, H, W), H and W at least 32 (32 * pool_size with head="conv"). Output: (N, num_classes)
    logits, or the feature map (N, C, H // 32, W // 32).

    Raises:
        ValueError: an argument or an input that does not fit; the text names it.
    """

    def __init__(
        self,
        config: str,
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.5,
        batch_norm: bool = False,
        head: str = "linear",
        init: str | None = "glorot",
        *,
        width: float = 1.0,
        hidden: int = 4096,
        pool_size: int = 7,
    ) -> None:
        super().__init__()
        _one_of("config", config, CONFIGURATIONS)
        _one_of("head", head, HEADS)
        _one_of("init", init, (*INITS, None))
        sizes = {"num_classes": num_classes, "in_channels": in_channels, "hidden": hidden, "pool_size": pool_size}
        num_classes, in_channels, hidden, pool_size = (check_whole(value, name, 1) for name, value in sizes.items())
        dropout, width = check_number(dropout, "dropout"), check_number(width, "width")
        batch_norm = check_flag(batch_norm, "batch_norm")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a probability in [0, 1), got {dropout}")
        if not 0 < width < math.inf:
            raise ValueError(f"width must be greater than 0 and finite, got {width}")
        # What builds the same network again; a checkpoint carries it.
        self.arguments: dict[str, Any] = {
            "config": config, "num_classes": num_classes, "in_channels": in_channels, "dropout": dropout,
            "batch_norm": batch_norm, "head": head, "width": width, "hidden": hidden, "pool_size": pool_size,
        }  # fmt: skip
        self.preprocessing: Preprocessing | None = None  # what it was trained on, where a file says it
        self.quantisation: Quantisation | None = None  # scales of 8 bits, where it was quantised elsewhere
        self.classes: list[str] | None = None  # names of the outputs, where a file says them
        self.features, channels = make_features(config, in_channels, batch_norm, width)
        if head != "none":
            self.avgpool: nn.Module = nn.AdaptiveAvgPool2d((pool_size, pool_size))
            self.classifier = _linear_head(channels, pool_size, hidden, num_classes, dropout)
        if init is not None:
            initialise(self, init)
        if head == "conv":
            self.avgpool, self.classifier = _convert_head("conv", graph.linear_head(self.avgpool, self.classifier))

    @property
    def head(self) -> str:
        """ "linear", "conv" or "none", as :class:`VGG` has them."""
        return self._argument("head", HEADS)

    def _argument(self, name: str, allowed: Container[Any]) -> Any:
        """Raises ValueError where somebody has changed the arguments into others."""
        arguments = getattr(self, "arguments", None)
        if not isinstance(arguments, dict) or arguments.get(name) not in allowed:
            raise ValueError(f"arguments of the model must be those that built it, with its {name}, got {arguments!r}")
        return arguments[name]

    def forward(self, x: Tensor) -> Tensor:
        if self.head == "conv":
            return ops.sum_pool(self.score_map(x))
        x = self.features(x)
        if self.head == "none":
            return x
        return self.classifier(torch.flatten(self.avgpool(x), 1))

    def features_at(self, x: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """The maps of some layers, differentiable; no layer behind the last of them is run.

        Args:
            x: (N, in_channels, H, W), what the network takes.
            taps: names as "conv1_2", "relu4_3" or "pool5".

        Returns:
            By name, in the order of `taps`: (N, channels, h, w), of the dtype and memory format that `features` gives.

        Raises:
            ValueError: there is no such map; the text lists those that there are.
            TypeError: `taps` is no sequence of names, or a layer of features is none of a VGG's; the text names it.
        """
        places = {
            name: node.path.split(".")[1:] for name, node in graph.trunk_names(graph.whole(self, head=False).trunk)
        }
        graph.check_taps(taps, places)
        for tap in taps:
            if len(places[tap]) > 1:
                raise TypeError(f"features must have its layers side by side, got {tap} within another module")
        ends = {tap: 1 + list(self.features._modules).index(places[tap][0]) for tap in taps}
        maps: dict[str, Tensor] = {}
        begin = 0
        for tap, end in sorted(ends.items(), key=lambda item: item[1]):
            # A ReLU in place behind a map would change it.
            inside = begin < len(self.features) and getattr(self.features[begin], "inplace", False)
            x = self.features[begin:end](x.clone() if begin and inside else x)
            maps[tap], begin = x, end
        return {tap: maps[tap] for tap in taps}

    def score_map(self, x: Tensor) -> Tensor:
        """(N, num_classes, h, w): the class scores at every place where the head fits; head="conv" only.

        h = H // 32 - pool_size + 1, w likewise.

        Source: Simonyan & Zisserman, section 3.2.
        """
        if self.head != "conv":
            raise ValueError(f"head must be 'conv' for a score map, got {self.head!r} (see to_conv_head)")
        maps, size = self.features(x), self._argument("pool_size", range(1, sys.maxsize))
        if isinstance(maps, Tensor) and maps.dim() == 4 and min(maps.shape[2:]) < size:
            cells = " x ".join(map(str, maps.shape[2:]))
            what = f"its map must have at least {size} x {size} cells for the dense head, got {cells}"
            raise ValueError(f"x of shape {tuple(x.shape)} is too small: {what}")
        return self.classifier(maps)

    def to_conv_head(self) -> VGG:
        """This network with its FC layers as convolutions. Both share their parameters' memory.

        Raises:
            ValueError: there is no head, or the model's arguments are no longer those that built it.
            TypeError: a layer in it has no counterpart, or code that would be lost, as a hook; the text names it.
        """
        return self._with_head("conv")

    def to_linear_head(self) -> VGG:
        """This network with its head as FC layers. Both share their parameters' memory, but for channels_last weights.

        Raises:
            ValueError: there is no head, or the model's arguments are no longer those that built it.
            TypeError: a layer in it has no counterpart, or code that would be lost, as a hook; the text names it.
        """
        return self._with_head("linear")

    def _with_head(self, head: str) -> VGG:
        if self.head == "none":
            raise ValueError("head must not be 'none': there are no FC layers to convert")
        found = graph.head_of(self)
        assert found is not None
        parts = ("", "features", "avgpool", "classifier", *(node.path for node in found.nodes))
        modules = dict(self.named_modules(remove_duplicate=False))
        for path in parts:  # layers of features are copied with all that they have
            graph.check(path or "model", modules.get(path), backward=True)
        for path, layer in modules.items():
            if path.startswith("features."):
                graph.check_replaced(path, layer)  # for it would follow this network's training mode
        if not isinstance(self.features, nn.Sequential):
            raise TypeError(f"features must be an nn.Sequential, got {type(self.features).__name__}")
        for name, layer in self.features._modules.items():
            if layer is None:
                raise TypeError(f"features.{name} must be a module, got None")
        other = VGG.__new__(VGG)
        nn.Module.__init__(other)
        other.features = FusedSequential(*map(graph.shared_copy, self.features))
        other.avgpool, other.classifier = _convert_head(head, found)
        other.arguments = {
            **self.arguments,
            "num_classes": len(found.weights[-1]),
            "head": head,
            "pool_size": found.size,
        }
        other.preprocessing = preprocessing_of(self)
        other.quantisation = quantisation_of(self)
        other.classes = getattr(self, "classes", None)
        other.training = self.training
        return other


def _convert_head(head: str, found: graph.Head) -> tuple[nn.Module, nn.Sequential]:
    """(avgpool, classifier) of a head of this kind, with the parameters of another."""
    kind, convert = (nn.Conv2d, _as_conv) if head == "conv" else (nn.Linear, _as_linear)
    layers: list[nn.Module] = []
    extent = found.size  # of the first FC layer's window
    for node in found.nodes:
        if not isinstance(node.layer, graph.layers.Linear):
            layers.append(nn.Identity() if isinstance(node.module, nn.Flatten) else graph.shared_copy(node.module))
            continue
        for name in ("weight", "bias"):
            if node.module._parameters.get(name) is not getattr(node.module, name):
                why = f"its {name} is computed, and a converted head cannot share it"
                raise graph.unknown(node.path, node.module, why)
        layers.append(graph.shared_copy(node.module) if isinstance(node.module, kind) else convert(node.module, extent))
        extent = 1
    if head == "conv":
        return nn.Identity(), FusedSequential(*layers)
    return nn.AdaptiveAvgPool2d((found.size, found.size)), nn.Sequential(*layers)


def _shared(layer: nn.Module, like: Any, shape: Sequence[int]) -> nn.Module:
    """`layer`, made on the meta device, with the parameters of `like`."""
    weight = like.weight
    layer.weight = nn.Parameter(weight.detach().reshape(shape), requires_grad=weight.requires_grad)
    layer.register_parameter("bias", like.bias)
    return layer


def _as_conv(layer: Any, extent: int) -> nn.Module:
    """An FC layer as a convolution of this extent."""
    outputs, inputs = layer.weight.shape
    channels = inputs // extent**2
    with torch.device("meta"):
        kind = Conv1x1 if extent == 1 else functools.partial(nn.Conv2d, kernel_size=extent)
        conv = kind(channels, outputs)
    return _shared(conv, layer, (outputs, channels, extent, extent))


def _as_linear(layer: Any, extent: int) -> nn.Module:
    """A convolution on windows as an FC layer."""
    outputs, inputs = layer.weight.flatten(1).shape
    with torch.device("meta"):
        linear = Linear(inputs, outputs)
    return _shared(linear, layer, (outputs, inputs))


# ---- the names that torchvision's users know ----------------------------------------------------------------------


class _Named(VGG):
    _config: str

    def __init__(
        self, num_classes: int = 1000, init_weights: bool = True, dropout: float = 0.5, **arguments: Any
    ) -> None:
        arguments.setdefault("init", "glorot")
        if not init_weights:
            arguments["init"] = None
        super().__init__(self._config, num_classes=num_classes, dropout=dropout, **arguments)


class VGG11(_Named):
    """Configuration A. Arguments: `num_classes`, `init_weights`, `dropout`, and by name those of :class:`VGG`."""

    _config = "A"


class VGG13(_Named):
    """Configuration B. Arguments: `num_classes`, `init_weights`, `dropout`, and by name those of :class:`VGG`."""

    _config = "B"


class VGG16(_Named):
    """Configuration D. Arguments: `num_classes`, `init_weights`, `dropout`, and by name those of :class:`VGG`."""

    _config = "D"


class VGG19(_Named):
    """Configuration E. Arguments: `num_classes`, `init_weights`, `dropout`, and by name those of :class:`VGG`."""

    _config = "E"


def _as_torchvision(network: type[_Named], name: str, batch_norm: bool) -> Callable[..., VGG]:
    def build(*, weights: Any = None, progress: bool = True, **kwargs: Any) -> VGG:
        key, allow_non_finite = kwargs.pop("key", None), kwargs.pop("allow_non_finite", False)
        weights = in_one_form(weights, kwargs.pop("pretrained", None), name)
        if weights is None:
            return network(batch_norm=batch_norm, **{"init": "torchvision", **kwargs})
        state, preprocessing, quantisation = read_weights(weights, progress, key)
        source = "weights" if isinstance(weights, Mapping) else weights
        classes = classes_in(state)
        if classes is not None and kwargs.setdefault("num_classes", classes) != classes:
            raise ValueError(f"num_classes must be {classes}, as in {source}, got {kwargs['num_classes']}")
        model = network(batch_norm=batch_norm, **{**kwargs, "init_weights": False})
        fill(model, state, source, name, allow_non_finite)
        if quantisation is not None and classes is not None and model.head == "none":
            quantisation = quantisation.of_features()
        model.preprocessing, model.quantisation = preprocessing, quantisation
        return model

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"""torchvision's ``{name}`` on our kernels.

    Args:
        weights: None for random weights (torchvision's initialisation), a path to a .pth or .safetensors file, a
            state_dict, or a torchvision weights enum or its name (which torchvision then downloads). A checkpoint
            around the state_dict, and prefixes of all names, are taken off; convolutions without biases get zeros. The
            model's `preprocessing` and `quantisation` are those of the file, where it says them.
        progress: whether a download shows its progress.
        **kwargs: of :class:`{network.__name__}`. And `pretrained`, torchvision's older form of weights: True for
            IMAGENET1K_V1, False for None; and `key`: which state_dict, where a checkpoint has several ("model_ema");
            and `allow_non_finite`: whether weights may be infinite or NaN, and variances negative.
            As in torchvision's older form, the first two arguments may come without their names.

    Raises:
        FileNotFoundError, ValueError, TypeError: the weights are not there, or not this network's; the text names them
            and the tensor.
    """
    return by_place(build)


vgg11 = _as_torchvision(VGG11, "vgg11", False)
vgg11_bn = _as_torchvision(VGG11, "vgg11_bn", True)
vgg13 = _as_torchvision(VGG13, "vgg13", False)
vgg13_bn = _as_torchvision(VGG13, "vgg13_bn", True)
vgg16 = _as_torchvision(VGG16, "vgg16", False)
vgg16_bn = _as_torchvision(VGG16, "vgg16_bn", True)
vgg19 = _as_torchvision(VGG19, "vgg19", False)
vgg19_bn = _as_torchvision(VGG19, "vgg19_bn", True)
