"""What a network that was quantised elsewhere keeps of its 8 bits: scales of weights, and of what layers read.

Such a network is a model of float32 whose weights are whole multiples of their scales, -128 to 127 of them, and whose
attribute `quantisation` has the scales. ``vggfast.Engine(model, dtype="int8")`` computes with them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

QUANTISATION = "quantisation"  # beside a network's arguments in a file
LARGEST = 255  # of what a layer of 8 bits reads
SCALE = "weight_scale"  # of a file's tensors, the last part of the name
_TINY = torch.finfo(torch.float32).tiny
_CHANNELS_AT_A_TIME = 64  # of weights, in float32 meanwhile


@dataclass(frozen=True)
class Rounding:
    """To whole numbers and back: (clamp(round(x / scale) + zero_point, 0, largest) - zero_point) * scale, ties to even.

    NaN stays NaN.

    Attributes:
        scale: what a step counts, positive.
        zero_point: the whole number that stands for 0.
        largest: of the whole numbers; the least is 0.

    Raises:
        ValueError: a value is not what is allowed; the text names it.
    """

    scale: float
    zero_point: int = 0
    largest: int = LARGEST

    def __post_init__(self) -> None:
        check_scale(self.scale, "scale")
        for name, most in (("largest", LARGEST), ("zero_point", self.largest)):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= most:
                raise ValueError(f"{name} must be a whole number from 0 to {most}, got {value!r}")

    def __call__(self, x: Tensor) -> Tensor:
        """x: float32, of any shape."""
        whole = (x / self.scale).round_().add_(self.zero_point).clamp_(0, self.largest)
        return whole.sub_(self.zero_point).mul_(self.scale)


@dataclass(frozen=True, eq=False)
class Scales:
    """Of a convolution or FC layer.

    Attributes:
        weight: (outputs,), float32: what a step of each output's weights counts; None where its weights are float32.
        source: what a step of its input counts, of which there are 0 to 255; None where it reads float32.
    """

    weight: Tensor | None
    source: float | None


@dataclass(frozen=True, eq=False)
class Quantisation:
    """Of a whole network.

    Attributes:
        layers: those with weights or an input of 8 bits, by their modules' paths, such as "features.3".
        input, output: how its images and what it puts out are rounded; None where they are not.
    """

    layers: Mapping[str, Scales]
    input: Rounding | None = None
    output: Rounding | None = None

    def of_features(self) -> Quantisation:
        """Without the FC layers: what the first of them reads is the output."""
        layers = {path: scales for path, scales in self.layers.items() if path.startswith("features.")}
        first = self.layers.get("classifier.0", Scales(None, None))
        return Quantisation(layers, self.input, None if first.source is None else Rounding(first.source))

    def as_dict(self) -> dict[str, Any]:
        """What a file's metadata say; the scales of weights are tensors of the file."""
        sources = {path: scales.source for path, scales in self.layers.items()}
        ends = {"input": self.input, "output": self.output}
        return {"sources": sources, **{name: rounding and asdict(rounding) for name, rounding in ends.items()}}

    def __str__(self) -> str:
        kept, read = (
            sum(getattr(scales, name) is not None for scales in self.layers.values()) for name in ("weight", "source")
        )
        ends = " and ".join(name for name, end in (("input", self.input), ("output", self.output)) if end)
        rounded = f"; {ends} rounded to 8 bits" if ends else ""
        return f"weights of 8 bits in {kept} layers; {read} layers read 8 bits{rounded}"


def quantisation_of(model: object) -> Quantisation | None:
    """The model's attribute `quantisation`; None where there is none.

    Raises:
        TypeError: it is something else.
    """
    found = getattr(model, "quantisation", None)
    if found is not None and not isinstance(found, Quantisation):
        raise TypeError(f"quantisation of the model must be a Quantisation, got {type(found).__name__}")
    return found


def check_scale(value: Any, name: str) -> float:
    """A positive, finite and normal float32.

    Raises:
        ValueError: it is not; the text names it.
    """
    if not isinstance(value, float | int) or not _TINY <= value < math.inf:
        raise ValueError(f"{name} must be positive and finite, at least {_TINY:.3g}, got {value!r}")
    return float(value)


