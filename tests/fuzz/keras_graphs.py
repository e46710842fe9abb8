"""Keras' models with layers put in, taken out, exchanged and set otherwise.

The reference computes the layers one by one, by torch: a model that was read gives the same numbers.
"""

from __future__ import annotations

import copy
import random as stdlib_random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import vggfast
from tests.fuzz import harness
from tests.support import keras_models as kinds
from tests.support.comparisons import relative_error
from tests.support.foreign import keras_tensors, network
from vggfast.weights.formats import read

_ACTIVATIONS = {
    "linear": lambda x: x, "relu": F.relu, "elu": F.elu, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
    "relu6": F.relu6, "softplus": F.softplus, "softmax": lambda x: x.softmax(-1 if x.dim() == 2 else 1),
}  # fmt: skip
_SETTINGS: dict[str, list[Any]] = {
    "strides": [[1, 1], [2, 2], [1, 2], None], "padding": ["same", "valid"], "dilation_rate": [[1, 1], [2, 2]],
    "groups": [1, 2], "activation": list(_ACTIVATIONS), "use_bias": [True, False],
    "kernel_size": [[3, 3], [1, 1], [5, 5]],
    "pool_size": [[2, 2], [3, 3], [1, 1]], "scale": [1.0, 0.5, -1.0, [1.0, 2.0, 3.0]], "offset": [0.0, 1.0],
    "data_format": ["channels_last", "channels_first"], "dtype": ["float32", "int8"], "gain": [2.0, None],
}  # fmt: skip
_SHAPES = [(64, 64), (64, 64), (64, 64), (70, 70), (32, 128), (64, 96), (96, 96), (None, None)]


def _more(random: stdlib_random.Random, name: str) -> dict[str, Any]:
    """A layer to put in."""
    pads = [[random.choice([0, 1, 1, 2]) for _ in range(2)] for _ in range(2)]
    return random.choice([
        kinds.pool(name, random.choice(["MaxPooling2D", "AveragePooling2D"])), kinds.flatten(name),
        kinds.layer("Activation", name, activation=random.choice(list(_ACTIVATIONS))),
        kinds.layer("ReLU", name, max_value=random.choice([None, None, 6.0]), negative_slope=0.0, threshold=0.0),
        kinds.layer("Dropout", name, rate=0.5, seed=None), kinds.layer("RandomFlip", name, mode="horizontal"),
        kinds.layer("ZeroPadding2D", name, padding=pads, data_format="channels_last"),
        kinds.layer("Rescaling", name, scale=random.choice([0.5, 1 / 255]), offset=random.choice([0.0, -1.0])),
        kinds.layer("GlobalAveragePooling2D", name, data_format="channels_last", keepdims=random.random() < 0.3),
        kinds.layer("GlobalMaxPooling2D", name, data_format="channels_last", keepdims=False),
        kinds.layer("Softmax", name, axis=-1), kinds.layer("LeakyReLU", name, negative_slope=0.2),
        kinds.layer("Lambda", name), kinds.layer("Mine", name),
    ])  # fmt: skip


