"""ONNX files of 8 bits that no engine computes as they say: refused by the name of the node, with what is allowed."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnxruntime.quantization import QuantFormat, QuantType  # noqa: E402

from tests.support.onnx_quantised import QdqGraph, read_quantised  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
make_node = onnx.helper.make_node
ROUNDS, WEIGHT = "features.4.output_QuantizeLinear_Output", "features.13.weight_quantized"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = QdqGraph(tmp_path_factory.mktemp("qdq") / "m.onnx", width=0.05).path
    return path.read_bytes()


@pytest.fixture
def graph(file, tmp_path):
    """One of uint8 activations and int8 weights, to be changed."""
    return QdqGraph.of(tmp_path / "m.onnx", file)


def array(name, change):
    """Of a constant."""
    return lambda graph: graph.set_array(name, change(graph.array(name)))


def dtype(name, kind):
    return array(name, lambda value: value.astype(kind))


def setting(name, **settings):
    """Of the node that gives a tensor."""
    return lambda graph: graph.set(graph.giving(name), **settings)


def removed(name):
    """The node that gives a tensor."""
    return lambda graph: graph.remove(graph.giving(name))


def renamed(name, op, domain=""):
    def change(graph):
        node = graph.nodes[graph.giving(name)]
        node.op_type, node.domain = op, domain

    return change


def another_scale(name):
    """Of the node that gives a tensor, and of the one behind it."""

    def change(graph):
        at = graph.giving(name)
        for node in graph.nodes[at : at + 2]:
            node.input[1] = graph.constant(np.float32(0.03))

    return change


def scale_as_input(graph):
    tensor = next(each for each in graph.graph.initializer if each.name == "features.4.output_scale")
    graph.graph.initializer.remove(tensor)
    graph.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, onnx.TensorProto.FLOAT, []))


def on_weight(op, *constants, **settings):
    """Between a weight's whole numbers, scaled, and its layer."""

    def change(graph):
        name = "features.13.weight_DequantizeLinear_Output"
        at = graph.reading(name)
        graph.nodes[at].input[1] = "changed"
        more = [graph.constant(each) for each in constants]
        graph.nodes.insert(at, make_node(op, [name, *more], ["changed"], "changer", **settings))

    return change


