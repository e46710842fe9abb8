"""ONNX graphs that we wrote, with nodes put in, taken out, exchanged, connected otherwise and set otherwise.

The reference is onnxruntime: where it runs a graph that was read, the network that was read gives the same numbers.
"""

from __future__ import annotations

import copy
import random as stdlib_random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.fuzz import harness
from tests.support.foreign import network
from tests.support.onnx_graphs import Edited, both, images, off
from vggfast.weights.formats import read

_REFUSED = tuple(kind for kind in vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
                 if isinstance(kind, type) and issubclass(kind, Exception))  # fmt: skip
_TOLERANCE = 1e-4
_HALF = 3e-2  # where a note says that the file computes in another width

# Nodes that may be put in: operator, constants, settings.
_MORE: list[tuple[str, list[Any], dict[str, Any]]] = [
    *((op, [], {}) for op in (
        "Relu", "Identity", "Dropout", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "Neg", "Abs", "Softmax", "LogSoftmax",
        "Clip", "GlobalAveragePool", "GlobalMaxPool", "Flatten", "Transpose", "Softplus", "HardSwish", "Exp", "Not",
        "Shape", "Squeeze", "Sum",
    )),
    *(("Flatten", [], {"axis": axis}) for axis in (0, 2, -1, -3)),
    *(("Softmax", [], {"axis": axis}) for axis in (0, 1)),
    *(("Cast", [], {"to": kind}) for kind in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64)),
    *((op, [], {"kernel_shape": [size] * 2, "strides": [size] * 2})
      for op in ("MaxPool", "AveragePool") for size in (1, 2, 4)),
    ("AveragePool", [], {"kernel_shape": [3, 3], "pads": [1] * 4}), ("LRN", [], {"size": 5, "bias": 2.0}),
    *(("Transpose", [], {"perm": perm})
      for perm in ([0, 2, 3, 1], [0, 3, 1, 2], [0, 1, 3, 2], [0, 1, 2, 3], [1, 0], [0, 1])),
    *((op, [np.float32(value)], {})
      for op in ("Add", "Mul", "Sub", "Div", "Max", "Min", "Pow", "PRelu") for value in (0, 1, 2)),
    *(("Clip", [np.float32(0), np.float32(high)], {}) for high in (6, 1e30)),
    *(("Reshape", [np.array(shape)], {})
      for shape in ([-1, 32], [0, -1], [2, -1], [1, -1], [0, 0], [-1, 1], [0, 0, -1], [0, -1, 1, 1])),
    *(("ReduceMean", [], {"axes": axes, "keepdims": keep}) for axes in ([2, 3], [-1, -2], [1], [3]) for keep in (0, 1)),
    *(("Squeeze", [np.array(axes)], {}) for axes in ([2, 3], [-1, -2], [3])),
    ("Unsqueeze", [np.array([2, 3])], {}), ("Pad", [np.array([0, 0, 1, 1, 0, 0, 1, 1])], {}),
    *(("Dropout", [np.float32(0.5), np.array(trains)], {}) for trains in (False, True)),
    ("Concat", [], {"axis": 0}), ("DepthToSpace", [], {"blocksize": 1}),
]  # fmt: skip
_VALUES: list[Any] = [
    0, 1, 2, 3, -1, 1.0, 0.5, 1e-3, 1e-5, -1e-5, 0.0, [1, 1], [2, 2], [3, 3], [1, 2], [0] * 4, [1] * 4, [1, 1, 0, 0],
    [0, 0, 1, 1], [5, 5], [2] * 4, [], b"SAME_UPPER", b"SAME_LOWER", b"VALID", b"NOTSET", b"OTHER", [1.0, 1.0], 7, 5,
]  # fmt: skip
_SETTINGS = (
    "kernel_shape", "strides", "pads", "dilations", "group", "auto_pad", "ceil_mode", "storage_order", "epsilon",
    "momentum", "training_mode", "alpha", "beta", "transA", "transB", "axis", "axes",
    "perm", "size", "bias", "keepdims", "allowzero",
    "count_include_pad", "other", "spatial",
)  # fmt: skip


def _insert(edited: Edited, random: stdlib_random.Random) -> None:
    op, constants, settings = random.choice(_MORE)
    edited.insert(random.randrange(len(edited.nodes) + 1), op, *map(np.asarray, constants), **settings)


def _insert_bias(edited: Edited, random: stdlib_random.Random) -> None:
    """A node with a vector, of the layer before or of any length."""
    at = random.randrange(1, len(edited.nodes) + 1)
    before = edited.nodes[at - 1]
    length = random.choice([len(edited.array(name)) for name in before.input[1:] if name in _names(edited)] or [3])
    shape = random.choice([(length,), (length, 1, 1), (1, length, 1, 1), (1, length), (length, 1)])
    value = np.random.default_rng(random.getrandbits(32)).normal(size=shape).astype(np.float32)
    edited.insert(at, random.choice(["Add", "Mul", "Sub"]), value)


