"""The graph of an ONNX file: the nodes that its output needs, their settings, and what is constant in it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vggfast.weights.formats import _onnx_quantised as quantised
from vggfast.weights.formats._sequence import with_article

DOMAINS = ("", "ai.onnx")
_LONGEST = 64  # numbers of a shape that a graph computes
_MOST = 20_000  # nodes that are looked at, so that no graph takes minutes
_NUMBERS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
_FLOATS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")
_INTEGERS = ("INT64", "INT32", "INT16", "UINT16", "INT8", "UINT8", "BOOL")


class Graph:
    """A graph and its constants.

    Attributes:
        model: the file's message, as the onnx package has it.
        opset: the version of the operators.
        nodes: those that the outputs need, in the file's order.
        inputs: those that nothing in the file gives.
        outputs: the names of what the graph gives.
        unused: the initialisers that no such node reads.

    Raises:
        ValueError: two things have one name, or a tensor lies in another file that is not one of its folder.
    """

    def __init__(self, onnx: Any, path: Path) -> None:
        self.model = onnx.load(str(path), load_external_data=False)
        graph = self.model.graph
        if not graph.node:
            raise ValueError("it has no graph")
        if len(graph.node) > _MOST:
            raise ValueError(f"it has {len(graph.node)} nodes, and a VGG has at most some hundreds")
        if not all(isinstance(text, str) for text in _texts(self.model)):  # protobuf gives others as bytes
            raise ValueError("it has a name that is not UTF-8")
        if own := [each.name for each in self.model.functions if each.domain in DOMAINS]:
            raise ValueError(f"it has a {own[0]} of its own in the place of ONNX's operator")
        self._onnx, self._folder = onnx, path.parent
        self._constants: dict[str, Any] = {}  # messages of tensors, arrays, and what quantised.Lazy computes
        for tensor in graph.initializer:
            self._add(tensor.name, tensor)
        if graph.sparse_initializer:
            raise ValueError(f"tensor {graph.sparse_initializer[0].values.name} is sparse: weights must be dense")
        self.opset = max((each.version for each in self.model.opset_import if each.domain in DOMAINS), default=1)
        self.outputs = [each.name for each in graph.output]
        self.nodes = self._needed(graph.node)
        read = {name for node in self.nodes for name in node.input}
        self.inputs = [each for each in graph.input if each.name not in self._constants]
        self.unused = [tensor.name for tensor in graph.initializer if tensor.name not in read]

    def _needed(self, nodes: Sequence[Any]) -> list[Any]:
        """The nodes that the outputs depend on."""
        makers: dict[str, int] = {}
        for number, node in enumerate(nodes):
            for name in filter(None, node.output):
                if makers.setdefault(name, number) != number or name in self._constants:
                    raise ValueError(f"{called(node)} gives {name}, and so does another")
        needed: set[int] = set()
        waiting = [makers[name] for name in self.outputs if name in makers]
        while waiting:
            number = waiting.pop()
            if number not in needed:
                needed.add(number)
                waiting += [makers[name] for name in nodes[number].input if name in makers]
        return [nodes[number] for number in sorted(needed)]

    def _add(self, name: str, value: Any) -> None:
        if name in self._constants:
            raise ValueError(f"two tensors are called {name}")
        self._constants[name] = value

    def __contains__(self, name: str) -> bool:
        """Whether this is the name of a constant."""
        return name in self._constants

    def array(self, name: str) -> np.ndarray:
        """A constant. Its values are numbers, or letters in a shape where a size is not known."""
        value = self._constants[name]
        if isinstance(value, quantised.Lazy):
            return value.array()
        return value if isinstance(value, np.ndarray) else self._read(name, value)

    def scales(self, name: str, outputs: int) -> np.ndarray | None:
        """Of a weight of 8 bits, whose axis `outputs` is that of outputs: (outputs,); None of another."""
        value = self._constants.get(name)
        return value.scales(outputs) if isinstance(value, quantised.Dequantised) else None

    def rounding(self, node: Any) -> quantised.Parameters:
        """Of a QuantizeLinear or DequantizeLinear."""
        found = self.settings(node, axis=1, block_size=0, saturate=1, output_dtype=0, precision=0)
        if found["block_size"]:
            raise ValueError(f"{described(node)}, must have block_size 0, got {found['block_size']}")
        names = [*node.input[1:], ""]
        if names[0] not in self or (names[1] and names[1] not in self):
            raise ValueError(f"{described(node)}, must have a constant scale and zero point")
        scale, zero_point = self.array(names[0]), self.array(names[1]) if names[1] else None
        kind = self._onnx.helper.tensor_dtype_to_np_dtype(found["output_dtype"]) if found["output_dtype"] else None
        if node.op_type == "DequantizeLinear":
            if kind not in (None, np.float32):
                raise ValueError(f"{described(node)}, must give float32, got {kind}")
            kind = None
        return quantised.Parameters(described(node), scale, zero_point, found["axis"], kind)

    def weight(self, node: Any, name: str, axes: int | None = None) -> np.ndarray:
        """A constant that a node computes with, of this many axes.

        Raises:
            ValueError: it has other axes, no values, or no floating-point numbers; the text names it.
        """
        if name not in self:
            raise ValueError(f"{described(node)}, must have all its tensors, got {', '.join(node.input)}")
        value = self.array(name)
        if value.dtype.kind not in "fV":  # bfloat16 is a V
            raise ValueError(f"{name}, which {called(node)} reads, must have a floating-point dtype, got {value.dtype}")
        if axes not in (None, value.ndim) or not value.size:
            needed = "values" if axes is None else f"{axes} axes and values"
            raise ValueError(f"{name}, which {called(node)} reads, must have {needed}, got shape {value.shape}")
        return value

    def _read(self, name: str, tensor: Any) -> np.ndarray:
        types = self._onnx.TensorProto
        allowed = [types.DataType.Value(each) for each in (*_FLOATS, *_INTEGERS)]
        if tensor.data_type not in allowed:
            known = tensor.data_type in types.DataType.values()
            kind = types.DataType.Name(tensor.data_type) if known else tensor.data_type
            raise ValueError(f"tensor {name} must have a floating-point dtype, got {kind}")
        if tensor.data_location == types.EXTERNAL:
            self._check_external(name, tensor)
        try:
            if min(tensor.dims, default=0) < 0:
                raise ValueError("a size is negative")
            return self._onnx.numpy_helper.to_array(tensor, str(self._folder))
        except Exception as error:
            said = " ".join(str(error).split())
            raise ValueError(f"tensor {name} of shape {tuple(tensor.dims)} cannot be read: {said[:200]}") from error

    def _check_external(self, name: str, tensor: Any) -> None:
        """That a tensor's other file is in the folder of the graph's, and long enough."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        at = f"tensor {name} lies in {location!r}, which"
        file = self._folder / location
        if not location or Path(location).is_absolute() or not _is_within(file, self._folder):
            raise ValueError(f"{at} must be a file in the folder of the graph's")
        if not file.is_file():
            raise ValueError(f"{at} is not there")
        given = [entries.get(key) or "0" for key in ("offset", "length")]
        if not all(text.isascii() and text.isdecimal() for text in given):
            raise ValueError(f"{at} must have an offset and a length of 0 or more, got {' and '.join(given)}")
        offset, length = map(int, given)
        needed = math.prod(tensor.dims) * self._onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if length not in (0, needed) or offset + needed > file.stat().st_size:
            raise ValueError(
                f"{at} must have {needed} bytes of it from {offset} on, got {length or 'the rest'} of "
                f"{file.stat().st_size}"
            )
        entries["length"] = str(needed)
        del tensor.external_data[:]
        for key in ("location", "offset", "length"):
            tensor.external_data.add(key=key, value=entries.get(key) or "0")

    def settings(self, node: Any, **defaults: Any) -> dict[str, Any]:
        """A node's attributes over these defaults, of which a type stands for None.

        Raises:
            ValueError: an attribute is of another type, or has no default here; the text names it.
        """
        found = {name: None if isinstance(value, type) else value for name, value in defaults.items()}
        for attribute in node.attribute:
            name, default = attribute.name, defaults.get(attribute.name)
            value: Any = self._onnx.helper.get_attribute_value(attribute)
            if not isinstance(value, int | float | bytes):
                value = list(value) if isinstance(value, Sequence) else None
            known = type(value) is (default if isinstance(default, type) else type(default))
            if not known or (isinstance(value, list) and not all(type(each) is int for each in value)):
                raise ValueError(f"{called(node)} has the attribute {name} {str(value)[:50]!r}, which is not known")
            found[name] = value
        return found

    # ---- constants that nodes compute --------------------------------------------------------------------------------

    def keep(self, name: str, numbers: Iterable[Any]) -> None:
        """Makes these numbers, and letters in the place of sizes that are not known, a constant."""
        self._constants[name] = np.array(list(numbers), object)

    def fold(self, node: Any) -> bool:
        """Whether a node gives a constant; if so, it is one from now on."""
        inputs = [name for name in node.input if name]
        if node.domain in DOMAINS and node.op_type == "Constant":
            self._constants[node.output[0]] = self._constant(node)
            return True
        foldable = node.op_type in _FOLDS or node.op_type in quantised.OPERATORS
        if node.domain not in DOMAINS or not foldable or any(name not in self for name in inputs):
            return False
        first = self._constants[inputs[0]] if inputs else None
        if node.op_type in quantised.OPERATORS:
            read = functools.partial(self.array, inputs[0])
            self._constants[node.output[0]] = quantised.fold(node.op_type, first, read, self.rounding(node))
            return True
        kinds, compute = _FOLDS[node.op_type]
        settings = self.settings(node, **kinds)
        try:
            if isinstance(first, quantised.Lazy):
                self._constants[node.output[0]] = first.moved(node.op_type, settings)
                return True
            self._constants[node.output[0]] = compute(settings, *map(self.array, inputs))
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise ValueError(f"{described(node)} of constants, is not computed here") from error
        return True

    def _constant(self, node: Any) -> Any:
        attribute = node.attribute[0] if len(node.attribute) == 1 else None
        if attribute is not None and attribute.name == "value" and attribute.HasField("t"):
            return attribute.t
        if attribute is None or attribute.name not in _NUMBERS:
            raise ValueError(f"{called(node)} must have a value that is a dense tensor or numbers")
        return np.array(self._onnx.helper.get_attribute_value(attribute), _NUMBERS[attribute.name])


