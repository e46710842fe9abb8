"""Keras' VGGs (.h5, .weights.h5, .keras), by h5py in a process of its own.

A whole model's config says its layers (_keras_graph.py, _keras_layers.py). Files of weights alone have none: theirs are
taken to be those of keras.applications, by its names: block1_conv1 ... block5_conv3, fc1, fc2, predictions. Kernels lie
as (H, W, in, out) and (in, out), the inputs of fc1 in H, W, C order.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vggfast.io import Group, read_isolated
from vggfast.preprocessing import Preprocessing
from vggfast.weights.formats._chain import Chain
from vggfast.weights.formats._keras_graph import Layer, in_order
from vggfast.weights.formats._keras_layers import Reader, input_size
from vggfast.weights.formats._parts import Raw

_HEAD = {"fc1": "fc1", "fc2": "fc2", "fc3": "predictions"}
_KINDS = {"weight": "kernel", "bias": "bias"}
_OURS = re.compile(r"block\d_conv\d|fc1|fc2|predictions")
_PREPARE = ("rescaling", "normalization")  # of Keras 3's names of groups
_CONFIG, _INSIDE = "config.json", "model.weights.h5"
_MOST_CONFIG = 16 << 20
_STRANGE = "its config is not of the form that Keras gives it"
_CONVENTION = "keras.applications"

# The variables of each layer, in their order, by its name behind those of the models that it is in.
Variables = dict[tuple[str, ...], list[np.ndarray]]


def read(path: Path) -> Raw:
    """A file of Keras 2 or 3: whole models, or their weights."""
    file = read_isolated(path, "hdf5", skip="^/optimizer", member=_INSIDE)
    text = _inner_config(path) if zipfile.is_zipfile(path) else file.attrs.get("model_config")
    layers = None if text is None else _layers(json.loads(text))
    root = file.group("model_weights") if "model_weights" in file else file
    old = "layer_names" in root.attrs
    variables = _by_attributes(root) if old else dict(_by_groups(file.group("layers")))
    if layers is not None:
        return _by_config(path, layers, variables, old)
    prepares = [] if old else [name for name in file.group("layers") if name.startswith(_PREPARE)]
    return _by_names(variables, prepares)


def _inner_config(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        if (size := archive.getinfo(_CONFIG).file_size) > _MOST_CONFIG:
            raise ValueError(f"its {_CONFIG} must have at most {_MOST_CONFIG >> 20} MiB, got {size >> 20}")
        return archive.read(_CONFIG)


def _layers(config: Any) -> list[Layer]:
    try:
        return list(in_order(config))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(_STRANGE) from error


def _by_config(path: Path, layers: list[Layer], variables: Variables, old: bool) -> Raw:
    def keys(layer: Layer) -> list[tuple[str, ...]]:
        # The older form has all that is within a model in one group, by its layer's own name where there are several.
        return [layer.path[:1] + layer.path[1:][-1:], layer.path[:1]] if old else [layer.path, layer.group]

    def of(layer: Layer) -> list[np.ndarray]:
        return next((variables[key] for key in keys(layer) if key in variables), [])

    try:
        alone = not any("Pooling2D" in layer.kind or "Conv2D" in layer.kind for layer in layers)
        shape = layers[0].shape if layers else None
        reader = Reader(Chain(path, input_size(layers), alone, flat=shape is not None and len(shape) == 2), of)
        for layer in layers:
            reader.meet(layer)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(_STRANGE) from error
    for key in variables.keys() - {key for layer in layers for key in keys(layer)}:
        reader.chain.tensors |= _named("/".join(key), variables[key])
    return reader.chain.raw(channels_last_as_ours, *reader.preprocessing(), hwc=reader.hwc)


def _by_names(variables: Variables, prepares: list[str]) -> Raw:
    """Of weights alone, wherever they lie: in the names of keras.applications. `prepares`: layers before these."""
    tensors: dict[str, np.ndarray] = {}
    places: dict[str, str] = {}
    for key, values in variables.items():
        layer = key[-1]
        if layer in places and _OURS.fullmatch(layer):
            raise ValueError(f"it holds layers of one name: {places[layer]} and {'/'.join(key)}")
        layer = "/".join(key) if layer in places else layer
        places[layer] = "/".join(key)
        tensors |= _named(layer, values)
    return Raw(
        tensors, _name, channels_last_as_ours, Preprocessing.caffe(), f"the convention of {_CONVENTION}",
        # A kernel of four dimensions is a convolution's, whose inputs its layout puts in order.
        hwc="fc1/kernel" in tensors and tensors["fc1/kernel"].ndim == 2,
        notes=[
            f"the file holds weights alone; that its layers are {_CONVENTION}' is told by their names",
            *(f"its layer {name} prepares the images, and the file does not say how: give --preprocessing"
              for name in prepares),
        ],
    )  # fmt: skip


def _named(layer: str, values: list[np.ndarray]) -> dict[str, np.ndarray]:
    kinds = [*_KINDS.values(), *(f"variable {i}" for i in range(2, len(values)))]
    return {f"{layer}/{kind}": value for kind, value in zip(kinds, values, strict=False)}


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
        if place.startswith("fc") and tensor.shape[0] != tensor.shape[1]:
            raise ValueError(f"{place} must read a square map, got {tensor.shape[0]}x{tensor.shape[1]}")
        tensor = tensor.permute(3, 2, 0, 1)
        return tensor.flatten(1) if place.startswith("fc") else tensor
    return tensor.t() if tensor.dim() == 2 else tensor


def _by_attributes(root: Group) -> Variables:
    """Of the older form, where attributes list the layers, and each layer's variables in their order.

    Those of a model within the model are told from each other by the last names but one: "block1_conv1/kernel:0".
    """
    found: Variables = {}
    for layer in root.texts("layer_names"):
        group = root.group(layer)
        names = group.texts("weight_names")
        inner = [name.split("/")[-2] if "/" in name else layer for name in names]
        nested = len(set(inner)) > 1
        for name, within in zip(names, inner, strict=True):
            key = (layer, within) if nested else (layer,)
            found.setdefault(key, []).append(group.array(name))
    return found


def _by_groups(layers: Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[np.ndarray]]]:
    """Of Keras 3's form: each layer's group has its variables in "vars", and there the layer's name as an attribute.

    Earlier versions leave the name out; the group is then called by the layer's class.
    """
    for name in layers:
        layer = layers.group(name)
        variables = layer.group("vars") if "vars" in layer else Group({}, {})
        within = (*path, str(variables.attrs.get("name", name)))
        if variables:
            yield within, [variables.array(str(i)) for i in range(len(variables))]
        if "layers" in layer:
            yield from _by_groups(layer.group("layers"), within)