def _names(edited: Edited) -> set[str]:
    return {each.name for each in edited.graph.initializer}


def _remove(edited: Edited, random: stdlib_random.Random) -> None:
    edited.remove(random.randrange(len(edited.nodes)))


def _swap(edited: Edited, random: stdlib_random.Random) -> None:
    edited.swap(random.randrange(len(edited.nodes) - 1))


def _move(edited: Edited, random: stdlib_random.Random) -> None:
    """In the file alone, not along the edges."""
    edited.nodes.insert(random.randrange(len(edited.nodes)), edited.nodes.pop(random.randrange(len(edited.nodes))))


def _connect(edited: Edited, random: stdlib_random.Random) -> None:
    node = random.choice(edited.nodes)
    names = [*_names(edited), *(each.output[0] for each in edited.nodes), "images", ""]
    node.input[random.randrange(len(node.input))] = random.choice(names)


def _change_inputs(edited: Edited, random: stdlib_random.Random) -> None:
    node = random.choice(edited.nodes)
    if random.random() < 0.5:
        node.input.pop()
    else:
        node.input.append(random.choice([*_names(edited), ""]))


def _set(edited: Edited, random: stdlib_random.Random) -> None:
    at = random.randrange(len(edited.nodes))
    own = [each.name for each in edited.nodes[at].attribute]
    name = random.choice([*own, *own, random.choice(_SETTINGS)])
    edited.set(at, **{name: random.choice([*_VALUES, None])})


def _nudge(edited: Edited, random: stdlib_random.Random) -> None:
    """One number of one attribute."""
    attributes = [each for node in edited.nodes for each in node.attribute]
    if not attributes:
        return
    each = random.choice(attributes)
    if each.ints:
        each.ints[random.randrange(len(each.ints))] += random.choice([-1, 1])
    elif each.HasField("i"):
        each.i += random.choice([-1, 1])
    elif each.HasField("f"):
        each.f *= random.choice([0.5, 2, 100, 1e-3, -1])


def _rename(edited: Edited, random: stdlib_random.Random) -> None:
    node = random.choice(edited.nodes)
    node.op_type = random.choice(
        [op for op, *_ in _MORE] + ["Conv", "ConvTranspose", "MatMul", "Gemm", "InstanceNormalization"]
    )


def _declare(edited: Edited, random: stdlib_random.Random) -> None:
    side = random.choice([32, 64, 96, 128, "H"])
    edited.declare(random.choice([1, 2, "N"]), 3, side, random.choice([side, side, side, 32, 64, 128, "W"]))


def _share(edited: Edited, random: stdlib_random.Random) -> None:
    """A tensor of another node of the same operator."""
    first, second = random.choice(edited.nodes), random.choice(edited.nodes)
    if first.op_type == second.op_type and len(first.input) > 1:
        at = random.randrange(1, min(len(first.input), len(second.input)))
        first.input[at] = second.input[at]


def _wrap_constant(edited: Edited, random: stdlib_random.Random) -> None:
    """A tensor as a Constant node, or behind a node that changes or keeps it."""
    tensor = random.choice(edited.graph.initializer)
    name = tensor.name
    value = numpy_helper.to_array(tensor)
    if random.random() < 0.3:
        edited.graph.initializer.remove(tensor)
        edited.nodes.insert(0, helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value)))
        return
    op, constants, settings = random.choice([
        ("Identity", [], {}), ("Cast", [], {"to": TensorProto.FLOAT}), ("Transpose", [], {}), ("Neg", [], {}),
        ("Reshape", [np.array(random.choice([value.shape, value.shape[::-1]]))], {}), ("Dropout", [], {}),
        ("Unsqueeze", [np.array([0])], {}), ("Squeeze", [], {}), ("Flatten", [], {}),
        ("Slice", [np.array([0]), np.array([2])], {}),
        ("Gather", [np.array([0, 0])], {}), ("Concat", [], {"axis": 0}), ("Relu", [], {}),
    ])  # fmt: skip
    tensor.name = f"{name}.wrapped"
    more = [edited.constant(each) for each in constants]
    edited.nodes.insert(0, helper.make_node(op, [tensor.name, *more], [name], **settings))


def _change_constant(edited: Edited, random: stdlib_random.Random) -> None:
    tensor = random.choice(edited.graph.initializer)
    value, name = numpy_helper.to_array(tensor), tensor.name
    change = random.choice([
        lambda v: v.astype(np.float16), lambda v: v.astype(np.float64), lambda v: v.astype(np.int32), lambda v: v[:-1],
        lambda v: v[None], lambda v: v.reshape(-1), lambda v: v[..., :1], lambda v: v.sum(), lambda v: v * 0,
        lambda v: v.T,
        lambda v: v - 1, lambda v: v.repeat(2, 0),
    ])  # fmt: skip
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(value)), name))


