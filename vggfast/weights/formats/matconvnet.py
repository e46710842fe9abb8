"""MatConvNet's simple networks (.mat), by scipy in a process of its own.

A list `layers` of structs with name, type, and `weights`, {filters, biases}, or older `filters` and `biases`; FC
layers are convolutions. Filters lie as (H, W, in, out). The mean is in the file: meta.normalization.averageImage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vggfast.io import Group, read_isolated
from vggfast.preprocessing import Preprocessing
from vggfast.weights.formats._parts import Raw
from vggfast.weights.formats.keras import channels_last_as_ours

_HEAD = {"fc1": "fc6", "fc2": "fc7", "fc3": "fc8"}
_KINDS = {"weight": "filters", "bias": "biases"}
_KNOWN = ("conv", "relu", "pool", "softmax", "dropout")


def read(path: Path) -> Raw:
    """A network of `layers`, at the top of the file or in `net`."""
    content = read_isolated(path, "matlab")
    top = content if "layers" in content else content.get("net")
    if _field(top, "layers") is None:
        raise ValueError(f"it has no list 'layers', but {', '.join(content) or 'nothing'}")
    tensors: dict[str, np.ndarray] = {}
    for layer in _items(_field(top, "layers")):
        name, kind = (str(_field(layer, field)) for field in ("name", "type"))
        if kind not in _KNOWN:
            raise ValueError(f"layer {name} must be of type {', '.join(_KNOWN)}, got {kind}")
        tensors |= {f"{name} {kind}": value for kind, value in _weights(layer).items()}
    meta = _field(top, "meta", top)
    mean, origin = _mean(_field(_field(meta, "normalization"), "averageImage"))
    classes = list(map(str, _items(_field(_field(meta, "classes"), "description"))))
    return Raw(tensors, _name, _layout, Preprocessing(mean), origin, extra={"classes": classes} if classes else {})


def _plain(value: Any) -> Any:
    """What MATLAB's 1x1 arrays hold: a struct, a cell's content or a text."""
    while isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "OU":
        value = value.flat[0]
    return value


def _field(struct: Any, name: str, default: Any = None) -> Any:
    """A field of a struct, or of the file itself; arrays of numbers and lists keep their shape."""
    struct = _plain(struct)
    return _plain(struct.get(name, default) if isinstance(struct, Group) else default)


def _items(cell: Any) -> list[Any]:
    """The items of a list; a list of one is that one by itself."""
    if cell is None:
        return []
    return [_plain(item) for item in (cell.flat if isinstance(cell, np.ndarray) and cell.dtype == object else [cell])]


def _weights(layer: Any) -> dict[str, np.ndarray]:
    values = _items(_field(layer, "weights"))
    if values:
        return dict(zip((*_KINDS.values(), *(f"weights{{{i}}}" for i in range(3, 99))), values, strict=False))
    return {kind: _field(layer, kind) for kind in _KINDS.values() if _field(layer, kind) is not None}


def _mean(image: Any) -> tuple[tuple[float, ...], str]:
    """The mean colour, or the mean image's, and where it comes from."""
    if image is None or np.size(image) == 0:
        return (123.68, 116.779, 103.939), "the convention of MatConvNet"
    if np.size(image) == 3:
        image = np.reshape(image, 3)
    if np.shape(image)[-1:] != (3,):
        raise ValueError(f"averageImage must have shape (H, W, 3), or be three numbers, got {np.shape(image)}")
    return tuple(map(float, image.reshape(-1, 3).mean(0))), "the file (averageImage)"


def _name(key: str, place: str, kind: str) -> str | None:
    return None if place.startswith("bn") else f"{_HEAD.get(place, place)} {_KINDS[kind]}"


def _layout(place: str, kind: str, tensor: Tensor) -> Tensor:
    if kind != "weight":
        return tensor.flatten()
    while tensor.dim() < 4:  # MATLAB drops extents of 1 at the end
        tensor = tensor[..., None]
    return channels_last_as_ours(place, kind, tensor)
