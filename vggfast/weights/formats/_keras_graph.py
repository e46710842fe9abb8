"""Keras' config of a model: its layers in the order in which they run, and their places in a VGG.

A model is a Sequential, whose layers run one after the other, or a Functional, whose layers say what they read
(inbound_nodes, in a form of Keras 2 and one of Keras 3). Models within a model are gone through where they stand.
Keras 3's operators on a tensor and a number are layers, too: these stand as the Rescaling that they are.
Layers' classes are known by name alone: what is no layer of Keras' own, a Lambda for one, is never run and never taken.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vggfast.io import listed
from vggfast.weights.formats._sequence import with_article

_MODELS = ("Functional", "Model", "Sequential")
_PACKAGES = ("keras", "tf_keras")
_OPERATORS, _DIVISIONS = "keras.src.ops.numpy", ("Divide", "TrueDivide")


@dataclass
class Layer:
    """A layer of a model, or what stands where none can be gone on to.

    Attributes:
        path: its name, behind those of the models that it is in.
        group: where Keras 3's files have its variables: the names of the groups, one a model.
        kind: its class, or what it is, with an article, where `config` is None.
        config: its settings.
        shape: of its input, where the file says it.
    """

    path: tuple[str, ...]
    group: tuple[str, ...]
    kind: str
    config: Mapping[str, Any] | None
    shape: list[int | None] | None = None

    @property
    def name(self) -> str:
        return "/".join(self.path)


def in_order(model: Mapping[str, Any]) -> Iterator[Layer]:
    """The layers of a model's config.

    Raises:
        ValueError: it is no model, or has several inputs; the text says so.
    """
    if model.get("class_name") not in _MODELS or _is_strange(model):
        raise ValueError(f"it holds {with_article(_class(model))}, whose config says no layers in their order")
    yield from _go_through(model, (), ())


def _class(layer: Mapping[str, Any]) -> str:
    return f"{layer.get('class_name')}{' of another package' if _is_strange(layer) else ''}"


def _is_strange(layer: Mapping[str, Any]) -> bool:
    """Whether it is a class of somebody's own, whatever its name."""
    return "module" in layer and str(layer["module"]).split(".")[0] not in _PACKAGES


def _go_through(model: Mapping[str, Any], path: tuple[str, ...], group: tuple[str, ...]) -> Iterator[Layer]:
    config = model["config"]
    layers = config if isinstance(config, list) else config["layers"]
    groups = dict(zip(map(_name, layers), _groups(layers), strict=True))
    if len(groups) < len(layers):
        raise ValueError("its config has two layers of one name")
    run = layers if model["class_name"] == "Sequential" else _functional(config)
    for layer in run:
        if isinstance(layer, Layer):
            yield Layer((*path, *layer.path), group, layer.kind, None)
            return
        name = _name(layer)
        inside = (*path, name), (*group, groups[name])
        if layer["class_name"] in _MODELS and not _is_strange(layer):
            yield from _go_through(layer, *inside)
        else:
            yield Layer(*inside, _class(layer), layer["config"], _shape(layer, config))


def _name(layer: Mapping[str, Any]) -> str:
    return str(layer.get("name") or layer["config"]["name"])


def _groups(layers: list[Mapping[str, Any]]) -> Iterator[str]:
    """What Keras 3's files call the layers' groups: by their classes, counted."""
    counts: Counter[str] = Counter()
    for layer in layers:
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", layer["class_name"]).lower()
        yield f"{kind}_{counts[kind]}" if counts[kind] else kind
        counts[kind] += 1


def _shape(layer: Mapping[str, Any], model: Any) -> list[int | None] | None:
    """Of what a first layer reads, by whichever of the names that versions of Keras have for it."""
    for name in ("batch_shape", "batch_input_shape"):
        if layer["config"].get(name):
            return layer["config"][name]
    return model.get("build_input_shape") if isinstance(model, dict) else None


def _functional(config: Mapping[str, Any]) -> Iterator[Any]:
    """The layers' configs from the input on, as long as each is read by one other, and a Layer where they are not."""
    layers = {_name(layer): layer for layer in config["layers"]}

    def given(value: Any) -> list[tuple[str, int]]:
        """As _tensors; of a model within, Keras 2 also counts the node that made it, which is not in the file."""
        found = ((name, i, layers.get(name, {})) for name, i in _tensors(value))
        return [
            (name, i - (i == 1 and layer.get("class_name") in _MODELS and len(layer["inbound_nodes"]) == 1))
            for name, i, layer in found
        ]

    inputs, outputs = (Counter(given(config[name])) for name in ("input_layers", "output_layers"))
    if len(inputs) != 1:
        raise ValueError(f"it must have one input, got {len(inputs)}: {listed(name for name, _ in inputs)}")
    readers: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for name, layer in layers.items():
        for i, node in enumerate(layer["inbound_nodes"]):
            for tensor in dict.fromkeys(given(node)):
                readers.setdefault(tensor, []).append((name, i))
    at, done = next(iter(inputs)), set()
    yield layers[at[0]]
    while at not in outputs or at in readers:
        if at not in outputs and (stack := _reversal(at, readers, layers)) is not None:
            at = stack, 0
            yield {"class_name": "Reversal", "name": stack, "config": {}}
            continue
        after = [name for name, _ in readers.get(at, [])] + ["an output"] * outputs[at]
        if len(after) != 1:
            yield Layer((at[0],), (), f"read by {listed(after) or 'nothing'}", None)
            return
        at = readers[at][0]
        layer = layers[at[0]]
        node = layer["inbound_nodes"][at[1]]
        if at[0] in done or len(layer["inbound_nodes"]) != 1:
            yield Layer((at[0],), (), f"{with_article(_class(layer))} that runs more than once", None)
            return
        if rescaling := _rescaling(layer, node):
            layer = rescaling
        elif len(_tensors(node)) != 1 or (more := _given(node, layer)):
            more = "several inputs" if len(_tensors(node)) != 1 else more
            yield Layer((at[0],), (), f"{with_article(_class(layer))} with {more}", None)
            return
        done.add(at[0])
        yield layer


