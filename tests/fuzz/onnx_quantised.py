"""ONNX graphs of 8 bits as onnxruntime quantises ours, with other scales, zero points, types and nodes.

The reference is onnxruntime. A value near the middle of two steps may go either way, and behind it others, so that only
what is off by more than a tenth counts.
"""

from __future__ import annotations

import functools
import random as stdlib_random
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from onnx import helper
from onnxruntime.quantization import QuantType

import vggfast
from tests.fuzz import harness, onnx_graphs
from tests.support.foreign import network
from tests.support.onnx_graphs import by_onnxruntime, images, off
from tests.support.onnx_quantised import QdqGraph, read_quantised

_FORMS = (
    {}, {"activation_type": QuantType.QInt8}, {"per_channel": False}, {"extra_options": {"AddQDQPairToWeight": True}},
    {"nodes_to_exclude": ["features.0", "classifier.6"]},
)  # fmt: skip
_TOLERANCE = 0.1


@functools.cache
def _file(form: int) -> bytes:
    torch.manual_seed(form)
    model = network("A", width=0.03, hidden=4, num_classes=3)
    with tempfile.TemporaryDirectory() as folder:
        return QdqGraph(Path(folder) / "m.onnx", model, options=_FORMS[form]).path.read_bytes()


def _pairs(graph: QdqGraph) -> list[int]:
    return [i for i, node in enumerate(graph.nodes) if node.op_type in ("QuantizeLinear", "DequantizeLinear")]


def _change_number(graph: QdqGraph, random: stdlib_random.Random) -> None:
    """A scale or zero point, wherever it is read."""
    name = random.choice([name for at in _pairs(graph) for name in graph.nodes[at].input[1:]])
    change: Callable[[np.ndarray], np.ndarray] = random.choice([
        lambda v: v * 2, lambda v: v * 0.7, lambda v: v + 1, lambda v: v - 1, lambda v: -v, lambda v: v * 0,
        lambda v: v.repeat(2), lambda v: v[:1], lambda v: v.astype(np.float64), lambda v: v.astype(np.int32),
        lambda v: v.astype(np.int8), lambda v: v.astype(np.uint8), lambda v: v * 0 + 128,
    ])  # fmt: skip
    value = graph.array(name)
    with np.errstate(all="ignore"):
        changed = change(value)
    keep = random.random() < 0.7
    graph.set_array(name, np.asarray(changed).astype(value.dtype) if keep else changed)


def _set_pair(graph: QdqGraph, random: stdlib_random.Random) -> None:
    settings = random.choice([{"axis": random.randrange(-5, 5)}, {"block_size": random.randrange(3)}, {"saturate": 0}])
    graph.set(random.choice(_pairs(graph)), **settings)


def _drop_zero_point(graph: QdqGraph, random: stdlib_random.Random) -> None:
    node = graph.nodes[random.choice(_pairs(graph))]
    if len(node.input) == 3:
        node.input.pop()


def _remove_one(graph: QdqGraph, random: stdlib_random.Random) -> None:
    """Or both of a pair."""
    at = random.choice([at for at in _pairs(graph) if graph.nodes[at].op_type == "QuantizeLinear"])
    for _ in range(random.choice([1, 2, 2])):
        graph.remove(at)


def _insert_pair(graph: QdqGraph, random: stdlib_random.Random) -> None:
    """With the scale of another, or a new one."""
    at = random.randrange(len(graph.nodes))
    other = graph.nodes[random.choice(_pairs(graph))]
    constants = list(other.input[1:]) if random.random() < 0.5 else [np.float32(0.05), np.uint8(0)]
    graph.insert(at, "QuantizeLinear", *constants)
    graph.insert(at + 1, "DequantizeLinear", *constants)


def _turn_weight(graph: QdqGraph, random: stdlib_random.Random) -> None:
    """Behind a Transpose or an Identity."""
    node = random.choice([node for node in graph.nodes if node.op_type in ("Conv", "Gemm")])
    op, settings = random.choice([("Transpose", {}), ("Transpose", {"perm": [1, 0]}), ("Identity", {})])
    name = node.input[1]
    node.input[1] = f"{name}.turned"
    graph.nodes.insert(0, helper.make_node(op, [name], [node.input[1]], **settings))
    if node.op_type == "Gemm" and op == "Transpose":
        graph.set(next(i for i, each in enumerate(graph.nodes) if each == node), transB=0)
    for at in [i for i, each in enumerate(graph.nodes) if name in each.output][:1]:
        graph.nodes.insert(0, graph.nodes.pop(at))


_CHANGES = [
    _change_number, _change_number, _change_number, _set_pair, _drop_zero_point, _remove_one, _insert_pair,
    _turn_weight,
    *onnx_graphs._CHANGES[:9], onnx_graphs._change_constant, onnx_graphs._wrap_constant,
]  # fmt: skip


def case(random: stdlib_random.Random, folder: Path) -> bool:
    """See the package."""
    torch.set_num_threads(1)
    graph = QdqGraph.of(folder / "m.onnx", _file(random.randrange(len(_FORMS))))
    for _ in range(random.choice([0, 1, 1, 1, 2])):
        try:
            random.choice(_CHANGES)(graph, random)
        except (
            IndexError,
            StopIteration,
            ValueError,
            TypeError,
            OverflowError,
        ):  # there is nothing of that kind to change
            continue
    graph.drop_unused()
    path = graph.save()
    found = harness.attempt(read_quantised, path, names=[str(path)])
    if found is None:
        return False
    dtype = "int8" if found.model.quantisation else "fp32"
    engine = harness.attempt(vggfast.Engine, found.model, dtype=dtype, size=64)
    if engine is None:
        return False
    x = images((2, 3, 64, 64), random.randrange(100))
    try:
        expected = by_onnxruntime(path, x)
    except onnx_graphs._REFUSED:  # onnxruntime does not run the file
        return True
    if "softmax" in " ".join(found.notes):
        return True
    if not (distance := off(expected, engine(torch.from_numpy(x)).numpy())) <= _TOLERANCE:
        raise harness.Different(f"off by {distance:.2g}")
    return True
