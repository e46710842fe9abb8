"""ONNX graphs of 8 bits for tests, as onnxruntime quantises ours, and what they give in float64."""

import logging

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from onnxruntime import quantization
from onnxruntime.quantization import QuantFormat, QuantType

import vggfast
from tests.support.onnx_graphs import Edited, images
from vggfast.weights.formats import read

DEFAULTS = {
    "per_channel": True, "quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8,
    "weight_type": QuantType.QInt8,
}  # fmt: skip


class QdqGraph(Edited):
    """A written graph, quantised.

    Args:
        path, arguments: as of :class:`Edited`.
        before: a change of the graph before it is quantised.
        options: of onnxruntime's quantize_static, over DEFAULTS.
    """

    def __init__(self, path, model=None, before=None, options=None, **arguments):
        super().__init__(path, model, **arguments)
        if before:
            before(self)
        self.save()
        name, source = self.graph.input[0].name, path.with_name(f"float-{path.name}")
        path.rename(source)
        samples = iter([{name: images((2, self.network.arguments["in_channels"], 64, 64), seed)} for seed in range(3)])

        class Reader(quantization.CalibrationDataReader):
            def get_next(self):
                return next(samples, None)

        logging.disable(logging.WARNING)
        try:
            quantization.quantize_static(str(source), str(path), Reader(), **{**DEFAULTS, **(options or {})})
        finally:
            logging.disable(logging.NOTSET)
        self._open(path.read_bytes())

    def _open(self, content):
        self.file = onnx.load_from_string(content)
        self.graph = self.file.graph
        self.nodes = self.graph.node

    @classmethod
    def of(cls, path, content):
        """Of another's file, to be changed and saved under this path."""
        graph = cls.__new__(cls)
        graph.path = path
        graph._open(content)
        return graph

    def reading(self, name):
        """The index of the node that reads a tensor."""
        return next(i for i, node in enumerate(self.nodes) if name in node.input)

    def giving(self, name):
        """The index of the node that gives a tensor."""
        return next(i for i, node in enumerate(self.nodes) if name in node.output)

    def set_array(self, name, value):
        """Another value of a constant."""
        tensor = next(each for each in self.graph.initializer if each.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))


def read_quantised(path, **options):
    """The network of a file, which does not say its preprocessing."""
    return read(path, preprocessing=vggfast.Preprocessing.torchvision(), **options)


@torch.no_grad()
def exactly(graph, x):
    """What a quantised graph gives for an array, in float64: sums of such numbers are exact but for biases."""
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    values = {name: torch.from_numpy(value.copy()) for name, value in values.items()}
    values = {name: value.double() if value.is_floating_point() else value for name, value in values.items()}
    values[graph.input[0].name] = torch.from_numpy(x).double()
    for node in graph.node:
        settings = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        inputs = [values[name] for name in node.input]
        values[node.output[0]] = _OPERATORS[node.op_type](settings, *inputs)
    return values[graph.output[0].name].numpy()


def _spread(settings, x, each):
    return each.double().reshape([-1 if i == settings.get("axis", 1) % x.dim() else 1 for i in range(x.dim())])


def _quantize(settings, x, scale, zero_point):
    limits = torch.iinfo(zero_point.dtype)
    whole = (x.double() / _spread(settings, x, scale)).round() + _spread(settings, x, zero_point)
    return whole.clamp(limits.min, limits.max)


_OPERATORS = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": lambda settings, q, scale, zero_point: (
        (q.double() - _spread(settings, q, zero_point)) * _spread(settings, q, scale)
    ),
    "Conv": lambda settings, x, weight, bias: F.conv2d(x, weight, bias, padding=settings["pads"][0]),
    "Gemm": lambda settings, x, weight, bias: F.linear(x, weight if settings.get("transB") else weight.T, bias),
    "MaxPool": lambda settings, x: F.max_pool2d(x, 2),
    "Transpose": lambda settings, x: x.permute(settings["perm"]),
    "Identity": lambda settings, x: x,
    "Dropout": lambda settings, x: x,
    "Relu": lambda settings, x: x.relu(),
    "Flatten": lambda settings, x: x.flatten(1),
}  # fmt: skip
