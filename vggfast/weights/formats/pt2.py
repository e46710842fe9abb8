"""Networks of torch.export (.pt2), float32 or quantised by PT2E; and such modules, live.

The graph is walked by its edges as an ONNX graph is: a chain of a VGG's layers, or an error that names the node.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vggfast.quantisation import Rounding, check_scale
from vggfast.weights.formats._chain import Chain, Tensors
from vggfast.weights.formats._exported import Graph, Node, Ref, of_archive, of_module
from vggfast.weights.formats._parts import Raw
from vggfast.weights.formats._sequence import AVERAGE, SOFTMAX, with_article
from vggfast.weights.formats.torchvision import as_linear

_SHRINK = 32  # what the pools divide H and W by
_MOST_LAYERS = 100  # with weights, of which each may have a copy of one tensor
_DECOMPOSED = "quantized_decomposed."
# What networks of other operators need, by how these begin.
_CURES = {
    "vggfast.": "vggfast.accelerate.restore(model), before it is exported, gives it torch's own layers",
    "aten.convolution.": "the network must be read as torch.export.export gives it, before run_decompositions()",
}
_NEEDED = object()  # in the place of a default
_QUANTISED = {"scale": _NEEDED, "zero_point": _NEEDED, "quant_min": _NEEDED, "quant_max": _NEEDED, "dtype": _NEEDED}


class _StrangeError(ValueError):
    """What no VGG has."""


def read(path: Path) -> Raw:
    """A file by torch.export.save. Nothing in it is executed."""
    with zipfile.ZipFile(path) as archive:
        return _read(path, of_archive(archive))


def read_module(path: Path, module: torch.nn.Module) -> Raw:
    """A live module of torch.export or torchao's convert_pt2e; `path` is what errors call it."""
    if not isinstance(module, torch.fx.GraphModule):
        raise ValueError(f"{path} must be a GraphModule of torch.export, got {type(module).__name__}")
    return _read(path, of_module(module))


def _read(path: Path, graph: Graph) -> Raw:
    if len(graph.inputs) != 1 or len(graph.shape) not in (0, 4):
        raise ValueError(f"{path}: the graph must have one input, images of 4 axes, got {', '.join(graph.inputs)}")
    height, width = graph.shape[2:] or (None, None)
    chain = Chain(path, None if height is None or width is None else (height, width))
    _Walk(graph, chain).run()
    return chain.raw(as_linear, None, "")


@dataclass(frozen=True)
class _Weight:
    """Whole numbers less their zero points, and their scales along an axis."""

    name: str
    whole: Tensor
    scale: Tensor
    axis: int

    def array(self) -> np.ndarray:
        shape = [-1 if axis == self.axis else 1 for axis in range(self.whole.dim())]
        return (self.whole.float() * self.scale.view(shape if len(self.scale) > 1 else -1)).numpy()

    def scales(self) -> np.ndarray | None:
        """(outputs,), where the whole numbers are -128 to 127, and the scales one for each output or for all."""
        fits = self.whole.min() >= -128 and self.whole.max() <= 127
        if not fits or (len(self.scale) > 1 and self.axis != 0):
            return None
        return self.scale.expand(len(self.whole)).contiguous().numpy()