def _mutated(random: stdlib_random.Random, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = copy.deepcopy(layers)
    for i in range(random.choice([0, 1, 1, 1, 2, 2, 3])):
        at = random.randrange(len(found))
        what = random.choice(["set", "set", "set", "put", "put", "out", "exchange", "padded"])
        if what == "set":
            config = found[at]["config"]
            names = [name for name in _SETTINGS if name in config or random.random() < 0.02]
            name = random.choice(names)
            config[name] = random.choice(_SETTINGS[name])
        elif what == "put":
            found.insert(random.choice([0, at, at + 1, len(found)]), _more(random, f"more_{i}"))
        elif what == "out" and len(found) > 1:
            del found[at]
        elif what == "exchange":
            other = random.randrange(len(found))
            found[at], found[other] = found[other], found[at]
        elif found[at]["class_name"] == "Conv2D":
            found[at]["config"]["padding"] = "valid"
            pads = {"padding": [[1, 1], [1, 1]], "data_format": "channels_last"}
            found.insert(at, kinds.layer("ZeroPadding2D", f"zeros_{i}", **pads))
    return found


def _pads(extent: int, kernel: int, stride: int, dilation: int = 1) -> list[int]:
    total = max(0, (-(-extent // stride) - 1) * stride + (kernel - 1) * dilation + 1 - extent)
    return [total // 2, total - total // 2]


def _padded(x: Tensor, config: dict[str, Any], kernel: list[int], stride: list[int], value: float) -> Tensor:
    if config["padding"] == "valid":
        return x
    dilation = config.get("dilation_rate", [1, 1])
    pads = [_pads(x.shape[2 + i], kernel[i], stride[i], dilation[i]) for i in (1, 0)]
    return F.pad(x, pads[0] + pads[1], value=value)


def _run(layer: dict[str, Any], values: list[np.ndarray], x: Tensor) -> Tensor:
    kind, config = layer["class_name"], layer["config"]
    if config.get("data_format") == "channels_first" or config.get("gain") or config["dtype"] == "int8":
        raise ValueError("not computed")
    values = [torch.tensor(value) for value in values]
    if kind == "Conv2D":
        if config["kernel_size"] != list(values[0].shape[:2]) or (len(values) == 2) != config["use_bias"]:
            raise ValueError("no such weights")
        stride = config["strides"] or [1, 1]
        x = _padded(x, config, config["kernel_size"], stride, 0)
        bias = values[1] if config["use_bias"] else None
        x = F.conv2d(x, values[0].permute(3, 2, 0, 1), bias, stride, 0, config["dilation_rate"], config["groups"])
    elif kind == "Dense":
        if (len(values) == 2) != config["use_bias"]:
            raise ValueError("no such weights")
        x = torch.tensordot(x if x.dim() == 2 else x.movedim(1, -1), values[0], 1) + (
            values[1] if config["use_bias"] else 0
        )
        x = x if x.dim() == 2 else x.movedim(-1, 1)
    elif kind in ("MaxPooling2D", "AveragePooling2D"):
        size, stride = config["pool_size"], config["strides"] or config["pool_size"]
        if kind == "AveragePooling2D":
            return F.avg_pool2d(x, size, stride)
        return F.max_pool2d(_padded(x, config, size, stride, -torch.inf), size, stride)
    elif kind == "ReLU":
        return F.relu(x) if config["max_value"] is None else F.relu6(x)
    elif kind == "LeakyReLU":
        return F.leaky_relu(x, 0.2)
    elif kind == "ZeroPadding2D":
        (top, bottom), (left, right) = config["padding"]
        return F.pad(x, (left, right, top, bottom))
    elif kind == "Rescaling":
        scale, offset = (
            torch.tensor(config[name], dtype=torch.float32).reshape(-1, 1, 1) for name in ("scale", "offset")
        )
        return x * scale + offset
    elif kind.startswith("Global"):
        x = x.mean((2, 3)) if "Average" in kind else x.amax((2, 3))
        return x[..., None, None] if config["keepdims"] else x
    elif kind == "Flatten":
        return (x if x.dim() == 2 else x.movedim(1, -1)).flatten(1)
    elif kind == "Softmax":
        return _ACTIVATIONS["softmax"](x)
    elif kind in ("Lambda", "Mine"):
        raise ValueError("not computed")
    return _ACTIVATIONS[config.get("activation", "linear")](x)


def _reference(layers: list[dict[str, Any]], variables: dict[str, Any], shape: list[int], x: Tensor) -> Tensor | None:
    """The scores, or None where the layers do not fit one another, or a shape that Keras' own would need."""
    last = next(
        (i for i in reversed(range(len(layers))) if layers[i]["class_name"] not in ("Dropout", "RandomFlip")), 0
    )
    layers = copy.deepcopy(layers)
    if layers[last]["config"].get("activation") == "softmax":  # which is left out
        layers[last]["config"]["activation"] = "linear"
    elif layers[last]["class_name"] == "Softmax":
        del layers[last]
    try:
        for layer in layers:
            x = _run(layer, variables.get(layer["config"]["name"], []), x)
    except (RuntimeError, ValueError, IndexError):
        return None
    return x


def case(random: stdlib_random.Random, folder: Path) -> bool:
    torch.manual_seed(random.randrange(1 << 30))
    model = network(random.choice(["A", "B"]), width=0.05, hidden=8)
    tensors = keras_tensors(model)
    layers = _mutated(random, kinds.layers_of(tensors))
    height, width = random.choice(_SHAPES)
    given, variables = layers, kinds.by_layer(tensors)
    for layer in layers:
        if random.random() < 0.5 and layer["config"].get("use_bias") is False:
            variables[layer["config"]["name"]] = variables[layer["config"]["name"]][:1]
    if random.random() < 0.3 and len(layers) > 3:
        at = random.randrange(1, len(layers))
        given = [random.choice([kinds.functional, kinds.sequential])(layers[:at], name="within"), *layers[at:]]
    form = random.choice([kinds.sequential, kinds.functional])
    path = folder / random.choice(["m.keras", "m.h5"])
    (kinds.write_keras if path.suffix == ".keras" else kinds.write_h5)(
        path, form(given, (None, height, width, 3)), variables
    )
    found = harness.attempt(read, path, names=[path.name])
    if found is None:
        return False
    pixels = np.random.default_rng(0).integers(0, 256, (height or 64, width or 64, 3), np.uint8)
    prepared = any(layer["class_name"] == "Rescaling" for layer in layers)
    takes = vggfast.Preprocessing((0.0,) * 3) if prepared else vggfast.Preprocessing.caffe()
    with torch.no_grad():
        wanted = _reference(layers, variables, [height, width], takes.tensor(pixels)[None])
        got = found.model(found.model.preprocessing.tensor(pixels)[None])
    if (
        wanted is None
        or got.flatten(1).shape != wanted.flatten(1).shape
        or relative_error(got.flatten(1), wanted.flatten(1)) > 1e-4
    ):
        raise harness.Different(
            f"{[(layer['class_name'], layer['config']['name']) for layer in layers]}, {height}x{width}"
        )
    return True
