"""Keras' VGGs (.h5, .weights.h5, .keras), by h5py in a process of its own.

The names are those of keras.applications: block1_conv1 ... block5_conv3, fc1, fc2, predictions. Kernels lie as
(H, W, in, out) and (in, out), the inputs of fc1 in H, W, C order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from vggfast.io import Group, read_isolated
from vggfast.preprocessing import Preprocessing
from vggfast.weights.formats._parts import Raw

_HEAD = {"fc1": "fc1", "fc2": "fc2", "fc3": "predictions"}
_KINDS = {"weight": "kernel", "bias": "bias"}
_INSIDE = "model.weights.h5"


def read(path: Path) -> Raw:
    """A file of Keras 2 or 3: whole models, or their weights."""
    file = read_isolated(path, "hdf5", skip="^/optimizer", member=_INSIDE)
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


def _root(file: Group) -> Group:
    return file.group("model_weights") if "model_weights" in file else file


def _by_attributes(file: Group) -> dict[str, np.ndarray]:
    """Of the older form, where attributes list the layers, and each layer's kernel and bias in this order."""
    tensors: dict[str, np.ndarray] = {}
    root = _root(file)
    for layer in root.texts("layer_names"):
        group = root.group(layer)
        tensors |= _of_layer(layer, [group.array(name) for name in group.texts("weight_names")])
    return tensors


def _by_groups(file: Group) -> dict[str, np.ndarray]:
    """Of Keras 3's form, where each layer's group has its variables in "vars", and the layer's name in an attribute."""
    tensors: dict[str, np.ndarray] = {}
    layers = file.group("layers")
    for name in layers:
        layer = layers.group(name)
        variables = layer.group("vars") if "vars" in layer else Group({}, {})
        values = [variables.array(str(i)) for i in range(len(variables))]
        tensors |= _of_layer(str(variables.attrs.get("name", name)) if values else name, values)
    return tensors


def _of_layer(layer: str, values: list[np.ndarray]) -> dict[str, np.ndarray]:
    kinds = [*_KINDS.values(), *(f"variable {i}" for i in range(2, len(values)))]
    return {f"{layer}/{kind}": value for kind, value in zip(kinds, values, strict=False)}
