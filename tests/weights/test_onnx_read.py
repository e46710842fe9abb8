"""ONNX graphs of every kind that are read, with the numbers that onnxruntime gives."""

import random

import numpy as np
import pytest
import torch

import vggfast

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.fuzz.onnx_graphs import case  # noqa: E402
from tests.support.comparisons import relative_error  # noqa: E402
from tests.support.foreign import network  # noqa: E402
from tests.support.onnx_graphs import (  # noqa: E402
    Edited,
    average,
    both,
    edited,
    epsilon,
    images,
    off,
    reshape_to,
    through,
)
from vggfast.cli import main  # noqa: E402
from vggfast.weights.formats import read  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
FLOAT, FLOAT16, DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE


def edit(change, **arguments):
    """A change of a written graph; the arguments are the network's."""
    return change, arguments


def gemm_as_mat_mul(graph, number):
    at = graph.find("Gemm", number)
    node = graph.nodes[at]
    bias = graph.array(node.input.pop())
    graph.insert(at + 1, "Add", bias)
    node.op_type, node.input[1] = "MatMul", graph.constant(np.ascontiguousarray(graph.array(node.input[1]).T))
    del node.attribute[:]


def bias_as_add(graph):
    node = graph.nodes[0]
    graph.insert(1, "Add", graph.array(node.input.pop())[:, None, None])


def flatten_by_shapes(graph):
    """As exporters write x.view(x.size(0), -1)."""
    at = graph.find("Flatten")
    read, make = graph.nodes[at].input[0], onnx.helper.make_node
    names = [graph.constant(np.array(value)) for value in (0, [0], [-1])]
    new = [
        make("Shape", [read], ["s"]), make("Gather", ["s", names[0]], ["g"]), make("Unsqueeze", ["g", names[1]], ["u"]),
        make("Concat", ["u", names[2]], ["c"], axis=0), make("Reshape", [read, "c"], [graph.nodes[at].output[0]]),
    ]  # fmt: skip
    graph.nodes.pop(at)
    for node in reversed(new):
        graph.nodes.insert(at, node)


def global_average_as(op, *constants, **settings):
    def change(graph):
        at = graph.find("GlobalAveragePool")
        node = graph.nodes[at]
        node.op_type = op
        node.input.extend(graph.constant(each) for each in constants)
        graph.set(at, **settings)

    return change


def turned(graph):
    """Channels last at both ends, as in graphs that tf2onnx made."""
    graph.insert(0, "Transpose", perm=[0, 3, 1, 2])
    graph.declare("N", 64, 64, 3)
    at = graph.find("Flatten")
    graph.insert(at, "Transpose", perm=[0, 2, 3, 1])
    node = graph.nodes[graph.find("Gemm")]
    weight = graph.array(node.input[1])
    weight = weight.reshape(len(weight), -1, 2, 2).transpose(0, 2, 3, 1).reshape(len(weight), -1)
    node.input[1] = graph.constant(np.ascontiguousarray(weight))


def share(graph):
    """The last convolution's weight and bias are those of the one before."""
    convs = [node for node in graph.nodes if node.op_type == "Conv"]
    convs[-1].input[1:] = convs[-2].input[1:]


def store_as(dtype):
    """Weights of another dtype, each behind a Cast."""

    def change(graph):
        for tensor in list(graph.graph.initializer):
            value, name = onnx.numpy_helper.to_array(tensor), tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(dtype), f"{name}.stored"))
            graph.nodes.insert(0, onnx.helper.make_node("Cast", [f"{name}.stored"], [name], to=FLOAT))

    return change


def without_convolution_biases(graph):
    for node in graph.nodes:
        if node.op_type == "Conv":
            node.input.pop()


def with_inputs(graph):
    """As the older exporters list them: every tensor is an input, too."""
    for tensor in graph.graph.initializer:
        value = onnx.helper.make_tensor_value_info(tensor.name, FLOAT, list(tensor.dims))
        graph.graph.input.append(value)


def of_opset(version):
    def change(graph):
        graph.file.opset_import[0].version = version
        graph.insert(graph.find("Gemm", 2), "Dropout", **({"ratio": 0.5} if version < 12 else {}))
        graph.insert(len(graph.nodes), "Softmax")

    return change


