"""ONNX graphs for tests: our own as the writer makes them, edits of these, and what onnxruntime says that they give."""

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper

from tests.support.foreign import network
from vggfast.weights.formats import onnx_writer

onnxruntime.set_default_logger_severity(4)


class Edited:
    """A written graph that is changed. Nodes are found by the operator and the number among its kind."""

    def __init__(self, path, model=None, **arguments):
        self.network = model or network(arguments.pop("config", "A"), **{"width": 0.05, **arguments})
        onnx_writer.write(self.network, path, {"preprocessing": self.network.preprocessing.as_dict()})
        self.path, self.file = path, onnx.load(str(path))
        self.graph = self.file.graph
        self.nodes = self.graph.node

    def find(self, op, number=0):
        """The index of a node; a negative number counts from the end."""
        return [i for i, node in enumerate(self.nodes) if node.op_type == op][number]

    def constant(self, value, name=None):
        name = name or f"constant{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def array(self, name):
        return numpy_helper.to_array(next(each for each in self.graph.initializer if each.name == name))

    def insert(self, at, op, *constants, domain="", **settings):
        """A node before the one at an index, which then reads it; at the end, where the index is that of no node."""
        name = f"new{len(self.nodes)}"
        more = [each if isinstance(each, str) else self.constant(each) for each in constants]
        if at < len(self.nodes):
            node = helper.make_node(op, [self.nodes[at].input[0], *more], [name], name, domain=domain, **settings)
            self.nodes[at].input[0] = name
            self.nodes.insert(at, node)
        else:
            last, output = self.nodes[-1], self.nodes[-1].output[0]
            last.output[0] = name
            self.nodes.append(helper.make_node(op, [name, *more], [output], name, domain=domain, **settings))
            self.graph.output[0].type.tensor_type.ClearField("shape")
        return name

    def remove(self, at):
        """What read the node's output reads its input instead."""
        node = self.nodes.pop(at)
        for each in self.nodes:
            each.input[:] = [node.input[0] if name == node.output[0] else name for name in each.input]
        for each in self.graph.output:
            each.name = node.input[0] if each.name == node.output[0] else each.name

    def swap(self, at):
        """A node and the one behind it, each with its own settings and tensors."""
        first, second = self.nodes[at], self.nodes[at + 1]
        first.input[0], second.input[0] = first.output[0], first.input[0]
        first.output[0], second.output[0] = second.output[0], first.output[0]
        first.input[0] = second.output[0]
        self.nodes.insert(at, self.nodes.pop(at + 1))

    def set(self, at, **settings):
        """Attributes of a node; None takes one away."""
        node = self.nodes[at]
        kept = [each for each in node.attribute if each.name not in settings]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.extend(
            helper.make_attribute(name, value) for name, value in settings.items() if value is not None
        )

    def declare(self, *sizes):
        """The input's sizes; letters for those that are open."""
        for each, size in zip(self.graph.input[0].type.tensor_type.shape.dim, sizes, strict=True):
            each.Clear()
            if isinstance(size, str):
                each.dim_param = size
            else:
                each.dim_value = size
        self.graph.output[0].type.tensor_type.ClearField("shape")

    def drop_unused(self):
        """The tensors that no node reads any more."""
        read = {name for node in self.nodes for name in node.input}
        kept = [each for each in self.graph.initializer if each.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def save(self):
        onnx.save(self.file, str(self.path))
        return self.path


def by_onnxruntime(path, x):
    """What a file gives for an array."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def images(sizes, seed=0):
    return np.random.default_rng(seed).normal(size=sizes).astype(np.float32)


def both(found, path, x):
    """(what onnxruntime says that a file gives for images, what the network that was read gives in the same terms)."""
    says = " ".join(found.notes)
    turned = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if "takes images of axes N, H, W, C" in says else x
    expected = by_onnxruntime(path, turned)
    with torch.no_grad():
        got = found.model(torch.from_numpy(x))
    got = got.softmax(1) if "softmax" in says else got
    return expected, (got.permute(0, 2, 3, 1) if "features have axes N, H, W, C" in says else got).numpy()


def off(expected, got):
    """Relative to the largest value."""
    if got.shape != expected.shape:
        return float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(got[~finite], expected[~finite], equal_nan=True):
        return float("inf")
    return float(np.abs(got - expected)[finite].max(initial=0) / np.abs(expected[finite]).max(initial=1e-30))


# ---- changes of an Edited -------------------------------------------------------------------------------------------


def edited(tmp_path, change, arguments):
    """The path of a changed graph; the arguments are the network's."""
    graph = Edited(tmp_path / "m.onnx", **arguments)
    change(graph)
    graph.drop_unused()
    return graph.save()


def through(op, *constants, change=lambda value: value, **settings):
    """The weight of the first FC layer, behind a node that makes it what it was."""

    def wrap(graph):
        node = graph.nodes[graph.find("Gemm")]
        inner = graph.constant(np.ascontiguousarray(change(graph.array(node.input[1]))))
        more = [graph.constant(each) for each in constants]
        graph.nodes.insert(0, helper.make_node(op, [inner, *more], ["weight"], "wrap", **settings))
        node.input[1] = "weight"

    return wrap


def reshape_to(*target):
    """In the place of Flatten."""

    def change(graph):
        at = graph.find("Flatten")
        graph.nodes[at].op_type = "Reshape"
        graph.nodes[at].input.append(graph.constant(np.array(target)))
        del graph.nodes[at].attribute[:]

    return change


def average(side, declared=None):
    """An average pool of side x side cells before the head, and images that it divides, or others."""

    def change(graph):
        graph.insert(graph.find("Flatten"), "AveragePool", kernel_shape=[side] * 2, strides=[side] * 2)
        graph.declare("N", 3, *(declared or (64 * side, 64 * side)))

    return change


def epsilon(value, var=None):
    """Of a batch norm, with that variance throughout."""

    def change(graph):
        at = graph.find("BatchNormalization", 2)
        graph.set(at, epsilon=value)
        if var is not None:
            name = graph.nodes[at].input[4]
            tensor = next(each for each in graph.graph.initializer if each.name == name)
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(graph.array(name), var), name))

    return change
