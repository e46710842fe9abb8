"""Graphs of torch.export: out of a .pt2 file, or of a live module.

Of a file, JSON and raw tensors are read here: torch.export.load runs the pickles that a file may have.
"""

from __future__ import annotations

import functools
import json
import math
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MODEL = "/models/model.json"  # the end of the name of a file's graph
_MOST_JSON = 16 << 20  # bytes; a VGG's graph has some 300 KiB
# torch/_export/serde/schema.py's ScalarType and Layout.
_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 12: torch.bool, 13: torch.bfloat16, 28: torch.uint16,
}  # fmt: skip
_STRIDED = 7
_PLAIN = ("as_int", "as_ints", "as_float", "as_bool", "as_string")


@dataclass(frozen=True)
class Ref:
    """What a node reads: the name of another, of a constant or of the input."""

    name: str


@dataclass(frozen=True)
class Node:
    """A call of an operator, such as "aten.conv2d.default", with its arguments by their names in its schema."""

    name: str
    operator: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    """Attributes:
    nodes: in the order in which they run.
    constants: by the names by which nodes read them, what gives them; `names` has their own.
    inputs, outputs: the names of what goes in and comes out.
    shape: of the first input; None for a size that is open.
    """

    nodes: list[Node]
    constants: dict[str, Callable[[], Tensor]]
    names: dict[str, str]
    inputs: list[str]
    outputs: list[str]
    shape: tuple[int | None, ...]


# ---- a live module ---------------------------------------------------------------------------------------------------