READ = {
    "as written": edit(lambda g: None),
    "batch norm": edit(lambda g: None, batch_norm=True),
    "one channel": edit(lambda g: None, in_channels=1),
    "an epsilon of 1e-3": edit(epsilon(1e-3), batch_norm=True),
    "an epsilon that makes the variance negative": edit(epsilon(1e-9, 1e-7), batch_norm=True),
    "an epsilon by default": edit(epsilon(None), batch_norm=True),
    "Identity": edit(lambda g: g.insert(3, "Identity")),
    "Dropout": edit(lambda g: g.insert(g.find("Gemm", 1), "Dropout")),
    "Dropout with inputs": edit(lambda g: g.insert(g.find("Gemm", 1), "Dropout", np.float32(0.3), np.array(False))),
    "Cast": edit(lambda g: g.insert(4, "Cast", to=FLOAT)),
    "an average pool of one cell": edit(lambda g: g.insert(g.find("Flatten"), "AveragePool", kernel_shape=[1, 1])),
    "an average pool of 2x2 cells": edit(average(2)),
    "an average pool of 2x3 cells": edit(lambda g: (
        average(2, (128, 192))(g), g.set(g.find("AveragePool"), kernel_shape=[2, 3], strides=[2, 3])
    )),
    "MatMul and Add": edit(lambda g: gemm_as_mat_mul(g, 1)),
    "all by MatMul and Add": edit(lambda g: [gemm_as_mat_mul(g, 0) for _ in range(3)]),
    "an Add behind a convolution": edit(bias_as_add),
    "convolutions without bias": edit(without_convolution_biases),
    "one bias for all": edit(lambda g: g.nodes[-1].input.__setitem__(2, g.constant(np.float32([0.5])))),
    "Flatten of another spelling": edit(lambda g: g.set(g.find("Flatten"), axis=-3)),
    "Reshape (0, -1)": edit(reshape_to(0, -1)),
    "Reshape (-1, values)": edit(reshape_to(-1, 104)),
    "a computed Reshape": edit(flatten_by_shapes),
    "rows flattened again": edit(lambda g: g.insert(g.find("Gemm", 1), "Flatten")),
    "images with channels last": edit(turned),
    "a Transpose and its opposite": edit(lambda g: (
        g.insert(2, "Transpose", perm=[0, 2, 3, 1]), g.insert(3, "Transpose", perm=[0, 3, 1, 2])
    )),
    "ReLU between Transposes": edit(lambda g: (
        g.insert(1, "Transpose", perm=[0, 2, 3, 1]), g.insert(3, "Transpose", perm=[0, 3, 1, 2])
    )),
    "GlobalAveragePool as ReduceMean": edit(global_average_as("ReduceMean", axes=[2, 3]), head="conv"),
    "GlobalAveragePool as ReduceMean without axes left": edit(
        global_average_as("ReduceMean", axes=[-1, -2], keepdims=0), head="conv"
    ),
    "a dense head": edit(lambda g: None, head="conv"),
    "a dense head whose scores are squeezed": edit(lambda g: (
        g.nodes.__getitem__(-1).input.append(g.constant(np.array([2, 3]))),
        setattr(g.nodes[-1], "op_type", "Squeeze"), g.set(len(g.nodes) - 1, axis=None),
    ), head="conv"),
    "a dense head averaged before its last layer": edit(lambda g: (
        g.remove(g.find("GlobalAveragePool")), g.insert(g.find("Conv", -1), "GlobalAveragePool")
    ), head="conv"),
    "a head on one cell": edit(lambda g: None, pool_size=1),
    "shared tensors": edit(share),
    "weights of half precision": edit(store_as(np.float16)),
    "weights of double precision": edit(lambda g: g.declare("N", 3, 64, 64)),
    "weights by Transpose": edit(through("Transpose", change=np.transpose)),
    "weights by Reshape": edit(through("Reshape", np.array([16, -1]), change=np.ravel)),
    "weights by Unsqueeze": edit(through("Squeeze", np.array([0]), change=lambda v: v[None])),
    "weights by Identity": edit(through("Identity")),
    "auto_pad of convolutions": edit(lambda g: g.set(0, pads=None, auto_pad="SAME_UPPER")),
    "auto_pad of pools": edit(lambda g: g.set(g.find("MaxPool"), auto_pad="SAME_LOWER")),
    "ceil_mode where sizes are even": edit(lambda g: g.set(g.find("MaxPool"), ceil_mode=1)),
    "tensors among the inputs": edit(with_inputs),
    **{f"opset {version}": edit(of_opset(version), batch_norm=True) for version in (7, 9, 11, 12, 13, 18, 21)},
    "a node that nothing needs": edit(lambda g: g.nodes.append(onnx.helper.make_node("Exp", ["images"], ["nobody's"]))),
    "a softmax behind the scores": edit(lambda g: g.insert(len(g.nodes), "Softmax")),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_read_rightly(tmp_path, name):
    path = edited(tmp_path, *READ[name])
    found = read(path, preprocessing=vggfast.Preprocessing.caffe())
    dims = [each.dim_value for each in onnx.load(str(path)).graph.input[0].type.tensor_type.shape.dim]
    if name == "images with channels last":
        dims = [dims[i] for i in (0, 3, 1, 2)]
    for side in (64,) if dims[2] else (64, 97):
        x = images((2, dims[1], dims[2] or side, dims[3] or side))
        assert off(*both(found, path, x)) < 1e-4


def test_what_is_left_out_is_said(tmp_path, capsys):
    path = edited(tmp_path, *READ["a softmax behind the scores"])
    assert main(["convert", str(path), str(tmp_path / "o.safetensors")]) == 0
    said = "note           node new27, a softmax behind the scores, is left out: the network gives what it reads\n"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("name", "message"), [
    ("images with channels last", "the file takes images of axes N, H, W, C, and the network N, C, H, W"),
    ("an open size", "the file leaves the size of images open, and flattens any map: the network averages it to a"),
    ("half precision", "node new27 is float16, and the network computes in float32"),
    ("features with channels last", "the file's features have axes N, H, W, C, and those of the network N, C, H, W"),
])  # fmt: skip
def test_what_is_another_is_said(tmp_path, name, message):
    changes = {
        "an open size": edit(lambda g: g.declare("N", 3, "H", "W")),
        "half precision": edit(lambda g: g.insert(4, "Cast", to=FLOAT16)),
        "features with channels last": edit(lambda g: g.insert(99, "Transpose", perm=[0, 2, 3, 1]), head="none"),
    }
    found = read(edited(tmp_path, *(READ | changes)[name]))
    assert any(message in note for note in found.notes)