def _texts(model: Any) -> Iterator[str]:
    """The names of a model."""
    yield from (text for entry in model.metadata_props for text in (entry.key, entry.value))
    graph = model.graph
    yield from (each.name for part in (graph.initializer, graph.input, graph.output) for each in part)
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)


def _is_within(file: Path, folder: Path) -> bool:
    try:
        return file.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # loops of links, a null character
        return False


def called(node: Any) -> str:
    """What errors call a node."""
    name = next(filter(None, (node.name, *node.output)), node.op_type)
    return f"node {' '.join(name.split())[:100]}"


def described(node: Any) -> str:
    """What errors call a node, with its operator: "node p6, an Add"."""
    return f"{called(node)}, {with_article(node.op_type)}"


def _ints(value: Any) -> list[int]:
    return [int(each) for each in np.ravel(value)]


def _short(value: np.ndarray) -> np.ndarray:
    if value.size > _LONGEST:
        raise ValueError
    return value


def _cast(settings: dict[str, Any], value: np.ndarray) -> np.ndarray:
    """The same values: constants keep their type, where the other holds them all."""
    from onnx.helper import tensor_dtype_to_np_dtype

    target = tensor_dtype_to_np_dtype(settings["to"])
    whole = value.dtype.kind in "iOb" and target.kind == "i"  # sizes
    if not whole and not np.can_cast(value.dtype, target, "safe"):
        raise ValueError
    return value


