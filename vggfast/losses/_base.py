"""What all losses share: checked images, maps of a frozen network, and a target whose maps are kept."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vggfast._checks import PLAIN, check_dense, check_flag, check_number, described, is_recorded
from vggfast.losses.trunk import PUBLISHED, Networks, Scaling, Trunk, find_network
from vggfast.ops._library import wide

_Loss = TypeVar("_Loss", bound="LayerLoss")
_OVERSHOOT = 0.5  # beyond its range is an image's own: of an optimiser, of bicubic resampling
_BYTES = 16  # larger values are those of an image in [0, 255], which resampling may have brought beyond it
_PIECE = 1 << 17  # values: half a MiB in float32
_NORMALISED = 3.0  # torchvision's preprocessing gives values from -2.12 to 2.64


def check_layers(layers: Any, name: str = "layers") -> dict[str, float]:
    """Layers and their weights. Raises TypeError and ValueError where they are no mapping of names to numbers."""
    if not isinstance(layers, Mapping) or not all(isinstance(layer, str) for layer in layers):
        raise TypeError(f"{name} must map layers to weights, such as {{'relu3_3': 1.0}}, got {described(layers)}")
    if not layers:
        raise ValueError(f"{name} must have at least one layer, got none")
    found = {layer: check_number(weight, f"{name}[{layer!r}]") for layer, weight in layers.items()}
    for layer, weight in found.items():
        if not math.isfinite(weight):
            raise ValueError(f"{name}[{layer!r}] must be finite, got {weight}")
    return found


def _forget(kept: dict[str, Any], *_: object) -> None:
    kept.clear()


def is_eager(*tensors: Tensor) -> bool:
    """Whether code may look at their values, and loop over them: nobody compiles, transforms or records it."""
    hidden = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or is_recorded()
    return not hidden and all(type(t) in PLAIN for t in tensors)


def pieces(*maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The pixels of maps (N, C, H, W) that lie as NHWC, in views (pixels, C) of so few that all passes over a piece but
    the first find it in a core's cache."""
    rows = [each.permute(0, 2, 3, 1).flatten(0, 2) for each in maps]
    count = max(1, _PIECE // maps[0].shape[1])
    return zip(*(each.split(count) for each in rows), strict=True)


def in_pieces(*maps: Tensor) -> bool:
    """Whether :func:`pieces` may be used for these: eager maps on the CPU, of one shape, as NHWC, without tangents."""
    a = maps[0]
    return (
        torch.autograd.forward_ad._current_level < 0
        and is_eager(*maps)
        and all(t.device.type == "cpu" and t.dtype == a.dtype and t.shape == a.shape for t in maps)
        and all(t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last) for t in maps)
    )