def _mess_with_ends(edited: Edited, random: stdlib_random.Random) -> None:
    """Outputs and inputs more or fewer, a tensor as an input, names twice."""
    node = random.choice(edited.nodes)
    match random.randrange(6):
        case 0:
            edited.graph.output.append(helper.make_empty_tensor_value_info(node.output[0]))
        case 1:
            edited.graph.output[0].name = node.output[0]
            edited.graph.output[0].ClearField("type")
        case 2:
            edited.graph.input.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, ["N", 3, 64, 64]))
            node.input[0] = random.choice([node.input[0], "second"])
        case 3:
            tensor = random.choice(edited.graph.initializer)
            edited.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.dims)))
            if random.random() < 0.5:
                edited.graph.initializer.remove(tensor)
        case 4:
            node.output[0] = random.choice(edited.nodes).output[0]
        case 5:
            edited.nodes.append(copy.deepcopy(node))
            edited.nodes[-1].output[0] = random.choice(["nobody's", edited.graph.output[0].name])


def _mul_and_add(edited: Edited, random: stdlib_random.Random) -> None:
    """An FC layer as MatMul and Add, or a convolution's bias as an Add."""
    at = random.choice([i for i, node in enumerate(edited.nodes) if node.op_type in ("Gemm", "Conv")])
    node = edited.nodes[at]
    if len(node.input) < 3:
        return
    bias = edited.array(node.input.pop())
    edited.insert(at + 1, "Add", bias if node.op_type == "Gemm" else bias[:, None, None])
    if node.op_type == "Gemm":
        weight = edited.array(node.input[1])
        node.input[1] = edited.constant(np.ascontiguousarray(weight.T))
        node.op_type = "MatMul"
        del node.attribute[:]


def _channels_last(edited: Edited, random: stdlib_random.Random) -> None:
    """Images, or what the first FC layer reads, turned."""
    if random.random() < 0.5:
        edited.insert(0, "Transpose", perm=[0, 3, 1, 2])
        edited.declare("N", random.choice([64, "H"]), random.choice([64, "W"]), 3)
    elif flattens := [i for i, node in enumerate(edited.nodes) if node.op_type == "Flatten"]:
        edited.insert(flattens[0], "Transpose", perm=[0, 2, 3, 1])


_CHANGES: list[Callable[[Edited, stdlib_random.Random], None]] = [
    _insert, _insert, _insert, _insert_bias, _remove, _remove, _swap, _move, _connect, _change_inputs, _set, _set,
    _nudge,
    _rename, _declare, _declare, _share, _wrap_constant, _wrap_constant, _change_constant, _mess_with_ends,
    _mul_and_add, _mul_and_add, _channels_last,
]  # fmt: skip


def case(random: stdlib_random.Random, folder: Path) -> bool:
    """See the package."""
    torch.set_num_threads(1)
    torch.manual_seed(random.getrandbits(32))
    head, pool_size = random.choice(["linear", "linear", "linear", "conv", "none"]), random.choice([1, 2, 2])
    model = network(
        random.choice(["A", "A", "A-LRN", "C"]), head=head, pool_size=pool_size, batch_norm=random.random() < 0.4,
        width=0.03, hidden=4, num_classes=3,
    )  # fmt: skip
    edited = Edited(folder / "m.onnx", model)
    for _ in range(random.choice([0, 1, 1, 1, 2, 2, 3])):
        change = random.choice(_CHANGES)
        try:
            change(edited, random)
        except (IndexError, StopIteration, ValueError, TypeError):  # there is nothing of that kind to change
            continue
    if random.random() < 0.9:
        edited.drop_unused()
    path = edited.save()
    features_only = random.random() < 0.1
    found = harness.attempt(read, path, "onnx", names=[str(path)], features_only=features_only)
    if found is None:
        return False
    if not features_only:  # of what stands behind the convolutions there is nothing to compare
        _compare(found, path, edited)
    return True


def _compare(found: Any, path: Path, edited: Edited) -> None:
    """At the sizes that the file declares, or at some where these are open."""
    dims = [each.dim_value for each in edited.graph.input[0].type.tensor_type.shape.dim]
    notes = " ".join(found.notes)
    n, c, *declared = (dims[i] for i in ((0, 3, 1, 2) if "images of axes N, H, W, C" in notes else range(4)))
    tolerance = _HALF if "float32" in notes else _TOLERANCE
    for number, sides in enumerate(((64, 64), (32, 32), (96, 96), (64, 97), (32, 128))):
        if sides == (32, 128) and "averages it to a square" in notes:
            continue
        sizes = (n or 1 + number % 2, c or 3, *(mine or side for mine, side in zip(declared, sides, strict=True)))
        if min(sizes[2:]) < 32:  # nothing is left of it behind five pools
            continue
        try:
            expected, got = both(found, path, images(sizes))
        except _REFUSED:  # onnxruntime does not run the file, or not at this size
            continue
        if not (distance := off(expected, got)) <= tolerance:
            raise harness.Different(f"images of {sizes}: off by {distance:.2g}")