def _reshape(settings: dict[str, Any], value: np.ndarray, shape: np.ndarray) -> np.ndarray:
    if not value.flags.c_contiguous:  # which would take a copy
        raise ValueError
    return value.reshape(_ints(shape))


def _axes(settings: dict[str, Any], more: Sequence[np.ndarray]) -> tuple[int, ...]:
    return tuple(_ints(more[0] if more else settings["axes"]))


def _slice(settings: dict[str, Any], value: np.ndarray, *more: np.ndarray) -> np.ndarray:
    given = [_ints(each) for each in more] or [settings["starts"], settings["ends"], settings["axes"] or [0]]
    starts, ends = given[:2]
    axes, steps = (given[2:3] or [[0]])[0], (given[3:4] or [[1]])[0]
    if len(starts) != 1 or axes not in ([0], [-1]) or value.ndim != 1:
        raise ValueError
    return value[starts[0] : ends[0] : steps[0]]


def _gather(settings: dict[str, Any], value: np.ndarray, at: np.ndarray) -> np.ndarray:
    if value.ndim != 1 or at.dtype.kind != "i":
        raise ValueError
    return _short(value)[np.atleast_1d(_short(at))].reshape(at.shape)  # a letter alone would be no array of objects


# By operator: its attributes, and what computes it: views or few numbers, so that no graph can fill the memory.
_FOLDS: dict[str, tuple[dict[str, type], Callable[..., np.ndarray]]] = {
    "Identity": ({}, lambda settings, value: value),
    "Cast": ({"to": int, "saturate": int}, _cast),
    "Transpose": ({"perm": list}, lambda settings, value: value.transpose(settings["perm"])),
    "Reshape": ({"allowzero": int}, _reshape),
    "Squeeze": ({"axes": list}, lambda settings, value, *more: value.squeeze(_axes(settings, more))),
    "Unsqueeze": ({"axes": list}, lambda settings, value, *more: np.expand_dims(value, _axes(settings, more))),
    "Gather": ({"axis": int}, _gather),
    "Slice": ({"starts": list, "ends": list, "axes": list}, _slice),
    "Concat": ({"axis": int}, lambda settings, *values: _short(np.concatenate([_short(each) for each in values]))),
}
