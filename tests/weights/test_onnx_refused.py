"""ONNX graphs that are no VGG's: refused by the name of the node that stands out."""

import numpy as np
import pytest
import torch

import vggfast

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.support.foreign import network  # noqa: E402
from tests.support.onnx_graphs import average, edited, epsilon, reshape_to, through  # noqa: E402
from vggfast.weights.formats import read  # noqa: E402
from vggfast.weights.formats._sequence import with_article  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
FLOAT, FLOAT16, INT32 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.INT32


def normalise(graph):
    graph.insert(0, "Sub", np.float32([[[120]], [[110]], [[100]]]))
    graph.insert(1, "Mul", np.float32(0.017))


def branch(graph):
    at = graph.find("Relu", 2)
    relu, behind = graph.nodes[at], graph.nodes[at + 1]
    graph.nodes.insert(at + 1, onnx.helper.make_node("Add", [relu.output[0], relu.input[0]], ["sum"], "sum"))
    behind.input[0] = "sum"


def second_output(graph):
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(graph.nodes[4].output[0]))


def weight_as_input(graph):
    tensor = next(each for each in graph.graph.initializer if each.name == "features.3.weight")
    graph.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, FLOAT, list(tensor.dims)))
    graph.graph.initializer.remove(tensor)


def replace(op, number, new, *constants, domain="", **settings):
    def change(graph):
        node = graph.nodes[graph.find(op, number)]
        node.op_type, node.domain = new, domain
        node.input.extend(graph.constant(each) for each in constants)
        graph.set(graph.find(new), **settings)

    return change


def set_on(op, number=0, **settings):
    return lambda graph: graph.set(graph.find(op, number), **settings)


def insert(at, op, *constants, **settings):
    """At an index, or before the first of an operator."""
    return lambda graph: graph.insert(graph.find(at) if isinstance(at, str) else at, op, *constants, **settings)


def sparse(graph):
    tensor = next(each for each in graph.graph.initializer if each.name == "features.0.bias")
    values = onnx.numpy_helper.from_array(np.float32([1]), tensor.name)
    indices = onnx.numpy_helper.from_array(np.array([0]), "indices")
    graph.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, list(tensor.dims)))
    graph.graph.initializer.remove(tensor)


def conditional(graph):
    read = graph.nodes[4].input[0]
    branches = [
        onnx.helper.make_graph([onnx.helper.make_node("Relu", [read], ["r"])], name, [],
                               [onnx.helper.make_empty_tensor_value_info("r")])
        for name in ("then", "else")
    ]  # fmt: skip
    node = onnx.helper.make_node(
        "If", [graph.constant(np.array(True))], ["if"], "if", then_branch=branches[0], else_branch=branches[1]
    )
    graph.nodes[4].input[0] = "if"
    graph.nodes.insert(4, node)


def loop(graph):
    value = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["v"], ["r"]), onnx.helper.make_node("Identity", ["c"], ["d"])], "body",
        [value("i", 7, []), value("c", 9, []), value("v", FLOAT, None)], [value("d", 9, []), value("r", FLOAT, None)],
    )  # fmt: skip
    more = [graph.constant(np.array(2)), graph.constant(np.array(True))]
    node = onnx.helper.make_node("Loop", [*more, graph.nodes[4].input[0]], ["looped"], "loop", body=body)
    graph.nodes[4].input[0] = "looped"
    graph.nodes.insert(4, node)


def own_relu(graph):
    body = [onnx.helper.make_node("Neg", ["x"], ["y"])]
    opsets = [onnx.helper.make_opsetid("", 17)]
    graph.file.functions.append(onnx.helper.make_function("", "Relu", ["x"], ["y"], body, opsets))


def twice(graph):
    graph.nodes[5].output[0] = graph.nodes[3].output[0]