@pytest.mark.parametrize("kind", [FLOAT16, DOUBLE])
def test_graphs_of_another_precision(tmp_path, kind):
    """Their weights and their arithmetic: the same network in ours."""
    model = network("A", width=0.05)
    graph = Edited(tmp_path / "m.onnx", model)
    for tensor in graph.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(dtype), tensor.name))
    for each in (*graph.graph.input, *graph.graph.output):
        each.type.tensor_type.elem_type = kind
    found = read(graph.save())
    assert any("and the network computes in float32" in note for note in found.notes)
    x = torch.randn(1, 3, 64, 64)
    assert relative_error(found.model(x), model(x)) < (1e-2 if kind == FLOAT16 else 1e-6)


def test_bfloat16_weights(tmp_path):
    model = network("A", width=0.05)
    graph = Edited(tmp_path / "m.onnx", model)
    for tensor in graph.graph.initializer:
        rounded = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()).bfloat16()
        raw = rounded.view(torch.int16).numpy().tobytes()
        tensor.CopyFrom(onnx.TensorProto(
            name=tensor.name, data_type=onnx.TensorProto.BFLOAT16, dims=tensor.dims, raw_data=raw
        ))  # fmt: skip
    found = read(graph.save()).model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(found[name], tensor.bfloat16().float()), name


@pytest.mark.parametrize("seed", range(20))
def test_random_changes(tmp_path, seed):
    """As the fuzzer makes them (tests/fuzz/onnx_graphs.py): read as onnxruntime does, or refused."""
    case(random.Random(seed), tmp_path)
