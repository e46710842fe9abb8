"""Caffe's networks with layers put in, taken out, exchanged and set otherwise: .caffemodel, old and new, and prototxt.

The reference computes the blobs one by one, by torch: a network that was read gives the same numbers.
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
from tests.support import caffe_nets as nets
from tests.support.comparisons import relative_error
from tests.support.foreign import caffe_tensors, network
from vggfast.weights.formats import read

_SETTINGS: dict[str, dict[str, list[Any]]] = {
    "convolution_param": {
        "pad": [0, 1, 1, 2, [1, 1], [1, 0]], "stride": [1, 1, 2, [1, 2]], "dilation": [1, 2], "group": [1, 2],
        "kernel_size": [1, 3, [3, 3]], "bias_term": [True, False], "hole": [2],
    },
    "pooling_param": {
        "pool": ["MAX", "AVE"], "kernel_size": [2, 2, 3], "stride": [2, 2, 1], "pad": [0, 1], "global_pooling": [True],
        "round_mode": ["CEIL", "FLOOR"],
    },
    "relu_param": {"negative_slope": [0.0, 0.1]},
    "inner_product_param": {"bias_term": [True, False], "axis": [1, 2], "transpose": [False, True]},
}  # fmt: skip
_SIZES = [(64, 64), (64, 64), (70, 70), (32, 128), (96, 96), None]


def _more(random: stdlib_random.Random, name: str, at: str) -> dict[str, Any]:
    """A layer to put in behind a blob."""
    top = random.choice([name, at])
    lrn = {"local_size": 5, "alpha": 1e-4, "beta": 0.75, "k": random.choice([1.0, 2.0])}
    pool = {"pool": random.choice(["MAX", "AVE"]), "kernel_size": 2, "stride": 2}
    return random.choice([
        nets.layer("ReLU", name, at, top), nets.layer("Dropout", name, at, top), nets.layer("Sigmoid", name, at, top),
        nets.layer("TanH", name, at, top), nets.layer("Softmax", name, at, top),
        nets.layer("LRN", name, at, top, lrn_param=lrn),
        nets.layer("Pooling", name, at, name, pooling_param=pool), nets.layer("Split", name, at, [top, f"{name}_2"]),
        nets.layer("Eltwise", name, [at, at], top), nets.layer("Accuracy", name, [at, "label"], f"{name}_score"),
    ])  # fmt: skip


def _mutated(random: stdlib_random.Random, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = copy.deepcopy(layers)
    for i in range(random.choice([0, 1, 1, 1, 2, 2])):
        at = random.randrange(len(found))
        each = found[at]
        param = {"Convolution": "convolution_param", "Pooling": "pooling_param", "ReLU": "relu_param",
                 "InnerProduct": "inner_product_param"}.get(each["type"])  # fmt: skip
        what = random.choice(["set", "set", "set", "put", "put", "out", "exchange", "type"])
        if what == "set" and param:
            name = random.choice(list(_SETTINGS[param]))
            each[param] = {**each.get(param, {}), name: random.choice(_SETTINGS[param][name])}
        elif what == "put":
            more = _more(random, f"more{i}", each["top"][0])
            for after in found[at + 1 :]:
                if more["top"] == [more["name"]]:
                    after["bottom"] = [more["name"] if blob == each["top"][0] else blob for blob in after["bottom"]]
            found.insert(at + 1, more)
        elif what == "out" and len(found) > 1:
            del found[at]
            for after in found[at:]:
                after["bottom"] = [each["bottom"][0] if blob == each["top"][0] else blob for blob in after["bottom"]]
        elif what == "exchange":
            other = random.randrange(len(found))
            found[at], found[other] = found[other], found[at]
        elif what == "type" and each["type"] == "ReLU":
            each["type"] = random.choice(["Sigmoid", "TanH", "Dropout"])
    return found


def _two(value: Any) -> list[int]:
    return value if isinstance(value, list) else [value, value]


def _pool(x: Tensor, found: dict[str, Any]) -> Tensor:
    run = F.avg_pool2d if found.get("pool") == "AVE" else F.max_pool2d
    if found.get("global_pooling"):
        return run(x, x.shape[2:])
    up = found.get("round_mode", "CEIL") == "CEIL"
    return run(x, found["kernel_size"], found.get("stride", 1), found.get("pad", 0), ceil_mode=up)


def _run(each: dict[str, Any], blobs: list[np.ndarray], x: Tensor) -> Tensor:
    kind, values = each["type"], [torch.tensor(value) for value in blobs]
    if kind == "Convolution":
        found = each["convolution_param"]
        if _two(found["kernel_size"]) != list(values[0].shape[2:]) or "hole" in found:
            raise ValueError("not computed")
        bias = values[1] if found.get("bias_term", True) else None
        stride, pad, dilation = (
            _two(found.get(name, start)) for name, start in (("stride", 1), ("pad", 0), ("dilation", 1))
        )
        return F.conv2d(x, values[0], bias, stride, pad, dilation, found.get("group", 1))
    if kind == "InnerProduct":
        found = each["inner_product_param"]
        if found.get("axis", 1) != 1 or found.get("transpose"):
            raise ValueError("not computed")
        return F.linear(x.flatten(1), values[0], values[1] if found.get("bias_term", True) else None)
    if kind == "Pooling":
        return _pool(x, each["pooling_param"])
    if kind == "LRN":
        return F.local_response_norm(x, 5, 1e-4, 0.75, each["lrn_param"]["k"])
    slope = each.get("relu_param", {}).get("negative_slope", 0.0)
    return {
        "ReLU": lambda: F.leaky_relu(x, slope), "Sigmoid": x.sigmoid, "TanH": x.tanh, "Softmax": lambda: x.softmax(1),
        "Dropout": lambda: x, "Eltwise": lambda: x + x,
    }[kind]()  # fmt: skip


def _reference(layers: list[dict[str, Any]], tensors: dict[str, np.ndarray], x: Tensor) -> Tensor | None:
    """The scores before a last softmax, or None where the layers do not fit one another."""
    made, last = {"data": x}, x
    layers = [each for each in layers if each["type"] != "Accuracy"]
    ends = next((i for i in reversed(range(len(layers))) if layers[i]["type"] not in ("Dropout", "Split")), 0)
    try:
        for i, each in enumerate(layers):
            last = made[each["bottom"][0]]
            if each["type"] != "Split" and (i != ends or each["type"] != "Softmax"):
                blobs = [value for key, value in tensors.items() if key.startswith(f"{each['name']}[")]
                last = _run(each, blobs, last)
            made |= dict.fromkeys(each["top"], last)
    except (RuntimeError, ValueError, KeyError, IndexError):
        return None
    return last


def case(random: stdlib_random.Random, folder: Path) -> bool:
    torch.manual_seed(random.randrange(1 << 30))
    tensors = caffe_tensors(network(random.choice(["A", "B"]), width=0.05, hidden=8))
    layers = _mutated(random, nets.layers_of(tensors))
    for each in layers:
        if each.get("inner_product_param", {}).get("bias_term") is False and random.random() < 0.5:
            del tensors[f"{each['name']}[1]"]
    size, form = random.choice(_SIZES), random.choice(["new", "old", "prototxt"])
    path = folder / "m.caffemodel"
    nets.write(path, tensors, form == "old", layers if form != "prototxt" else None)
    if form == "prototxt":
        head = "".join(f"input_dim: {extent}\n" for extent in (1, 3, *(size or ())))
        nets.write_prototxt(folder / "m.prototxt", layers, f'input: "data"\n{head if size else ""}')
    else:
        size = None
    found = harness.attempt(read, path, names=[path.name])
    if found is None:
        return False
    pixels = np.random.default_rng(0).integers(0, 256, (*(size or (64, 64)), 3), np.uint8)
    x = vggfast.Preprocessing.caffe().tensor(pixels)[None].double()  # as scores may be far smaller than the maps
    with torch.no_grad():
        wanted = _reference(layers, {name: value.astype(np.float64) for name, value in tensors.items()}, x)
        got = found.model.double()(x)
    if wanted is None or got.shape != wanted.shape or relative_error(got, wanted) > 1e-4:
        raise harness.Different(f"{form}, {size}: {[(each['type'], each['name']) for each in layers]}")
    return True
