"""Networks of ours as ONNX graphs, with the tensors under our keys, and preprocessing and classes as metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vggfast._version import __version__
from vggfast.graph import Network, Node, geometry, unknown, whole
from vggfast.graph.layers import BatchNorm, Conv, Linear, Lrn, MaxPool, Relu
from vggfast.io import write_atomically
from vggfast.models import VGG

_OPSET, _IR = 17, 8  # old enough for what runs ONNX, and new enough for all that a VGG has


def write(model: VGG, path: Path, extra: Mapping[str, Any]) -> str:
    """Writes a graph from "images" (N, C, H, W), already preprocessed, to "scores" (N, classes) or "features".

    N may be any number; H and W too, but with FC layers on more than one cell (head "linear"): 32 * pool_size. The
    metadata have `extra`, such as "preprocessing" and "classes", as JSON.

    Returns:
        What sizes the graph takes.

    Raises:
        ImportError, OSError: no onnx package; it could not be written.
        ValueError, TypeError: a layer that no VGG has, or that does something that is not known; the text names it.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ImportError("writing ONNX needs the package onnx: pip install 'vggfast[convert]'") from error

    network = whole(model)
    network.check_values()
    head, seen = network.head, geometry(network.trunk)
    fixed = seen.stride * head.size if head and not head.dense and head.size > 1 else None
    nodes, tensors, output = _nodes(onnx.helper, network)
    shape: list[str | int | None] = ["N", head.weights[-1].shape[0]] if head else ["N", None, None, None]
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, f"VGG {model.arguments['config']}",
        [onnx.helper.make_tensor_value_info(
            "images", floats, ["N", seen.in_channels, fixed or "H", fixed or "W"])],
        [onnx.helper.make_tensor_value_info(output, floats, shape)],
        [onnx.numpy_helper.from_array(t.float().cpu().resolve_neg().numpy(), name) for name, t in tensors.items()],
    )  # fmt: skip
    file = onnx.helper.make_model(
        graph, producer_name="vggfast", producer_version=__version__,
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=_IR,
    )  # fmt: skip
    onnx.helper.set_model_props(file, {key: json.dumps(value) for key, value in extra.items()})
    onnx.checker.check_model(file)
    write_atomically(path, lambda temporary: onnx.save(file, str(temporary)))
    return f"takes N x {fixed or 'H'} x {fixed or 'W'} images"


def _nodes(helper: Any, network: Network) -> tuple[list[Any], dict[str, Tensor], str]:
    """(the graph's nodes, its tensors, the name of its output)."""
    steps: list[tuple[str, str, dict[str, Tensor | None], dict[str, Any]]]
    steps = [(node.path, *_op(node, 1, False)) for node in network.trunk if node.layer is not None]
    if head := network.head:
        average: tuple[Any, ...] = ("average", "GlobalAveragePool", {}, {}), ("flatten", "Flatten", {}, {})
        steps += [] if head.dense else average[head.size > 1 :]
        size = head.size
        for node in head.nodes:
            if node.layer is not None:
                steps.append((node.path, *_op(node, size, head.dense)))
                size = 1 if isinstance(node.layer, Linear) else size
        steps += average if head.dense else []
    nodes: list[Any] = []
    tensors: dict[str, Tensor] = {}
    previous, output = "images", "scores" if head else "features"
    for i, (name, op, inputs, settings) in enumerate(steps):
        result = output if i == len(steps) - 1 else f"{name}.output"
        named = {f"{name}.{kind}": tensor for kind, tensor in inputs.items() if tensor is not None}
        nodes.append(helper.make_node(op, [previous, *named], [result], name, **settings))
        tensors |= named
        previous = result
    return nodes, tensors, output


def _op(node: Node, size: int, dense: bool) -> tuple[str, dict[str, Tensor | None], dict[str, Any]]:
    """(ONNX operator, its tensors, its settings) of a layer. In a dense head, an FC layer reads size x size cells."""
    match node.layer:
        case Conv(weight, bias):
            extent = weight.shape[2]
            return "Conv", {"weight": weight, "bias": bias}, _window(extent, extent // 2)
        case BatchNorm(mean, var, weight, bias, eps):
            affine = {
                "weight": torch.ones_like(mean) if weight is None else weight,
                "bias": torch.zeros_like(mean) if bias is None else bias,
            }
            return "BatchNormalization", {**affine, "running_mean": mean, "running_var": var}, {"epsilon": eps}
        case Linear(weight, bias) if dense:
            return "Conv", {"weight": weight.unflatten(1, (-1, size, size)), "bias": bias}, _window(size, 0)
        case Linear(weight, bias):
            return "Gemm", {"weight": weight, "bias": bias}, {"transB": 1}
        case Lrn(length, alpha, beta, k) if length % 2:  # ONNX has no even ones
            return "LRN", {}, {"size": length, "alpha": alpha, "beta": beta, "bias": k}
        case MaxPool():
            return "MaxPool", {}, {"kernel_shape": (2, 2), "strides": (2, 2)}
        case Relu():
            return "Relu", {}, {}
    raise unknown(node.path, node.module, "ONNX files are written with a VGG's layers alone")


def _window(extent: int, padding: int) -> dict[str, Any]:
    return {"kernel_shape": (extent, extent), "pads": (padding,) * 4}