def integers(name: str, weight: Tensor, scale: Tensor) -> Tensor:
    """The whole numbers, int8, that a weight holds in steps of its scales.

    Args:
        name: what errors call the weight.
        weight: (outputs, ...), float32.
        scale: (outputs,), float32.

    Raises:
        ValueError: the weight holds other numbers, or has other outputs.
    """
    if scale.shape != weight.shape[:1]:
        what = f"{name} must have {len(scale)} outputs, as there are scales, got {len(weight)}"
        raise ValueError(f"{what}: model.quantisation = None gives up the scales")
    parts = []
    for part, steps in zip(weight.detach().split(_CHANNELS_AT_A_TIME), _columns(scale, weight), strict=True):
        whole = (part / steps).round_()
        if not torch.equal(whole * steps, part) or not -128 <= whole.min() <= whole.max() <= 127:
            raise ValueError(
                f"{name} must hold whole multiples of its scales, -128 to 127 of them, as when it was quantised: "
                "model.quantisation = None gives up the scales"
            )
        parts.append(whole.to(torch.int8))
    return torch.cat(parts)


def _columns(scale: Tensor, weight: Tensor) -> Iterable[Tensor]:
    """Scales that spread over a weight, in as many parts."""
    return scale.to(weight.device).view(-1, *[1] * (weight.dim() - 1)).split(_CHANNELS_AT_A_TIME)


def narrowed(tensors: Mapping[str, Tensor], quantisation: Quantisation) -> dict[str, Tensor]:
    """A network's tensors as a file keeps them: weights in 8 bits, with their scales beside them.

    Raises:
        ValueError: a weight is not there, or not what :func:`integers` takes; the text names it.
    """
    found = dict(tensors)
    for path, scales in quantisation.layers.items():
        name = f"{path}.weight"
        if name not in tensors:
            raise ValueError(f"quantisation has scales of {name}, which the model does not have")
        if scales.weight is None:
            continue
        found[name] = integers(name, tensors[name].float(), scales.weight)
        found[f"{path}.{SCALE}"] = scales.weight
    return found


def widened(tensors: Mapping[str, Tensor], said: Any) -> tuple[dict[str, Tensor], Quantisation]:
    """Back from :func:`narrowed`: a network's tensors, in float32, and its scales.

    Args:
        tensors: a file's; on torch's device "meta" they have shapes alone.
        said: of :meth:`Quantisation.as_dict`.

    Raises:
        ValueError: they are not what they should be; the text names what is not.
    """
    if not isinstance(said, Mapping) or said.keys() != {"sources", "input", "output"}:
        raise ValueError(f"its quantisation must have sources, input and output, got {str(said)[:80]}")
    if not isinstance(said["sources"], Mapping):
        raise ValueError(f"sources of its quantisation must be a mapping, got {str(said['sources'])[:80]}")
    found, layers = dict(tensors), {}
    for path, source in said["sources"].items():
        weight, scale = found.get(f"{path}.weight"), found.pop(f"{path}.{SCALE}", None)
        if source is not None:
            check_scale(source, f"the source of {path}")
        if weight is not None and weight.is_floating_point() and scale is None and source is not None:
            layers[path] = Scales(None, source)
            continue
        if weight is None or weight.dtype != torch.int8 or not weight.dim():
            raise ValueError(f"{path}.weight must be int8, got {None if weight is None else weight.dtype}")
        if scale is None or scale.dtype != torch.float32 or scale.shape != weight.shape[:1]:
            got = None if scale is None else f"{scale.dtype} of shape {tuple(scale.shape)}"
            raise ValueError(f"{path}.{SCALE} must be float32 of shape {tuple(weight.shape[:1])}, got {got}")
        if not scale.is_meta:
            for value in scale.aminmax():
                check_scale(float(value), f"{path}.{SCALE}")
        layers[path] = Scales(scale, source)
        parts = zip(weight.split(_CHANNELS_AT_A_TIME), _columns(scale, weight), strict=True)
        found[f"{path}.weight"] = torch.cat([part * steps for part, steps in parts])
    ends = (_rounding(said[name], name) for name in ("input", "output"))
    return found, Quantisation(layers, *ends)


def _rounding(said: Any, name: str) -> Rounding | None:
    if said is None:
        return None
    if not isinstance(said, Mapping) or said.keys() != {"scale", "zero_point", "largest"}:
        raise ValueError(f"{name} of its quantisation must have scale, zero_point and largest, got {str(said)[:80]}")
    return Rounding(**said)