ALLOWED = "a layer reads uint8 with zero point 0, or int8 with -128"
CONSTANT = "must have QuantizeLinear and DequantizeLinear .QDQ. with constant scales"
EIGHT = "reads 8 bits, and its weight must be of 8 bits too: less a zero point, -128 to 127 of a scale for each output"
REFUSED = {
    "dynamic": (renamed(ROUNDS, "DynamicQuantizeLinear"), f"a DynamicQuantizeLinear, is of a form .*{CONSTANT}"),
    "another domain": (renamed(ROUNDS, "QuantizeLinear", "com.microsoft"), "a QuantizeLinear of com.microsoft"),
    "a zero point": (array("features.4.output_zero_point", lambda z: z + 3),
                     f"rounds to uint8 with zero point 3 what node features.5, a max-pool, reads: {ALLOWED}"),
    "int8 around 0": (array("features.4.output_zero_point", lambda z: z.astype(np.int8)),
                      f"rounds to int8 with zero point 0 what node features.5, a max-pool, reads: {ALLOWED}"),
    "int16": (dtype("features.4.output_zero_point", np.int16), "must round to uint8 or int8, got int16"),
    "int32": (dtype("features.4.output_zero_point", np.int32), "must round to uint8 or int8, got int32"),
    "other weights": (lambda g: (dtype(WEIGHT, np.uint8)(g),
                                 dtype("features.13.weight_zero_point", np.uint8)(g)), f"node features.13 {EIGHT}"),
    "scales of inputs": (setting("features.13.weight_DequantizeLinear_Output", axis=1), f"node features.13 {EIGHT}"),
    "no such axis": (setting("features.13.weight_DequantizeLinear_Output", axis=4), "must have one of the 4 axes, got"),
    "other outputs": (setting("features.3.weight_DequantizeLinear_Output", axis=1),
                      "must have 3 scales along axis 1, got 6"),
    "weights of int16": (lambda g: (dtype(WEIGHT, np.int16)(g), dtype("features.13.weight_zero_point", np.int16)(g)),
                         "must read int8, uint8 or, as a bias, int32, got int16"),
    "zero points of another type": (lambda g: (dtype(WEIGHT, np.uint8)(g), array(
                                        "features.13.weight_zero_point", lambda z: z + np.int8(1))(g)),
                                    "must have zero points of uint8, got int8"),
    "two roundings": (another_scale("features.5.output_QuantizeLinear_Output"),
                      "node features.5.output_QuantizeLinear rounds to uint8 with zero point 0, scale 0.03, what "
                      "node features.4.output_QuantizeLinear rounded to uint8 with zero point 0, scale 0.0.*: between"),
    "only half": (removed("features.5.output_DequantizeLinear_Output"),
                  "node features.5.output_QuantizeLinear, a QuantizeLinear, must be followed by a DequantizeLinear, "
                  "got node features.6"),
    "only the other half": (removed("features.5.output_QuantizeLinear_Output"),
                            "a DequantizeLinear, must read what a QuantizeLinear gives"),
    "halves that differ": (lambda g: g.nodes[g.giving("features.5.output_DequantizeLinear_Output")].input.__setitem__(
                               1, g.constant(np.float32(0.5))),
                           "must have the scale and zero point of node features.5.output_QuantizeLinear"),
    "whole numbers as output": (removed("scores"), "must be followed by a DequantizeLinear, got the output"),
    "blocks": (setting(ROUNDS, block_size=32), "must have block_size 0, got 32"),
    "floats of another type": (setting("features.5.output_DequantizeLinear_Output", output_dtype=10),
                               "a DequantizeLinear, must give float32, got float16"),
    "an unknown setting": (setting(ROUNDS, other=1), "has the attribute other '1', which is not known"),
    "scale as input": (scale_as_input, "must have one input|must have a constant scale and zero point"),
    **{f"a scale of {value}": (array("features.4.output_scale", lambda _, value=value: np.float32(value)),
                               "the scale of node .*, must be positive and finite, at least 1.18e-38, got")
       for value in (0, -1, np.inf, np.nan, 1e-40)},
    "a scale of float16": (dtype("features.4.output_scale", np.float16), "must have scales of float32, one or a row"),
    "scales for each channel": (lambda g: (array("features.4.output_scale", lambda s: s.repeat(6))(g),
                                           array("features.4.output_zero_point", lambda z: z.repeat(6))(g)),
                                "must have one scale for all that a layer reads, got 6"),
    "zero points of another number": (array("features.13.weight_zero_point", lambda z: z[:3]),
                                      "must have as many zero points as scales, 26, got 3"),
    "a ReLU on images": (lambda g: g.insert(g.find("Conv"), "Relu"),
                         "what node new.*, a ReLU, reads: images are rounded before the first convolution alone"),
    "a reshaped weight": (on_weight("Reshape", np.array([26, 26, 3, 3])), "a Reshape of constants, is not computed"),
    "a weight turned twice": (lambda g: (on_weight("Transpose", perm=[1, 0, 2, 3])(g),
                                         g.nodes.insert(g.reading("changed"), make_node(
                                             "Transpose", ["changed"], ["twice"], perm=[1, 0, 2, 3])),
                                         g.nodes[g.find("Conv", 5)].input.__setitem__(1, "twice")),
                              "a Transpose of constants, is not computed"),
    "a weight turned to too many axes": (on_weight("Transpose", perm=[0, 1]), "must be transposed by 4 axes, got"),
    "a weight rounded twice": (on_weight("QuantizeLinear", np.float32(1)), "must read a tensor of the file"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(graph, name):
    change, said = REFUSED[name]
    change(graph)
    graph.drop_unused()
    with pytest.raises(ValueError, match=said) as caught:
        read_quantised(graph.save())
    assert str(caught.value).startswith(str(graph.path))
    assert "\n" not in str(caught.value)


OPTIONS = {
    "QOperator": ({}, {"quant_format": QuantFormat.QOperator, "activation_type": QuantType.QInt8},
                  f"node features.0_quant, a QLinearConv, is of a form that is not read: .*{CONSTANT}"),
    "symmetric": ({}, {"activation_type": QuantType.QInt8, "extra_options": {"ActivationSymmetric": True}},
                  f"rounds to int8 with zero point 0 what node features.1, a ReLU, reads: {ALLOWED}"),
    "int16": ({}, {"activation_type": QuantType.QInt16}, "must round to uint8 or int8, got int16"),
    "a convolution of floats": ({}, {"nodes_to_exclude": ["features.6"]}, f"node features.6 {EIGHT}"),
    "a first FC layer of floats": ({}, {"nodes_to_exclude": ["classifier.0"]}, f"node classifier.0 {EIGHT}"),
    "batch norm": ({"batch_norm": True}, {}, "a batch norm, reads: |a batch norm behind a layer of 8 bits, into which"),
    "LRN": ({"config": "A-LRN"}, {}, "a local response normalisation, reads: such a layer is computed in float32"),
    "an average": ({"pool_size": 1}, {}, "an average pool, reads: such a layer is computed in float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_what_onnxruntime_makes_otherwise(tmp_path, name):
    arguments, options, said = OPTIONS[name]
    graph = QdqGraph(tmp_path / "m.onnx", options=options, **arguments)
    with pytest.raises(ValueError, match=said) as caught:
        read_quantised(graph.path)
    assert str(caught.value).startswith(str(graph.path))
