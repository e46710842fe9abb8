"""Networks of ours as ONNX graphs, with the tensors under our keys, and preprocessing and classes as metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vggfast._version import __version__
from vggfast.io import write_atomically
from vggfast.models import VGG

_OPSET, _IR = 17, 8  # old enough for what runs ONNX, and new enough for all that a VGG has


def write(model: VGG, path: Path, extra: Mapping[str, Any]) -> str:
    """Writes a graph from "images" (N, C, H, W), already preprocessed, to "scores" (N, classes) or "features".

    N may be any number; H and W too, but with FC layers (head "linear"), where they are 32 * pool_size. The metadata
    have `extra`, such as "preprocessing" and "classes", as JSON.

    Returns:
        What sizes the graph takes.

    Raises:
        ImportError, ValueError, OSError: no onnx package; a layer that no VGG has; it could not be written.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ImportError("writing ONNX needs the package onnx: pip install 'vggfast[convert]'") from error

    fixed = 32 * model.arguments["pool_size"] if model.head == "linear" else None
    nodes, output = _nodes(onnx.helper, model)
    shape = ["N", model.arguments["num_classes"]] if model.head != "none" else ["N", None, None, None]
    floats = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, f"VGG {model.arguments['config']}",
        [onnx.helper.make_tensor_value_info(
            "images", floats, ["N", model.arguments["in_channels"], fixed or "H", fixed or "W"])],
        [onnx.helper.make_tensor_value_info(output, floats, shape)],
        [onnx.numpy_helper.from_array(tensor.detach().float().numpy(), name)
         for name, tensor in model.state_dict().items() if tensor.is_floating_point()],
    )  # fmt: skip
    file = onnx.helper.make_model(
        graph, producer_name="vggfast", producer_version=__version__,
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=_IR,
    )  # fmt: skip
    onnx.helper.set_model_props(file, {key: json.dumps(value) for key, value in extra.items()})
    onnx.checker.check_model(file)
    write_atomically(path, lambda temporary: onnx.save(file, str(temporary)))
    return f"takes N x {fixed or 'H'} x {fixed or 'W'} images"


def _nodes(helper: Any, model: VGG) -> tuple[list[Any], str]:
    """(the graph's nodes, the name of its output)."""
    layers = [(f"features.{i}", layer) for i, layer in enumerate(model.features)]
    if model.head != "none":
        if model.head == "linear":
            layers.append(("flatten", nn.Flatten()))
        layers += [(f"classifier.{i}", layer) for i, layer in enumerate(model.classifier)]
        if model.head == "conv":
            layers += [("average", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
    layers = [(name, layer) for name, layer in layers if not isinstance(layer, nn.Dropout)]
    nodes, previous, output = [], "images", "features" if model.head == "none" else "scores"
    for i, (name, layer) in enumerate(layers):
        result = output if i == len(layers) - 1 else f"{name}.output"
        op, tensors, settings = _op(name, layer)
        inputs = [previous, *(f"{name}.{tensor}" for tensor in tensors)]
        nodes.append(helper.make_node(op, inputs, [result], name, **settings))
        previous = result
    return nodes, output


def _op(name: str, layer: nn.Module) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """(ONNX operator, its tensors, its settings) of a layer."""
    weights = ("weight", "bias")
    match layer:
        case nn.Conv2d():
            return "Conv", weights, {"kernel_shape": layer.kernel_size, "pads": [*layer.padding, *layer.padding]}
        case nn.BatchNorm2d():
            return "BatchNormalization", (*weights, "running_mean", "running_var"), {"epsilon": layer.eps}
        case nn.Linear():
            return "Gemm", weights, {"transB": 1}
        case nn.LocalResponseNorm():
            return "LRN", (), {"size": layer.size, "alpha": layer.alpha, "beta": layer.beta, "bias": layer.k}
        case nn.MaxPool2d():
            return "MaxPool", (), {"kernel_shape": (2, 2), "strides": (2, 2)}
        case nn.ReLU():
            return "Relu", (), {}
        case nn.AdaptiveAvgPool2d():
            return "GlobalAveragePool", (), {}
        case nn.Flatten():
            return "Flatten", (), {}
    raise ValueError(f"{name} is {layer}: no layer of a VGG")