# By what it is: a change, what the error says, and arguments of the network.
REFUSED = {
    "conv, ReLU, batch norm": (lambda g: [g.swap(g.find("BatchNormalization", i)) for i in range(8)],
                               r"node features\.2 is a ReLU, where .* has a batch norm, bn1_1", {"batch_norm": True}),
    "a sixth pool": (lambda g: (g.insert(g.find("Flatten"), "MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
                                g.declare("N", 3, 128, 128)),
                                    "node new27 is a max-pool, where .* an FC layer, fc1", {}),
    "no ReLU between FC layers": (lambda g: g.remove(g.find("Relu", -2)), r"node classifier\.3 is an FC layer", {}),
    "no ReLU behind a convolution": (lambda g: g.remove(g.find("Relu", 2)), r"node features\.8 is a conv.* a ReLU", {}),
    "a ReLU more": (insert(2, "Relu"), "node new27 is a ReLU, where configuration A has a max-pool, pool1", {}),
    "a ReLU ahead of all": (insert(0, "Relu"), "node new27 is a ReLU, where .* a convolution, conv1_1", {}),
    "a ReLU behind the scores": (insert(99, "Relu"), "node new27 is a ReLU, where .* nothing more", {}),
    "no last pool": (lambda g: (g.remove(g.find("MaxPool", -1)), g.declare("N", 3, 32, 32)),
                     "node flatten is a flattening, where .* a max-pool, pool5", {}),
    "batch norm ahead of all": (lambda g: g.insert(0, "BatchNormalization", *[np.ones(3, np.float32)] * 4),
                                "node new27 is a BatchNormalization, which no VGG has there", {}),
    "batch norm in the head": (lambda g: g.insert(g.find("Flatten"), "BatchNormalization", *[np.ones(26, "f")] * 4),
                               "node new27 is a batch norm, where .* an FC layer, fc1", {}),
    "two batch norms": (lambda g: g.insert(2, "BatchNormalization", *[np.ones(3, np.float32)] * 4),
                        "node new35 is a BatchNormalization, which no VGG has there", {"batch_norm": True}),
    "an LRN elsewhere": (insert(5, "LRN", size=5, bias=2.0),
        "node new28 is a local .* a ReLU, relu2_1", {"config": "A-LRN"}),
    "a dropout that drops": (insert(9, "Dropout", np.float32(0.5), np.array(True)), "training_mode 0, got 1", {}),
    "an average pool for a max-pool": (replace("MaxPool", 1, "AveragePool"), r"node features\.5.*average pool", {}),
    "a global average of more cells": (insert("Flatten", "GlobalAveragePool"),
        r"classifier\.0.weight.* take 26 inputs", {}),
    "an average that leaves cells out": (average(2, (160, 160)), "must make a square of .5, 5. cells", {}),
    "an average of an open size": (average(2, ("H", "W")), "must make a square of .'H', 'W'. cells", {}),
    "a max over all": (insert("Flatten", "GlobalMaxPool"), "node new27 is a GlobalMaxPool, which no VGG has there", {}),
    **{f"{op} for a ReLU": (replace("Relu", 1, op), rf"node features\.4 is {with_article(op)}, which no VGG", {})
       for op in ("LeakyRelu", "Elu", "Sigmoid", "Tanh", "Softplus", "HardSwish", "Selu")},
    **{f"{op} in the head": (replace("Relu", -1, op), rf"node classifier\.4 is {with_article(op)}, which no VGG", {})
       for op in ("LeakyRelu", "Sigmoid")},
    "ReLU6": (replace("Relu", 1, "Clip", np.float32(0), np.float32(6)), r"node features\.4 is a Clip", {}),
    "a softmax in the middle": (insert(24, "Softmax"), "node new27 is a softmax, where .* an FC layer, fc2", {}),
    "two softmaxes": (lambda g: (g.insert(99, "Softmax"), g.insert(99, "Softmax")), "node new27 is a softmax", {}),
    "a softmax along the batch": (insert(99, "Softmax", axis=0), "a softmax, must have axis 1, got 0", {}),
    "LogSoftmax": (insert(99, "LogSoftmax"), "node new27 is a LogSoftmax, which no VGG has there", {}),
    "ArgMax": (insert(99, "ArgMax", axis=1), "node new27 is an ArgMax, which no VGG has there", {}),
    "normalised images": (normalise, "node new27, a Sub, prepares the images, and .* give --preprocessing", {}),
    "images with channels turned": (insert(0, "Transpose", perm=[0, 2, 1, 3]), "node features.0.*got N, H, C, W", {}),
    "rows and columns turned": (insert("Flatten", "Transpose", perm=[0, 1, 3, 2]), "node flatten must read axes", {}),
    "images padded": (insert(0, "Pad", np.array([0, 0, 1, 1, 0, 0, 1, 1])), "node new27 is a Pad", {}),
    "a branch": (branch, "node sum reads .*, which is not what the layer before it gives: a VGG is a chain", {}),
    "two outputs": (second_output, "must have one output, that of its last layer, got scores, features", {}),
    "a weight as an input": (weight_as_input, "must have one input, the images, got images, features.3.weight", {}),
    "a weight that is not there": (lambda g: g.nodes[0].input.__setitem__(1, "w"),
        "node features.0 reads w, which nothing", {}),
    "a weight left out": (lambda g: g.nodes[0].input.__setitem__(1, ""), "node features.0, a Conv, must have all", {}),
    "a bias left out": (lambda g: (g.nodes[0].input.pop(), g.nodes.insert(1, onnx.helper.make_node(
        "Add", ["features.0.output", ""], ["sum"], "sum")), g.nodes[2].input.__setitem__(0, "sum")),
        "node sum, an Add, must have all its tensors", {}),
    "another domain": (replace("Relu", 0, "FusedRelu", domain="com.microsoft"), "a FusedRelu of com.microsoft", {}),
    "half weights of a wider type": (through("Cast", to=FLOAT16),
        "node wrap, a Cast of constants, is not computed", {}),
    "whole numbers": (through("Identity", change=lambda v: v.astype(np.int32)), "floating-point dtype, got int32", {}),
    "an If": (conditional, "node if is an If, which no VGG has there", {}),
    "a Loop": (loop, "node loop is a Loop, which no VGG has there", {}),
    "a ReLU of its own": (own_relu, "it has a Relu of its own in the place of ONNX's operator", {}),
    "sparse": (sparse, "tensor features.0.bias is sparse: weights must be dense", {}),
    "a name twice": (twice, "gives .*, and so does another", {}),
    "a Cast to whole numbers": (insert(4, "Cast", to=INT32), "node new27 is a Cast to INT32", {}),
    "Flatten at another axis": (set_on("Flatten", axis=2), "node flatten, a Flatten, must have axis 1, got 2", {}),
    "Reshape to other rows": (reshape_to(-1, 52), "node flatten, a Reshape of .*, must make rows", {}),
    "a flattening of a strip": (lambda g: g.declare("N", 3, 32, 128), "must read a square map, got 1 x 4", {}),
    "scores that stay a map": (lambda g: (g.remove(g.find("Flatten")), g.remove(g.find("GlobalAveragePool"))),
                               "the output must have axes N, C, got N, C, H, W", {"head": "conv"}),
    "features that are flattened": (insert(99, "Flatten"),
        "node new21 is a flattening, where .* nothing more", {"head": "none"}),
    "a dense head that is flattened": (lambda g: g.remove(g.find("GlobalAveragePool")),
        "must read one cell", {"head": "conv"}),
    "an FC layer with a nudge": (set_on("Gemm", 1, beta=0.5), "a Gemm, must have beta 1.0, got 0.5", {}),
    "a turned FC layer": (set_on("Gemm", 1, transB=0, transA=1), "a Gemm, must have transA 0, got 1", {}),
    "an unknown setting": (set_on("Conv", other=1),
        "node features.0 has the attribute other '1', which is not known", {}),
    "a setting of another type": (set_on("Conv", strides=1), "node features.0 has the attribute strides '1'", {}),
    "an epsilon below the variance": (epsilon(-1.0), "the variance of .*, must be at least 0", {"batch_norm": True}),
    "batch norm in training": (set_on("BatchNormalization", training_mode=1),
        "training_mode 0, got 1", {"batch_norm": True}),
    **{f"a convolution with {name}": (set_on("Conv", 2, **{name: value}), f"a 3x3 convolution, must have {name}", {})
       for name, value in {"strides": [2, 2], "pads": [0, 0, 2, 2], "dilations": [2, 2], "group": 3,
                           "auto_pad": "OTHER"}.items()},
    **{f"a pool with {name}": (set_on("MaxPool", 2, **{name: value}), f"a max-pool, must have {name}", {})
       for name, value in {"strides": [1, 1], "pads": [1, 1, 0, 0], "dilations": [2, 2], "kernel_shape": [3, 3],
                           "auto_pad": "OTHER", "storage_order": 1}.items()},
    "ceil_mode where sizes are odd": (lambda g: (g.set(g.find("MaxPool", 1), ceil_mode=1), g.declare("N", 3, 66, 66)),
                                      "a max-pool, must have ceil_mode 0, got 1", {}),
    **{f"an LRN with {name}": (set_on("LRN", **{name: value}), "must have {'size': 5", {"config": "A-LRN"})
       for name, value in {"size": 3, "alpha": 1e-3, "beta": 0.5, "bias": None}.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(tmp_path, name):
    change, message, arguments = REFUSED[name]
    path = edited(tmp_path, change, arguments)
    with pytest.raises(ValueError, match=message) as caught:
        read(path, preprocessing=vggfast.Preprocessing.caffe())
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Sigmoid in the head", "a sixth pool", "two outputs", "a ReLU behind the scores"])
def test_convolutions_alone_of_what_is_refused(tmp_path, name):
    change, _, arguments = REFUSED[name]
    model = network("A", width=0.05)
    path = edited(tmp_path, change, {**arguments, "model": model})
    found = read(path, features_only=True)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(found.model(x), model.features(x))


def test_no_more_layers_than_a_vgg_has(tmp_path):
    """Each of which would have a copy of the one weight."""
    import onnx
    from onnx import helper

    nodes = [helper.make_node("Conv", [f"c{i}", "w"], [f"c{i + 1}"]) for i in range(101)]
    ends = [helper.make_tensor_value_info(name, 1, [1, 2, 8, 8]) for name in ("c0", "c101")]
    weight = onnx.numpy_helper.from_array(np.zeros((2, 2, 1, 1), np.float32), "w")
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"m\.onnx: node c101 has 100 layers before it, more than any VGG has"):
        read(tmp_path / "m.onnx")