class FeatureLoss(nn.Module):
    """A loss on the maps of a frozen network.

    Args:
        net: see :func:`vggfast.losses.trunk.find_network`.
        layers: names of the maps.
        normalize: whether images are brought to what the network takes; else they are that already.
        check_range: whether images are looked at: see :meth:`maps`.
        low: where the range of images begins; it ends at 1.
        named: networks that `net` may name.

    Attributes:
        net: the :class:`Trunk`.
    """

    def __init__(
        self,
        net: str | PathLike[str] | nn.Module,
        layers: Any,
        normalize: bool = True,
        check_range: bool = True,
        low: float = 0.0,
        named: Networks = PUBLISHED,
    ) -> None:
        super().__init__()
        model, preprocessing = find_network(net, named)
        self.scaling_layer: Scaling | None = None
        if check_flag(normalize, "normalize"):
            if preprocessing is None:
                raise ValueError(
                    "net must have an attribute preprocessing, which says what its weights were trained on, got none: "
                    "for those of torchvision, net.preprocessing = vggfast.Preprocessing.torchvision()"
                )
            self.scaling_layer = Scaling(preprocessing, low)
        self.net = Trunk(model, layers)
        if self.scaling_layer is not None:
            if self.net.channels != 3:
                raise ValueError(f"net must take 3 channels where normalize is True, got {self.net.channels}")
            self.scaling_layer.to(self.net.weight)
        self.check_range = check_flag(check_range, "check_range")
        self._low = low
        self._seen: set[str] = set()  # whose range was looked at
        # Of targets, by name: the images' shape, and what is compared, by layer. They follow the loss to other devices
        # and dtypes, and are in no state_dict.
        self._kept: dict[str, tuple[torch.Size, dict[str, Tensor]]] = {}
        for module in self.modules():  # weights may be loaded into a part alone
            module.register_load_state_dict_post_hook(functools.partial(_forget, self._kept))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FeatureLoss:
        super()._apply(fn, recurse)
        for name, (shape, kept) in self._kept.items():
            self._kept[name] = shape, {layer: fn(each) for layer, each in kept.items()}
        return self

    def maps(self, x: Tensor, name: str, low: float | None = None) -> dict[str, Tensor]:
        """Each layer's map (N, C, h, w) of images in [low, 1].

        Args:
            x: (N, 3, H, W), or (N, 1, H, W) of gray images, of the loss' dtype or a narrower one, on its device.
            name: of `x`, for errors.
            low: where the range begins, if elsewhere than the loss'.

        Raises:
            TypeError, ValueError: `x` is something else, too small, or its values lie more than 0.5 outside of the
                range. On other devices than the CPU, for which a look would wait, the first call alone looks.
        """
        self._check(x, name)
        x = x.to(self.net.weight.dtype)
        low = self._low if low is None else low
        if self.scaling_layer is None:
            return self.net(x)
        if self.check_range:
            self._check_range(x, name, low)
        return self.net(self.scaling_layer(x if low == self._low else 2 * x - 1))

    def _check(self, x: Any, name: str) -> None:
        check_dense(x, name)
        channels = (self.net.channels,) if self.scaling_layer is None else (1, 3)
        if x.dim() != 4 or x.shape[1] not in channels:
            raise ValueError(f"{name} must have shape (N, {channels[-1]}, H, W), got {tuple(x.shape)}")
        least = 2**self.net.halvings
        if x.shape[2] < least or x.shape[3] < least:
            raise ValueError(
                f"{name} must have H and W of at least {least} for {self.net.taps[-1]}, got {tuple(x.shape)}"
            )
        weight = self.net.weight
        if not x.is_floating_point():
            raise TypeError(f"{name} must have a floating-point dtype, got {x.dtype}: convert it, and divide by 255")
        if torch.promote_types(x.dtype, weight.dtype) != weight.dtype:
            raise TypeError(
                f"{name} must have a dtype that the loss', {weight.dtype}, holds, got {x.dtype}: loss.to(x)"
            )
        if x.device != weight.device:
            raise ValueError(f"{name} must be on the device of the loss, {weight.device}, got {x.device}: loss.to(x)")

    def _check_range(self, x: Tensor, name: str, low: float) -> None:
        if not is_eager(x) or not x.numel() or (x.device.type != "cpu" and name in self._seen):
            return
        least, most = (float(value) for value in torch.aminmax(x.detach()))
        if least < low - _OVERSHOOT or most > 1 + _OVERSHOOT:
            advice = "clamp it, or give check_range=False"
            if most > _BYTES:
                advice = "divide by 255" if low == 0 else "divide by 127.5 and subtract 1"
            elif least >= -1 - _OVERSHOOT and most <= 1 + _OVERSHOOT:
                advice = "add 1 and divide by 2"
            elif -_NORMALISED <= least < -1 and 1 < most <= _NORMALISED:
                advice = "they look normalised by a mean and a standard deviation, which the loss does itself"
            raise ValueError(f"{name} must be in [{low:g}, 1], got values from {least:.4g} to {most:.4g}: {advice}")
        self._seen.add(name)

    def _keep(self, name: str, y: Tensor, compute: Callable[[Tensor, str], dict[str, Tensor]]) -> None:
        with torch.inference_mode(False), torch.no_grad():  # a backward saves them, which inference's tensors refuse
            self._kept[name] = y.shape, compute(y, name)

    def _of_target(self, name: str, x: Tensor, same_size: bool = True) -> dict[str, Tensor]:
        """What :meth:`_keep` kept, where `x` may be compared with it."""
        if name not in self._kept:
            raise ValueError(f"{name} must be given, or kept by target() before, got neither")
        shape, kept = self._kept[name]
        check_fits(x, shape, name, same_size)
        return kept


def check_fits(x: Tensor, shape: torch.Size, name: str, same_size: bool = True) -> None:
    """Raises ValueError where the images called `name` are not as many, or not as large, as those they are compared
    with."""
    what = "of what it is compared with"
    if 1 not in (x.shape[0], shape[0]) and x.shape[0] != shape[0]:
        raise ValueError(f"{name} must have the N {what}, {x.shape[0]}, or N = 1 in one of both, got {shape[0]}")
    if same_size and x.shape[2:] != shape[2:]:
        raise ValueError(f"{name} must have the H and W {what}, {tuple(x.shape[2:])}, got {tuple(shape[2:])}")


@contextmanager
def in_full(x: Tensor) -> Iterator[None]:
    """Without autocast: squares of maps are more than float16 holds."""
    with torch.autocast(x.device.type, enabled=False):
        yield


def pair(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Both with at least 32 bits, one image's repeated for all."""
    a, b = torch.broadcast_tensors(wide(ours), wide(theirs))
    return a, b


class LayerLoss(FeatureLoss, ABC):
    """The weighted sum over layers of a distance between what two images have there.

    Args:
        layers: weights by name of the layer.
        The others: see :class:`FeatureLoss`.
    """

    same_size = True  # whether the two images must be as large

    def __init__(
        self, layers: Any, net: str | PathLike[str] | nn.Module, normalize: bool = True, check_range: bool = True
    ) -> None:
        checked = check_layers(layers)
        super().__init__(net, checked, normalize, check_range)
        self.layers = checked

    @abstractmethod
    def summaries(self, x: Tensor, name: str) -> dict[str, Tensor]:
        """What is compared, by layer."""

    @abstractmethod
    def distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """A scalar, of a layer's summaries of as many images."""

    def target(self: _Loss, y: Tensor) -> _Loss:
        """Keeps what is compared of `y`, for calls with x alone, until another target or other weights come.

        Returns:
            The loss.
        """
        self._keep("y", y, self.summaries)
        return self

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The distance of x from y, or from the target."""
        ours = self.summaries(x, "x")
        if y is None:
            theirs = self._of_target("y", x, self.same_size)
        else:
            theirs = self.summaries(y, "y")
            check_fits(x, y.shape, "y", self.same_size)
        with in_full(x):
            distances = [w * self.distance(*pair(ours[layer], theirs[layer])) for layer, w in self.layers.items()]
            return torch.stack(distances).sum()
