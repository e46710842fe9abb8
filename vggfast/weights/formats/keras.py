"""Keras' VGGs (.h5, .weights.h5, .keras), by h5py and zipfile alone.

The names are those of keras.applications: block1_conv1 ... block5_conv3, fc1, fc2, predictions. Kernels lie as
(H, W, in, out) and (in, out), the inputs of fc1 in H, W, C order.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vggfast.preprocessing import Preprocessing
from vggfast.weights.formats._parts import Raw

_HEAD = {"fc1": "fc1", "fc2": "fc2", "fc3": "predictions"}
_KINDS = {"weight": "kernel", "bias": "bias"}
_INSIDE = "model.weights.h5"


def read(path: Path) -> Raw:
    """A file of Keras 2 or 3: whole models, or their weights."""
    import h5py

    source: Any = path
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            source = io.BytesIO(archive.read(_INSIDE))
    with h5py.File(source, "r") as file:
        tensors = _by_attributes(file) if "layer_names" in _root(file).attrs else _by_groups(file)
    return Raw(
        tensors, _name, channels_last_as_ours, Preprocessing.caffe(), "the convention of keras.applications",
        # A kernel of four dimensions is a convolution's, whose inputs its layout puts in order.
        hwc="fc1/kernel" in tensors and tensors["fc1/kernel"].ndim == 2,
    )  # fmt: skip


def _name(key: str, place: str, kind: str) -> str | None:
    if place.startswith("bn"):
        return None
    layer = _HEAD.get(place) or "block{}_conv{}".format(*place[4:].split("_"))
    return f"{layer}/{_KINDS[kind]}"


def channels_last_as_ours(place: str, kind: str, tensor: Tensor) -> Tensor:
    """(H, W, in, out) as (out, in, H, W), (in, out) as (out, in); an FC layer kept as a convolution as (out, in)."""
    if kind != "weight":
        return tensor
    if tensor.dim() == 4:
        tensor = tensor.permute(3, 2, 0, 1)
        return tensor.flatten(1) if place.startswith("fc") else tensor
    return tensor.t() if tensor.dim() == 2 else tensor


def _root(file: Any) -> Any:
    return file.get("model_weights", file)


def _by_attributes(file: Any) -> dict[str, np.ndarray]:
    """Of the older form, where attributes list the layers, and each layer's kernel and bias in this order."""
    tensors: dict[str, np.ndarray] = {}
    root = _root(file)
    for layer in map(_text, root.attrs["layer_names"]):
        names = list(map(_text, root[layer].attrs["weight_names"]))
        tensors |= _of_layer(layer, [np.array(root[layer][name]) for name in names])
    return tensors


def _by_groups(file: Any) -> dict[str, np.ndarray]:
    """Of Keras 3's form, where each layer's group has its variables in "vars", and the layer's name in an attribute."""
    tensors: dict[str, np.ndarray] = {}
    for name, group in file["layers"].items():
        variables = group.get("vars", {})
        values = [np.array(variables[key]) for key in sorted(variables, key=int)]
        tensors |= _of_layer(_text(variables.attrs.get("name", name)) if values else name, values)
    return tensors


def _of_layer(layer: str, values: list[np.ndarray]) -> dict[str, np.ndarray]:
    kinds = [*_KINDS.values(), *(f"variable {i}" for i in range(2, len(values)))]
    return {f"{layer}/{kind}": value for kind, value in zip(kinds, values, strict=False)}


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