def of_module(module: torch.fx.GraphModule) -> Graph:
    """Of what torch.export's module() or torchao's convert_pt2e gives.

    Raises:
        ValueError: it has hooks.
    """
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    if not all(str(getattr(hook, "__module__", "")).startswith("torch.") for hook in hooks):  # torch checks shapes so
        raise ValueError("the module must have no hooks of its own, which its graph does not say")
    graph = Graph([], {}, {}, [], [], ())
    for node in module.graph.nodes:
        if node.op == "placeholder":
            graph.inputs.append(node.name)
        elif node.op == "get_attr":
            graph.constants[node.name] = functools.partial(_attribute, module, node.target)
            graph.names[node.name] = node.target
        elif node.op == "output":
            found = node.args[0] if isinstance(node.args[0], tuple | list) else node.args
            graph.outputs.extend(str(each) for each in found)
        elif node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            names = [each.name for each in node.target._schema.arguments]
            given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
            values = {name: _of_fx(value) for name, value in given.items()}
            graph.nodes.append(Node(node.name, str(node.target), values))
        elif node.users:  # what checks the input's shape has none
            graph.nodes.append(Node(node.name, str(node.target), {}))
    value = next((node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"), None)
    shape = tuple(n if isinstance(n, int) else None for n in value.shape) if isinstance(value, Tensor) else ()
    return Graph(**{**vars(graph), "shape": shape})


def _attribute(module: torch.fx.GraphModule, path: str) -> Tensor:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value.detach().cpu().clone()


def _of_fx(value: Any) -> Any:
    if isinstance(value, torch.fx.Node):
        return Ref(value.name)
    return [_of_fx(each) for each in value] if isinstance(value, tuple | list) else value


# ---- a file ----------------------------------------------------------------------------------------------------------


def of_archive(archive: zipfile.ZipFile) -> Graph:
    """Of a file by torch.export.save, which stays open until its constants are read.

    Raises:
        ValueError: it holds no graph, or none that is read here.
        Exception: its parts are not what they should be.
    """
    found = [name for name in archive.namelist() if name.endswith(MODEL)]
    if len(found) != 1:
        raise ValueError(f"it must have one graph, {MODEL}, got {len(found)}")
    root = found[0].removesuffix(MODEL)
    byte_order = f"{root}/byteorder"
    if byte_order in archive.namelist() and archive.read(byte_order) != b"little":
        raise ValueError("its numbers must be little-endian")
    module = _json(archive, found[0])["graph_module"]
    graph, signature = module["graph"], module["signature"]
    inputs: list[str] = []
    constants: dict[str, Callable[[], Tensor]] = {}
    names: dict[str, str] = {}
    places = {
        name: (f"{root}/data/{kind}/{payload['path_name']}", payload)
        for kind in ("constants", "weights")
        for name, payload in _json(archive, f"{root}/data/{kind}/model_{kind}_config.json")["config"].items()
    }
    for spec in signature["input_specs"]:
        kind, said = _only(spec)
        if kind == "user_input":
            inputs.append(said["arg"]["as_tensor"]["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            argument, name = said["arg"]["name"], said[f"{kind}_name"]
            names[argument] = name
            constants[argument] = functools.partial(_tensor, archive, name, *places[name])
        else:
            raise ValueError(f"its inputs must be tensors, got a {kind}")
    if odd := next((kind for spec in signature["output_specs"] for kind in spec if kind != "user_output"), None):
        raise ValueError(f"it must change nothing but give its output, got a {odd}")
    outputs = [spec["user_output"]["arg"]["as_tensor"]["name"] for spec in signature["output_specs"]]
    sizes = graph["tensor_values"][inputs[0]]["sizes"] if inputs else []
    return Graph(
        [_node(each) for each in graph["nodes"]], constants, names, inputs, outputs,
        tuple(each.get("as_int") for each in sizes),
    )  # fmt: skip


def _json(archive: zipfile.ZipFile, name: str) -> Any:
    size = archive.getinfo(name).file_size
    if size > _MOST_JSON:
        raise ValueError(f"{name} must have at most {_MOST_JSON >> 20} MiB, got {size >> 20}")
    try:
        return json.loads(archive.read(name))
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None


def _node(said: Any) -> Node:
    outputs = [
        each.get("as_tensor", {}).get("name") or each.get("as_sym_int", {}).get("as_name", "")
        for each in said["outputs"]
    ]
    arguments = {each["name"]: _of_json(each["arg"]) for each in said["inputs"]}
    name = outputs[0] if len(outputs) == 1 else ", ".join(outputs)
    return Node(str(name), str(said["target"]).removeprefix("torch.ops."), arguments)


def _only(union: Any) -> tuple[str, Any]:
    """The kind and the value of what is one of several kinds."""
    if not isinstance(union, dict) or len(union) != 1:
        raise TypeError(f"one kind must be there, got {union}")
    return next(iter(union.items()))


def _of_json(argument: Any) -> Any:
    kind, value = _only(argument)
    if kind == "as_tensor":
        return Ref(value["name"])
    if kind == "as_optional_tensor":
        return _of_json(value)
    if kind == "as_name":  # a number that another node gives
        return Ref(value)
    if kind == "as_sym_int":
        return _of_json(value)
    if kind == "as_sym_ints":
        return [_of_json(each) for each in value]
    if kind == "as_none":
        return None
    if kind == "as_scalar_type":
        return _DTYPES.get(value, f"ScalarType {value}")
    return value if kind in _PLAIN else kind


def _tensor(archive: zipfile.ZipFile, name: str, place: str, payload: Any) -> Tensor:
    """A tensor of a file, as it lies."""
    if payload["use_pickle"]:
        raise ValueError(f"{name} must lie as plain bytes, got a pickle, which is not read")
    meta = payload["tensor_meta"]
    if meta["dtype"] not in _DTYPES or meta["layout"] != _STRIDED:
        raise ValueError(f"{name} must be a dense tensor of numbers, got ScalarType {meta['dtype']}")
    dtype, content = _DTYPES[meta["dtype"]], bytearray(archive.read(place))
    if not content or len(content) % dtype.itemsize:
        raise ValueError(f"{name} must have values of {dtype.itemsize} bytes, got {len(content)} bytes")
    flat = torch.frombuffer(content, dtype=dtype)
    sizes, strides = ([each["as_int"] for each in meta[kind]] for kind in ("sizes", "strides"))
    offset = meta["storage_offset"]["as_int"]
    sane = len(sizes) == len(strides) and min([offset, *sizes, *strides]) >= 0 and math.prod(sizes) <= flat.numel()
    if not sane or offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) >= flat.numel():
        raise ValueError(f"{name} of shape {sizes} must lie within its {flat.numel()} values")
    return flat.as_strided(sizes, strides, offset)