def _rescaling(layer: Mapping[str, Any], node: Any) -> dict[str, Any] | None:
    """The Rescaling that an operator on a tensor and floating-point numbers is; None for what is none.

    Whole numbers would keep the type of an image of such, and wrap around; a division does not.
    """
    if not _is_operator(layer, "Add", "Subtract", "Multiply", *_DIVISIONS) or node["kwargs"]:
        return None
    args, kind = node["args"], layer["class_name"]
    is_tensor = [bool(_tensors(each)) for each in args]
    if sorted(is_tensor) != [False, True] or (kind not in ("Add", "Multiply") and is_tensor[1]):
        return None
    value = args[is_tensor.index(False)]
    value = np.asarray(value["config"]["value"] if isinstance(value, dict) else value)
    if value.dtype.kind != "f" and not (value.dtype.kind == "i" and kind in _DIVISIONS):
        return None
    if kind in ("Add", "Subtract"):
        change = {"offset": value if kind == "Add" else -value}
    elif value.all():
        change = {"scale": value if kind == "Multiply" else 1 / value}
    else:
        return None
    return {"class_name": "Rescaling", "name": _name(layer), "config": change}


def _reversal(at: tuple[str, int], readers: Mapping[tuple[str, int], Any], layers: Mapping[str, Any]) -> str | None:
    """The Stack that puts the three channels of a tensor together in reverse, as preprocess_input does; or None."""
    items, stacks = {}, set()
    for name, _ in readers.get(at, []):
        node, after = layers[name]["inbound_nodes"][0], readers.get((name, 0), [])
        if not _is_operator(layers[name], "GetItem") or _tensors(node) != [at] or node["kwargs"] or len(after) != 1:
            return None
        items[name, 0] = node["args"][1:]
        stacks.add(after[0][0])
    stack = layers[stacks.pop()] if len(stacks) == 1 else {}
    if not _is_operator(stack, "Stack") or stack["config"].get("axis") not in (-1, 3):
        return None
    reverse = [[[{"class_name": "__ellipsis__", "config": {}}, channel]] for channel in (2, 1, 0)]
    return _name(stack) if [items.get(item) for item in _tensors(stack["inbound_nodes"])] == reverse else None


def _is_operator(layer: Mapping[str, Any], *kinds: str) -> bool:
    """Whether it is one of Keras 3's operators, whose module .h5 files leave out, and runs once."""
    nodes = layer.get("inbound_nodes", [])
    known = layer.get("class_name") in kinds and layer.get("module", _OPERATORS) == _OPERATORS
    return known and len(nodes) == 1 and isinstance(nodes[0], dict)


def _tensors(value: Any) -> list[tuple[str, int]]:
    """(layer's name, which of its nodes) of each tensor that stands in a value, in the forms of Keras 2 and 3."""
    if isinstance(value, dict):
        history = (
            value.get("config", {}).get("keras_history") if value.get("class_name") == "__keras_tensor__" else None
        )
        return _tensors(history if history is not None else list(value.values()))
    if not isinstance(value, list):
        return []
    if len(value) >= 3 and isinstance(value[0], str) and all(isinstance(each, int) for each in value[1:3]):
        return [(value[0], value[1])]
    return [tensor for each in value for tensor in _tensors(each)]


def _given(node: Any, layer: Mapping[str, Any]) -> str:
    """What a layer is called with beside its input, as training=True; "" for nothing.

    Keras 3 notes training=True of each layer that changes images at random, and obeys it in training alone.
    """
    if isinstance(node, dict):
        args, kwargs = node.get("args", []), node.get("kwargs", {})
    else:
        node = node if node and isinstance(node[0], str) else node[0]
        args, kwargs = [], node[3] if len(node) > 3 else {}
    known = ("training",) if str(layer.get("class_name")).startswith("Random") else ()
    kwargs = {name: value for name, value in kwargs.items() if name not in known and value not in (None, False)}
    found = [f"{name}={value}" for name, value in kwargs.items() if not _tensors(value)]
    return ", ".join([*found, *(f"{value}" for value in args[1:] if value is not None)])