class _Walk:
    """One walk along a graph."""

    def __init__(self, graph: Graph, chain: Chain) -> None:
        self._graph, self._chain = graph, chain
        self._weights: dict[str, Callable[[], _Weight]] = {}  # by the names of the nodes that scale them
        self._current = graph.inputs[0]
        self._batch: list[int | Ref] = [n for n in graph.shape[:1] if n is not None]  # what stands for N
        self._rounded: tuple[Any, ...] = ()  # how the last node rounded, if it gave whole numbers
        self._layers = 0

    def run(self) -> None:
        """Raises ValueError for what no VGG has before its head; what it has there is kept as the chain's."""
        try:
            for node in self._graph.nodes:
                self._node(node)
            if self._rounded or self._graph.outputs != [self._current]:
                raise _StrangeError(
                    f"the graph must have one output, float32, of its last layer, got {', '.join(self._graph.outputs)}"
                )
        except _StrangeError as error:
            self._chain.refuse(str(error))

    def _node(self, node: Node) -> None:
        refs = [value.name for value in node.arguments.values() if isinstance(value, Ref)]
        read = [name for name in refs if name not in self._graph.constants and name not in self._weights]
        if not read and node.operator.startswith(f"{_DECOMPOSED}dequantize_per_"):
            self._weights[node.name] = self._weight(node)
            return
        if node.operator == "aten.sym_size.int" and read == self._graph.inputs:
            if node.arguments.get("dim") == 0:
                self._batch.append(Ref(node.name))
            return
        if not read and node.operator.startswith("aten.add_."):
            raise _StrangeError(
                f"{_called(node)} changes a constant, as batch norm does in training mode: "
                "export the network in evaluation mode"
            )
        if read != [self._current]:
            raise _StrangeError(f"node {node.name} reads {', '.join(read) or 'constants alone'}: a VGG is a chain")
        if self._rounded and not node.operator.startswith(f"{_DECOMPOSED}dequantize_per_tensor."):
            raise _StrangeError(
                f"node {node.name}, {node.operator}, must not read whole numbers: a dequantize_per_tensor must"
            )
        if cure := next((cure for start, cure in _CURES.items() if node.operator.startswith(start)), ""):
            raise _StrangeError(f"{_called(node)} is {with_article(node.operator)}: {cure}")
        run = _READERS.get(node.operator)
        if run is None:
            self._chain.add(_called(node), with_article(node.operator))
        else:
            run(self, node)
        self._current = node.name

    # ---- arguments ---------------------------------------------------------------------------------------------------

    def _settings(self, node: Node, **defaults: Any) -> dict[str, Any]:
        """A node's arguments over these defaults, but for what it reads."""
        found = {**defaults, **{name: value for name, value in node.arguments.items() if name not in ("self", "input")}}
        if odd := [name for name in found if name not in defaults] or [k for k, v in found.items() if v is _NEEDED]:
            raise _StrangeError(f"{_called(node)}, {node.operator}, has or lacks {', '.join(odd)}, which is not known")
        return found

    def _tensor(self, node: Node, value: Any, what: str) -> tuple[str, Tensor]:
        """A constant, by its own name."""
        if not isinstance(value, Ref) or value.name not in self._graph.constants:
            raise _StrangeError(f"{_called(node)} must have a constant {what}")
        return self._graph.names[value.name], self._graph.constants[value.name]()

    def _tensors(self, node: Node, given: Mapping[str, Any]) -> tuple[Tensors, np.ndarray | None]:
        """A layer's weight and bias, and the scales of a weight of 8 bits."""
        self._layers += 1
        if self._layers > _MOST_LAYERS:
            raise _StrangeError(f"{_called(node)} has {_MOST_LAYERS} layers before it, more than any VGG has")
        found: dict[str, tuple[str, np.ndarray]] = {}
        scales = None
        for kind in ("weight", "bias"):
            value = given[kind]
            if isinstance(value, Ref) and value.name in self._weights:
                weight = self._weights[value.name]()
                found[kind] = weight.name, weight.array()
                scales = weight.scales() if kind == "weight" else scales
            elif value is not None or kind == "weight":
                name, tensor = self._tensor(node, value, kind)
                if not tensor.is_floating_point():
                    raise _StrangeError(
                        f"{name}, the {kind} of {_called(node)}, must be floating-point, got {tensor.dtype}"
                    )
                found[kind] = name, tensor.float().numpy()
        return found, scales

    # ---- 8 bits ------------------------------------------------------------------------------------------------------

    def _weight(self, node: Node) -> Callable[[], _Weight]:
        """What a dequantize gives of a constant: computed when a layer reads it."""

        def scaled() -> _Weight:
            given = dict(node.arguments)
            channels = "per_channel" in node.operator
            name, whole = self._tensor(node, given.get("input"), "input")
            scale, zero_point = (
                self._row(node, f"{kind}{'s' * channels}", dtype)
                for kind, dtype in (("scale", torch.float32), ("zero_point", torch.int64))
            )
            axis = given.get("axis", 0) if channels else 0
            if whole.dtype not in (torch.int8, torch.uint8) or type(axis) is not int or not 0 <= axis < whole.dim():
                raise _StrangeError(
                    f"{_called(node)} must read int8 or uint8 and have one of its axes, got {whole.dtype}, {axis}"
                )
            if len(scale) not in (1, whole.shape[axis]) or zero_point.shape != scale.shape:
                raise _StrangeError(
                    f"{_called(node)} must have {whole.shape[axis]} scales and zero points, got {len(scale)}"
                )
            for value in scale.aminmax():
                _check_scale(node, float(value))
            shape = [-1 if each == axis else 1 for each in range(whole.dim())]
            whole = whole.long() - zero_point.view(shape) if zero_point.any() else whole
            return _Weight(name, whole, scale, axis)

        return scaled

    def _row(self, node: Node, name: str, dtype: torch.dtype) -> Tensor:
        """An argument that is a number or several, as a row."""
        given = torch.as_tensor(self._number(node, node.arguments.get(name))).reshape(-1)
        found = given.to(dtype)
        if not torch.equal(found.double(), given.double()):
            raise _StrangeError(f"{_called(node)} must have {name} of {dtype}, got {given.dtype}")
        return found

    def _number(self, node: Node, value: Any) -> Any:
        """A number, or a constant's."""
        return self._tensor(node, value, "scale and zero point")[1] if isinstance(value, Ref) else value

    def _parameters(self, node: Node, **more: Any) -> tuple[Any, ...]:
        """Of a quantize_per_tensor or dequantize_per_tensor."""
        given = self._settings(node, **_QUANTISED, **more)
        scale, zero_point = (
            value.item() if isinstance(value := self._number(node, given[name]), Tensor) else value
            for name in ("scale", "zero_point")
        )
        _check_scale(node, scale)
        scale = float(np.float32(scale))  # as the operators take it, beside float32
        return scale, zero_point, given["quant_min"], given["quant_max"], given["dtype"]

    def _quantize(self, node: Node) -> None:
        self._rounded = scale, zero_point, low, high, dtype = self._parameters(node)
        if dtype not in (torch.uint8, torch.int8) or not all(type(n) is int for n in (zero_point, low, high)):
            raise _StrangeError(f"{_called(node)} must round to uint8 or int8, got {dtype}")
        said = f"{str(dtype).removeprefix('torch.')} from {low} to {high} with zero point {zero_point}"
        try:
            self._chain.roundings.round(_called(node), said, Rounding(scale, zero_point - low, high - low))
        except ValueError as error:
            raise _StrangeError(f"{_called(node)}: {error}") from error

    def _dequantize(self, node: Node) -> None:
        rounded, self._rounded = self._rounded, ()
        if self._parameters(node, out_dtype=None) != rounded or node.arguments.get("out_dtype") not in (
            None, torch.float32,
        ):  # fmt: skip
            raise _StrangeError(f"{_called(node)} must scale what a quantize_per_tensor gave, as that did, to float32")

    # ---- layers ------------------------------------------------------------------------------------------------------

    def _conv(self, node: Node) -> None:
        given = self._settings(
            node, weight=_NEEDED, bias=None, stride=[1, 1], padding=[0, 0], dilation=[1, 1], groups=1
        )
        tensors, scales = self._tensors(node, given)
        shape = tensors["weight"][1].shape
        if len(shape) != 4:
            raise _StrangeError(
                f"{tensors['weight'][0]}, the weight of {_called(node)}, must have 4 axes, got shape {shape}"
            )
        padding = given["padding"]
        if isinstance(padding, str):
            padding = {"valid": [0, 0], "same": [(each - 1) // 2 for each in shape[2:]]}.get(padding, [-1, -1])
        self._chain.conv(
            _called(node), tensors, shape, strides=_pair(given["stride"]), pads=_pair(padding) * 2,
            dilation=_pair(given["dilation"]), groups=given["groups"], scales=scales,
        )  # fmt: skip

    def _linear(self, node: Node) -> None:
        tensors, scales = self._tensors(node, self._settings(node, weight=_NEEDED, bias=None))
        shape = tensors["weight"][1].shape
        if len(shape) != 2:
            raise _StrangeError(
                f"{tensors['weight'][0]}, the weight of {_called(node)}, must have 2 axes, got shape {shape}"
            )
        self._chain.fc(_called(node), tensors, shape[1], shape[0], scales=scales)

    def _batch_norm(self, node: Node) -> None:
        given = self._settings(
            node, weight=None, bias=None, running_mean=_NEEDED, running_var=_NEEDED, training=_NEEDED, momentum=0.1,
            eps=_NEEDED, cudnn_enabled=True,
        )  # fmt: skip
        if given["running_mean"] is None or given["running_var"] is None:
            raise _StrangeError(f"{_called(node)}, a batch norm, must have a running mean and variance")
        self._chain.expect(f"{_called(node)}, a batch norm,", training=(given["training"], False))
        kinds = ("weight", "bias", "running_mean", "running_var")
        found = [None if given[kind] is None else self._tensor(node, given[kind], kind) for kind in kinds]
        names = [each[0] if each else f"{node.name} {kind}" for each, kind in zip(found, kinds, strict=True)]
        scale, shift, mean, variance = (each and each[1].float().numpy() for each in found)
        assert mean is not None
        assert variance is not None
        self._chain.batch_norm(_called(node), names, mean, variance, float(given["eps"]), scale, shift)

    def _relu(self, node: Node) -> None:
        self._settings(node)
        self._chain.activation(_called(node), "relu")

    def _max_pool(self, node: Node) -> None:
        given = self._settings(node, kernel_size=_NEEDED, stride=[], padding=[0, 0], dilation=[1, 1], ceil_mode=False)
        self._chain.expect(f"{_called(node)}, a max-pool,", dilation=(_pair(given["dilation"]), [1, 1]))
        extents = _pair(given["kernel_size"])
        strides = _pair(given["stride"]) if given["stride"] else extents
        self._chain.max_pool(_called(node), extents, strides, _pair(given["padding"]) * 2, bool(given["ceil_mode"]))

    def _adaptive_average(self, node: Node) -> None:
        """To a grid. On a map of that size it does nothing; on others our network averages alike."""
        size = _pair(self._settings(node, output_size=_NEEDED)["output_size"])
        cells = [extent // _SHRINK for extent in self._chain.size or ()]
        if size == cells:
            return
        if size == [1, 1]:
            return self._chain.average(_called(node), flat=False)
        self._chain.add(_called(node), AVERAGE)
        self._chain.size = (size[0] * _SHRINK, size[1] * _SHRINK)  # of the images whose maps have that size

    def _flatten(self, node: Node) -> None:
        given = self._settings(node, start_dim=0, end_dim=-1)
        self._chain.expect(f"{_called(node)}, a flatten,", start_dim=(given["start_dim"], 1))
        self._chain.flatten(_called(node))

    def _reshape(self, node: Node) -> None:
        """To rows, (N, all values of an image). Where N is named, torch has seen to it that the values are all."""
        name = "size" if node.operator == "aten.view.default" else "shape"
        size = self._settings(node, **{name: _NEEDED})[name]
        rows, columns = size if len(size) == 2 else (None, None)
        if type(columns) is not int or (rows not in self._batch and (rows != -1 or columns != self._chain.values)):
            said = ", ".join(each.name if isinstance(each, Ref) else str(each) for each in size)
            raise _StrangeError(f"{_called(node)}, a view, must make rows of (N, values), got ({said})")
        self._chain.flatten(_called(node))

    def _dropout(self, node: Node) -> None:
        given = self._settings(node, p=0.5, train=_NEEDED)
        self._chain.expect(f"{_called(node)}, a dropout,", train=(given["train"], False))

    def _softmax(self, node: Node) -> None:
        given = self._settings(node, dim=_NEEDED, dtype=None)
        self._chain.expect(f"{_called(node)}, a softmax,", dim=(given["dim"] % 2, 1), dtype=(given["dtype"], None))
        self._chain.add(_called(node), SOFTMAX)

    def _nothing(self, node: Node) -> None:
        """What keeps all values."""


def _called(node: Node) -> str:
    return f"node {node.name[:100]}"


def _check_scale(node: Node, value: Any) -> None:
    try:
        check_scale(value, f"the scale of {_called(node)}")
    except ValueError as error:
        raise _StrangeError(str(error)) from error


def _pair(value: Any) -> list[Any]:
    """(H, W) of a size that may be one for both."""
    values = value if isinstance(value, list) else [value]
    return values * 2 if len(values) == 1 else values


_READERS: dict[str, Callable[[_Walk, Node], None]] = {
    "aten.conv2d.default": _Walk._conv, "aten.conv2d.padding": _Walk._conv, "aten.linear.default": _Walk._linear,
    "aten.batch_norm.default": _Walk._batch_norm, "aten.relu.default": _Walk._relu, "aten.relu_.default": _Walk._relu,
    "aten.max_pool2d.default": _Walk._max_pool, "aten.adaptive_avg_pool2d.default": _Walk._adaptive_average,
    "aten.flatten.using_ints": _Walk._flatten, "aten.view.default": _Walk._reshape,
    "aten.reshape.default": _Walk._reshape, "aten.softmax.int": _Walk._softmax,
    "aten.dropout.default": _Walk._dropout, "aten.dropout_.default": _Walk._dropout,
    "aten.contiguous.default": _Walk._nothing, "aten.clone.default": _Walk._nothing,
    **{f"{_DECOMPOSED}quantize_per_tensor.{kind}": _Walk._quantize for kind in ("default", "tensor")},
    **{f"{_DECOMPOSED}dequantize_per_tensor.{kind}": _Walk._dequantize for kind in ("default", "tensor")},
}  # fmt: skip
