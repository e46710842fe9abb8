"""From the tensors of a file, under a format's names, to a network of ours: its configuration, sizes and parts.

A reader gives a :class:`Raw`; :func:`sort_out` finds which of the paper's networks its names are of, and
:func:`build` its sizes. Both are strict: a tensor that is missing, left over or of a wrong shape is an error.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggfast.graph import fc_names, trunk_names, whole
from vggfast.io import listed
from vggfast.models import CONFIGURATIONS, VGG
from vggfast.preprocessing import Preprocessing
from vggfast.weights.formats._roundings import Roundings
from vggfast.weights.formats._sequence import MAX_POOL, WITHOUT_HEAD, Step, check_sequence

# Older files of torch's batch norm lack the last, which nothing but training with momentum=None reads.
_OPTIONAL = "num_batches_tracked"
_FC_INDICES = (0, 3, 6)


@dataclass
class Raw:
    """What a reader finds in a file.

    Attributes:
        tensors: arrays or tensors under the file's own names; all of them are weights.
        name: (our key, the layer's place such as "conv3_1", "bn3_1" or "fc1", its kind such as "weight") -> the
            file's name of that tensor; None where the format knows none such.
        layout: (place, kind, tensor) -> the tensor as ours: (out, in, H, W), (out, in), or (out,).
        preprocessing, origin: what the network takes and where that is said; None where nothing says it.
        hwc: whether the inputs of fc1 are counted in H, W, C order, as by frameworks that keep channels last.
        lrn: whether a local response normalisation follows the first convolution; it has no tensors to tell it by.
        extra: what else the file says, such as "classes".
        stranger: what the file has among the FC layers that no VGG has there; "" for nothing.
        steps: the layers in the order in which they run; None where the format does not say it.
        dense: whether the FC layers run on each window of the map, and their scores are averaged.
        notes: what is to be known of the file: a sentence each.
        roundings: what of it is of 8 bits; None where the format has nothing such.
    """

    tensors: dict[str, Any]
    name: Callable[[str, str, str], str | None]
    layout: Callable[[str, str, Tensor], Tensor]
    preprocessing: Preprocessing | None = None
    origin: str = ""
    hwc: bool = False
    lrn: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    stranger: str = ""
    steps: Sequence[Step] | None = None
    dense: bool = False
    notes: Sequence[str] = ()
    roundings: Roundings | None = None


@dataclass
class Parts:
    """A file's tensors under our keys.

    Attributes:
        tensors, names: by our key, the tensor and the file's name of it.
        config: None where there are FC layers alone.
        notes: what is to be known of the file: a sentence each.
        has_features, has_head: which parts there are.
    """

    path: Path
    raw: Raw
    tensors: dict[str, Tensor]
    names: dict[str, str]
    config: str | None
    batch_norm: bool
    notes: Sequence[str] = ()

    @property
    def has_features(self) -> bool:
        return self.config is not None

    @property
    def has_head(self) -> bool:
        return any(key.startswith("classifier") for key in self.tensors)


def named_by_place(names: Mapping[tuple[str, str], str]) -> Callable[[str, str, str], str | None]:
    """:attr:`Raw.name` of a reader that has met the layers: by (place, kind), the file's names of their tensors."""
    batch_norm = any(place.startswith("bn") for place, _ in names)

    def name(key: str, place: str, kind: str) -> str | None:
        if kind == _OPTIONAL or (place.startswith("bn") and not batch_norm):
            return None
        return names.get((place, kind), f"{place} {kind}")

    return name


@functools.cache
def places(config: str, batch_norm: bool) -> dict[str, tuple[str, str]]:
    """By our key, the layer's place in the paper and the kind of tensor: "features.2.weight": ("conv1_2", "weight")."""
    with torch.device("meta"):
        network = whole(VGG(config, batch_norm=batch_norm, init=None))
    assert network.head is not None
    named = (*trunk_names(network.trunk), *fc_names(network.head.nodes))
    return {f"{node.path}.{kind}": (name, kind) for name, node in named for kind in node.module.state_dict()}


def quantise(model: VGG, parts: Parts) -> None:
    """Gives a network that was built of these parts the scales of the file's 8 bits, where it has any."""
    if parts.raw.roundings is None or not parts.raw.roundings.found:
        return
    assert parts.config is not None
    own = places(parts.config, parts.batch_norm)
    paths = {place: key.removesuffix(".weight") for key, (place, kind) in own.items() if kind == "weight"}
    there = {place: path for place, path in paths.items() if parts.has_head or not place.startswith("fc")}
    model.quantisation = parts.raw.roundings.of(there)


def _conv_biases(config: str, batch_norm: bool) -> list[str]:
    """Our keys of what a file may lack for all convolutions: those of a network whose convolutions have no biases."""
    return [key for key, place in places(config, batch_norm).items() if place[0][0] == "c" and place[1] == "bias"]


def sort_out(path: Path, raw: Raw, label: str, features_only: bool = False) -> Parts:
    """Finds the configuration whose names the file's tensors have.

    Args:
        path: the file.
        raw: what its reader found.
        label: the format's name, for errors.
        features_only: leave out whatever is none of the convolutions' tensors.

    Raises:
        ValueError: a tensor is missing or left over, or these are no VGG's; the text names path and tensor.
    """
    has_pools = any(step.kind == MAX_POOL for step in raw.steps or ())
    if raw.stranger and not features_only:
        raise ValueError(f"{path}: {raw.stranger}{WITHOUT_HEAD if has_pools else ''}")
    config, batch_norm, names = min(_candidates(raw), key=lambda each: _distance(raw, each[2]))
    features, head = (
        {key: name for key, name in names.items() if key.startswith(part)} for part in ("features", "classifier")
    )
    if not any(name in raw.tensors for name in names.values()):
        if raw.steps:
            check_sequence(path, raw.steps, config, batch_norm, head=False)
        theirs = listed([name for key, name in features.items() if key.endswith(".weight")], 2)
        raise ValueError(
            f"{path} holds no VGG with the names of {label} files ({theirs} ...); it has {listed(sorted(raw.tensors))}"
        )
    has_features, has_head = (any(name in raw.tensors for name in part.values()) for part in (features, head))
    has_features = has_features or has_pools
    if features_only:
        has_features, has_head = True, False
    notes = list(raw.notes)
    if raw.steps is not None:
        notes += check_sequence(
            path, raw.steps, config, batch_norm, features=has_features, head=has_head, more=features_only
        )
    needed = (features if has_features else {}) | (head if has_head else {})
    missing = [name for key, name in needed.items() if name not in raw.tensors and not key.endswith(_OPTIONAL)]
    biases = {needed[key]: key for key in _conv_biases(config, batch_norm) if key in needed}
    if unbiased := biases.keys() <= set(missing):
        missing = [name for name in missing if name not in biases]
    left_over = [] if features_only else sorted(raw.tensors.keys() - set(needed.values()))
    if missing or left_over:
        what = [f"{kind} {listed(each)}" for kind, each in (("missing:", missing), ("left over:", left_over)) if each]
        near = f"configuration {config}{' with batch norm' if batch_norm else ''}" if has_features else "the FC layers"
        hint = WITHOUT_HEAD if has_features and missing and not {*missing} & {*features.values()} else ""
        raise ValueError(f"{path} is nearest to {near} in the names of {label} files; {'; '.join(what)}{hint}")
    tensors = {}
    for key, name in needed.items():
        if name in raw.tensors:
            tensors[key] = _as_ours(path, raw, key, name, config, batch_norm)
    if unbiased:
        tensors |= {key: torch.zeros(len(tensors[key.replace("bias", "weight")])) for key in biases.values()}
    conv3_3 = next((key for key, (place, _) in places(config, batch_norm).items() if place == "conv3_3"), None)
    if config == "D" and has_features and tensors[str(conv3_3)].shape[-1] == 1:
        config = "C"
    return Parts(path, raw, tensors, needed, config if has_features else None, batch_norm, notes)


def _candidates(raw: Raw) -> list[tuple[str, bool, dict[str, str]]]:
    """(configuration, batch norm, the file's names by our keys) of each that the format can name; C is as D."""
    found = []
    for batch_norm in (False, True):
        for config in ("A-LRN" if raw.lrn else "A", "A-LRN", "B", "D", "E"):
            named = {key: raw.name(key, *place) for key, place in places(config, batch_norm).items()}
            if all(name is not None or key.endswith(_OPTIONAL) for key, name in named.items()):
                found.append((config, batch_norm, {key: name for key, name in named.items() if name is not None}))
    return found


def _distance(raw: Raw, names: Mapping[str, str]) -> int:
    """How many names only one of the two has."""
    return len(raw.tensors.keys() ^ {name for key, name in names.items() if not key.endswith(_OPTIONAL)})


def _as_ours(path: Path, raw: Raw, key: str, name: str, config: str, batch_norm: bool) -> Tensor:
    """A tensor of the file in our layout, float32."""
    place, kind = places(config, batch_norm)[key]
    tensor = torch.as_tensor(raw.tensors[name])
    if kind == _OPTIONAL:
        return tensor
    if not tensor.is_floating_point():
        raise ValueError(f"{path}: {name} must have a floating-point dtype, got {tensor.dtype}")
    ours = raw.layout(place, kind, tensor)
    dims = 1 if kind != "weight" or place.startswith("bn") else 2 if place.startswith("fc") else 4
    if ours.dim() != dims:
        raise ValueError(
            f"{path}: {name} must have {dims} axes, as the {kind} of {place}, got shape {tuple(tensor.shape)}"
        )
    return ours.float().contiguous()


def build(parts: Parts) -> VGG:
    """The network of whole features, with FC layers or without, in evaluation mode.

    Raises:
        ValueError: a tensor has another shape than the rest asks for; the text names path and tensor.
    """
    assert parts.config is not None
    layers = places(parts.config, parts.batch_norm)
    convs = [parts.tensors[key] for key, (place, kind) in layers.items() if place[0] == "c" and kind == "weight"]
    arguments: dict[str, Any] = {
        "config": parts.config, "in_channels": convs[0].shape[1], "batch_norm": parts.batch_norm,
        "width": _width(parts.config, [len(conv) for conv in convs]),
    }  # fmt: skip
    if parts.has_head:
        arguments |= _head_arguments(parts, len(convs[-1]))
        if parts.raw.hwc:
            _reorder(parts.tensors, len(convs[-1]), arguments["pool_size"])
    with torch.device("meta"):
        model = VGG(**arguments, init=None, head="linear" if parts.has_head else "none")
    for key, expected in model.state_dict().items():
        if key not in parts.tensors and key.endswith(_OPTIONAL):
            parts.tensors[key] = torch.zeros((), dtype=torch.long)
        found, place = parts.tensors[key], " ".join(layers[key])
        if found.shape != expected.shape:
            raise ValueError(
                f"{parts.path}: {parts.names[key]}, the {place}, must have shape {tuple(expected.shape)} in our layout "
                f"to fit the rest of the network, got {tuple(found.shape)}"
            )
    model.load_state_dict(parts.tensors, assign=True)
    return model.eval()


def _width(config: str, channels: Sequence[int]) -> float:
    """The width of :class:`VGG` that gives these channels: of all that do, the one with the fewest digits.

    Where none does, the median of what the layers say: the check of shapes then names the odd ones.
    """
    items = [item for item in CONFIGURATIONS[config] if isinstance(item, int)]
    if config == "C":  # a 1x1 convolution keeps its input's channels
        channels = [found for found, item in zip(channels, _convs(config), strict=True) if isinstance(item, int)]
    pairs = list(zip(channels, items, strict=True))
    low = max((out - 0.5) / item if out > 1 else 0.0 for out, item in pairs)
    high = min((out + 0.5) / item for out, item in pairs)
    for digits in range(8):
        width = round((low + high) / 2, digits)
        if width > 0 and all(max(1, round(item * width)) == out for out, item in pairs):
            return width
    return statistics.median(out / item for out, item in pairs)


def _convs(config: str) -> list[int | str]:
    return [item for item in CONFIGURATIONS[config] if item not in ("M", "LRN")]


def _head_arguments(parts: Parts, channels: int) -> dict[str, int]:
    """hidden, num_classes and pool_size, from the first and the last FC layer."""
    first, last = (parts.tensors[f"classifier.{index}.weight"] for index in (_FC_INDICES[0], _FC_INDICES[-1]))
    pool_size = math.isqrt(first.shape[1] // channels)
    if pool_size < 1 or pool_size**2 * channels != first.shape[1]:
        raise ValueError(
            f"{parts.path}: the inputs of {parts.names['classifier.0.weight']} must be a square number times the "
            f"{channels} channels of the last convolution, got {first.shape[1]}"
        )
    return {"hidden": len(first), "num_classes": len(last), "pool_size": pool_size}


def _reorder(tensors: dict[str, Tensor], channels: int, pool_size: int) -> None:
    """Inputs of the first FC layer in H, W, C order as C, H, W."""
    weight = tensors["classifier.0.weight"]
    inputs = weight.reshape(len(weight), pool_size, pool_size, channels).permute(0, 3, 1, 2)
    tensors["classifier.0.weight"] = inputs.reshape(weight.shape).contiguous()
