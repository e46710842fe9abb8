"""The chain of an ONNX graph's nodes: what each reads, the axes of what it gives, and those that compute nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from vggfast.weights.formats import _onnx_quantised as quantised
from vggfast.weights.formats._onnx_graph import DOMAINS, Graph, called, described
from vggfast.weights.formats._roundings import Roundings
from vggfast.weights.formats._sequence import FLATTEN, RELU, Step, with_article

MAP, MAP_LAST, ROWS = ("N", "C", "H", "W"), ("N", "H", "W", "C"), ("N", "C")
_MOST_LAYERS = 100
_ARITHMETIC = ("Add", "Sub", "Mul", "Div")


def demand(node: Any, what: str, found: dict[str, Any], **allowed: Any) -> None:
    """Raises ValueError for the first setting that is another."""
    for name, value in allowed.items():
        if found[name] != value:
            value, got = (
                each.decode(errors="replace") if isinstance(each, bytes) else each for each in (value, found[name])
            )
            raise ValueError(f"{called(node)}, {what}, must have {name} {value}, got {got}")


def stranger(node: Any, what: str | None = None) -> ValueError:
    return ValueError(f"{called(node)} is {what or with_article(node.op_type)}, which no VGG has there")


class NodeChain:
    """A walk along a graph, of which a subclass reads the layers.

    Attributes:
        readers: by operator, what reads it, and the fewest and most inputs that it has.
        steps, hwc, notes, roundings: as of :class:`Raw`.
    """

    def __init__(self, onnx: Any, graph: Graph) -> None:
        self.roundings = Roundings()
        self._rounded: quantised.Parameters | None = None  # how the last node rounded, if it gave whole numbers
        self._types, self._graph = onnx.TensorProto.DataType, graph
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self.hwc = False
        self._fc = 0  # FC layers so far
        self._bare = False  # whether the last node is a layer that has no bias yet
        # What the last node gave: its name, its axes, and their sizes, the axis' letter for one that is not known.
        self._current = ""
        self._axes: tuple[str, ...] = MAP
        self._sizes: dict[str, Any] = {}
        self._shapes: dict[str, list[Any]] = {}  # of all that the chain has given
        self._narrow = False  # whether there is a note on other floats than ours

    def _start(self) -> None:
        inputs = self._graph.inputs
        if len(inputs) != 1:
            listed = ", ".join(each.name for each in inputs) or "none"
            raise ValueError(f"the graph must have one input, the images, got {listed}")
        kind = inputs[0].type.tensor_type
        dims = [each.dim_value if each.dim_value > 0 else axis for each, axis in zip(kind.shape.dim, MAP, strict=False)]
        if kind.HasField("shape") and len(kind.shape.dim) != len(MAP):
            raise ValueError(f"the input {inputs[0].name} must have {len(MAP)} axes, got {len(kind.shape.dim)}")
        self._sizes = dict(zip(MAP, dims or MAP, strict=True))
        self._meet_type(f"the input {inputs[0].name}", kind.elem_type)
        self._give(inputs[0].name)

    def _end(self) -> None:
        if self._graph.outputs != [self._current]:
            listed = ", ".join(self._graph.outputs)
            raise ValueError(f"the graph must have one output, that of its last layer, got {listed}")
        if self._rounded:
            raise ValueError(f"{self._rounded.node}, must be followed by a DequantizeLinear, got the output")
        allowed = [ROWS] if self._fc else [MAP, MAP_LAST, ROWS]
        if self._axes not in allowed:
            raise ValueError(f"the output must have axes {', '.join(allowed[0])}, got {', '.join(self._axes)}")
        if self._axes == MAP_LAST:
            self.notes.append("the file's features have axes N, H, W, C, and those of the network N, C, H, W")

    def _give(self, name: str) -> None:
        self._current = name
        self._shapes[name] = [self._sizes[axis] for axis in self._axes]

    def _meet_type(self, what: str, kind: int) -> None:
        """Keeps a note where the graph computes in numbers of another width than ours."""
        names = [name for name in ("FLOAT16", "BFLOAT16", "DOUBLE") if kind == self._types.Value(name)]
        if names and not self._narrow:
            self._narrow = True
            self.notes.append(f"{what} is {names[0].lower()}, and the network computes in float32")

    def _node(self, node: Any) -> None:
        if node.op_type == "Shape" and len(node.input) == 1 and node.input[0] in self._shapes:
            cut = self._graph.settings(node, start=0, end=int)
            self._graph.keep(node.output[0], self._shapes[node.input[0]][cut["start"] : cut["end"]])
            return
        if self._graph.fold(node):
            return
        read = [name for name in node.input if name and name not in self._graph]
        for name in read:
            if name != self._current:
                why = "is not what the layer before it gives" if name in self._shapes else "nothing before it gives"
                raise ValueError(f"{called(node)} reads {name}, which {why}: a VGG is a chain")
        if node.op_type in quantised.OTHERS:
            raise ValueError(f"{described(node)}, is of a form that is not read: {quantised.ALLOWED}")
        if self._rounded and node.op_type != "DequantizeLinear":
            raise ValueError(f"{self._rounded.node}, must be followed by a DequantizeLinear, got {described(node)}")
        if node.domain not in DOMAINS:
            raise stranger(node, f"{with_article(node.op_type)} of {node.domain}")
        if not self.steps and node.op_type in _ARITHMETIC:
            raise ValueError(
                f"{described(node)}, prepares the images, and the file does not say whether pixels "
                "are 0 to 1 or 0 to 255: export the network without it, and give --preprocessing"
            )
        run, least, most = self.readers.get(node.op_type, (None, 0, 0))
        if run is None or len(read) != 1:
            raise stranger(node)
        if not least <= len(node.input) <= most or (node.input[0] != read[0] and node.op_type != "Add"):
            raise ValueError(f"{described(node)}, must not have the inputs {', '.join(node.input)}")
        if any(node.output[1:]) and node.op_type != "Dropout":
            raise ValueError(f"{described(node)}, must have one output, got {', '.join(node.output)}")
        run(self, node, *node.input[1:], *[""] * (most - len(node.input)))
        self._give(node.output[0])

    def _layer(self, node: Any, kind: str) -> None:
        if len(self.steps) == _MOST_LAYERS:  # of which each may have a copy of one tensor
            raise ValueError(f"{called(node)} has {_MOST_LAYERS} layers before it, more than any VGG has")
        if relu := self.roundings.enter(called(node), kind):
            self.steps.append(Step(relu, RELU))
        self.steps.append(Step(called(node), kind))
        self._bare = False

    def _need(self, node: Any, axes: tuple[str, ...]) -> None:
        if self._axes != axes:
            raise ValueError(f"{described(node)}, must read axes {', '.join(axes)}, got {', '.join(self._axes)}")

    def _cells(self, node: Any) -> tuple[Any, Any]:
        return self._sizes["H"], self._sizes["W"]

    # ---- what changes no value ---------------------------------------------------------------------------------------

    def _identity(self, node: Any) -> None:
        self._graph.settings(node)

    def _quantize(self, node: Any, *names: str) -> None:
        self._rounded = self._graph.rounding(node)
        self.roundings.round(called(node), *self._rounded.rounding())
        self._bare = False

    def _dequantize(self, node: Any, *names: str) -> None:
        """Of what a QuantizeLinear gave."""
        rounded, self._rounded = self._rounded, None
        if not rounded:
            raise ValueError(f"{described(node)}, must read what a QuantizeLinear gives")
        if replace(self._graph.rounding(node), kind=rounded.type()).rounding() != rounded.rounding():
            raise ValueError(f"{described(node)}, must have the scale and zero point of {rounded.node}")

    def _dropout(self, node: Any, ratio: str, training: str) -> None:
        test = int(self._graph.opset >= 7)
        found = self._graph.settings(node, ratio=0.5, seed=0, is_test=test, consumed_inputs=list)
        found["training_mode"] = int(bool(training) and bool(self._graph.array(training).any()))
        demand(node, "a dropout", found, is_test=1, training_mode=0)

    def _cast(self, node: Any) -> None:
        kind = self._graph.settings(node, to=0, saturate=1, round_mode=b"up")["to"]
        if kind not in map(self._types.Value, ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")):
            name = self._types.Name(kind) if kind in self._types.values() else kind
            raise stranger(node, f"a Cast to {name}")
        self._meet_type(called(node), kind)

    def _transpose(self, node: Any) -> None:
        perm = self._graph.settings(node, perm=list(range(len(self._axes)))[::-1])["perm"]
        if sorted(perm) != list(range(len(self._axes))):
            raise ValueError(f"{called(node)}, a Transpose, must have a perm of {len(self._axes)} axes, got {perm}")
        if not self.steps and self._axes == MAP and perm == [0, 3, 1, 2]:  # so these are images with channels last
            sizes = [self._sizes[axis] for axis in MAP]
            self._sizes = {axis: n if isinstance(n, int) else axis for axis, n in zip(MAP_LAST, sizes, strict=True)}
            self.notes.append("the file takes images of axes N, H, W, C, and the network N, C, H, W")
            return
        self._axes = tuple(self._axes[axis] for axis in perm)

    def _flatten(self, node: Any) -> None:
        axis = self._graph.settings(node, axis=1)["axis"]
        demand(node, "a Flatten", {"axis": axis % len(self._axes)}, axis=1)
        self._to_rows(node)

    def _reshape(self, node: Any, shape: str) -> None:
        """To rows, (N, all values of an image), whose one number may be left open."""
        found = self._graph.settings(node, allowzero=0, shape=list)
        target = np.ravel(self._graph.array(shape)).tolist() if shape else found["shape"]
        sizes = [self._sizes[axis] for axis in self._axes]
        values = int(np.prod(sizes[1:])) if all(isinstance(each, int) for each in sizes[1:]) else None
        if target is None or len(target) != 2 or (found["allowzero"] and 0 in target):
            raise ValueError(f"{called(node)}, a Reshape, must make rows of (N, values), got shape {target}")
        rows, columns = (size if each == 0 else each for each, size in zip(target, sizes, strict=False))
        is_n = rows in (-1, sizes[0]) or (isinstance(sizes[0], str) and not isinstance(rows, str))
        is_all = columns in (-1, values) or (values is None and not isinstance(columns, str) and columns > 0)
        if not is_n or not is_all:
            raise ValueError(f"{called(node)}, a Reshape of {sizes}, must make rows of (N, values), got {target}")
        self._to_rows(node)

    def _squeeze(self, node: Any, axes: str) -> None:
        self._check_cells(node, self._graph.settings(node, axes=list)["axes"], axes)
        self._sizes |= {axis: 1 for axis in ("H", "W") if not isinstance(self._sizes[axis], int)}
        if self._cells(node) != (1, 1):
            raise ValueError(f"{called(node)}, a Squeeze, must read one cell, got {list(self._cells(node))}")
        self._to_rows(node)

    def _check_cells(self, node: Any, axes: Sequence[int] | None, name: str) -> None:
        """That a node's axes, an attribute or an input, are those of rows and columns."""
        axes = [int(each) for each in np.ravel(self._graph.array(name))] if name else axes or []
        named = {self._axes[axis] for axis in axes if -len(self._axes) <= axis < len(self._axes)}
        if len(self._axes) != len(MAP) or named != {"H", "W"} or len(axes) != 2:
            raise ValueError(f"{described(node)}, must have the axes of H and W, got {list(axes)}")

    def _to_rows(self, node: Any) -> None:
        """A map, (N, values of an image), as the first FC layer reads it."""
        if self._axes == ROWS:
            return
        height, width = self._cells(node)
        one = (height, width) == (1, 1)
        if self._axes[0] != "N" or (self._axes not in (MAP, MAP_LAST) and not one):
            raise ValueError(f"{called(node)} must read axes {', '.join(MAP)}, got {', '.join(self._axes)}")
        sides = {side for side in (height, width) if isinstance(side, int)}  # one that is open is the other
        if len(sides) > 1 or (self._fc and not one):
            raise ValueError(
                f"{called(node)} must read {'one cell' if self._fc else 'a square map'}, got {height} x {width}"
            )
        if not self._fc:
            self._layer(node, FLATTEN)
            self.hwc = self._axes == MAP_LAST and not one
            if not sides:
                self.notes.append(
                    "the file leaves the size of images open, and flattens any map: the network averages it to a square"
                )
        self._axes = ROWS
        self._sizes = {"N": self._sizes["N"], "C": self._sizes["C"] * sides.pop() ** 2 if sides else "C"}

    readers: ClassVar[dict[str, tuple[Callable[..., None], int, int]]] = {
        "Identity": (_identity, 1, 1), "Dropout": (_dropout, 1, 3), "Cast": (_cast, 1, 1),
        "Transpose": (_transpose, 1, 1), "Flatten": (_flatten, 1, 1), "Reshape": (_reshape, 1, 2),
        "Squeeze": (_squeeze, 1, 2), "QuantizeLinear": (_quantize, 2, 3), "DequantizeLinear": (_dequantize, 2, 3),
    }  # fmt: skip
