"""LiteRT (TensorFlow Lite), whose XNNPACK delegate is on by default, in float32.

Its converter needs TensorFlow, or JAX and half of a language-model stack; the file is a flatbuffer of few layers, and
is written here directly. Images are NHWC, as LiteRT's users have them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from peers.face import Runner
from peers.network import Layer, Spec, layers, made, weights


class _Writer:
    """Tensors, buffers and operators of one file, as they are added."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.buffers: list[Any] = [schema.BufferT()]  # the first one is empty by convention
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.codes: list[int] = []

    def tensor(self, shape: tuple[int, ...], array: np.ndarray | None = None) -> int:
        kind = self.schema.TensorType.INT32 if array is not None and array.dtype == np.int32 else 0
        tensor = self.schema.TensorT(shape=list(shape), type=kind, name=f"t{len(self.tensors)}")
        if array is not None:
            tensor.buffer = len(self.buffers)
            self.buffers.append(_aligned(self.schema.BufferT)(np.ascontiguousarray(array)))
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def operator(self, code: str, inputs: list[int], out: int, kind: str, **options: Any) -> None:
        number = getattr(self.schema.BuiltinOperator, code)
        if number not in self.codes:
            self.codes.append(number)
        values = getattr(self.schema, f"{kind}T")(**options)
        self.operators.append(
            self.schema.OperatorT(self.codes.index(number), inputs, [out], getattr(self.schema.BuiltinOptions, kind),
                                  values)
        )  # fmt: skip

    def write(self, path: Path, inlet: int, outlet: int) -> None:
        import flatbuffers

        graph = self.schema.SubGraphT(self.tensors, [inlet], [outlet], self.operators, "main")
        codes = [self.schema.OperatorCodeT(number, None, 1, number) for number in self.codes]
        model = self.schema.ModelT(3, codes, [graph], "vgg", self.buffers)
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        path.write_bytes(builder.Output())


def _aligned(base: type) -> type:
    """The schema's buffer with its data on 16 bytes, as the format demands and the generated code does not do."""

    class Aligned(base):  # type: ignore[misc,valid-type]
        def __init__(self, array: np.ndarray) -> None:
            super().__init__()
            self.bytes = array.reshape(-1).view(np.uint8)

        def Pack(self, builder: Any) -> Any:  # noqa: N802 (the generated code's name)
            count = self.bytes.size
            builder.StartVector(1, count, 16)
            builder.head = builder.head - count
            builder.Bytes[builder.head : builder.head + count] = self.bytes.data
            data = builder.EndVector()
            builder.StartObject(3)
            builder.PrependUOffsetTRelativeSlot(0, data, 0)
            return builder.EndObject()

    return Aligned


def _write(spec: Spec, cache: Path, path: Path) -> None:
    writer, arrays = _Writer(), weights(spec, cache)
    size, channels = spec.size, 3
    inlet = last = writer.tensor((spec.batch, size, size, 3))
    for layer in layers(spec):
        if layer.kind == "pool":
            size //= 2
            out = writer.tensor((spec.batch, size, size, channels))
            writer.operator("MAX_POOL_2D", [last], out, "Pool2DOptions", padding=1, strideW=2, strideH=2,
                            filterWidth=2, filterHeight=2)  # fmt: skip
        else:
            out = _add_weighted(writer, layer, last, spec, size, channels, next(arrays)[1], next(arrays)[1])
            channels = layer.outputs
        last = out
    writer.write(path, inlet, last)


def _add_weighted(writer: _Writer, layer: Layer, last: int, spec: Spec, size: int, channels: int,
                  weight: np.ndarray, bias: np.ndarray) -> int:  # fmt: skip
    """A convolution (weights OHWI) or an FC layer; the first one's columns are put in NHWC's order."""
    if layer.kind == "conv":
        out = writer.tensor((spec.batch, size, size, layer.outputs))
        weight = weight.transpose(0, 2, 3, 1)
        code, kind, options = "CONV_2D", "Conv2DOptions", {"padding": 0, "strideW": 1, "strideH": 1}
    else:
        if layer.name == "classifier.0":
            shape = (spec.batch, layer.inputs)
            flat = writer.tensor(shape)
            target = writer.tensor((2,), np.array((-1, layer.inputs), np.int32))
            writer.operator("RESHAPE", [last, target], flat, "ReshapeOptions", newShape=[-1, layer.inputs])
            last = flat
            grid = weight.reshape(layer.outputs, channels, spec.extent, spec.extent)
            weight = grid.transpose(0, 2, 3, 1).reshape(layer.outputs, -1)
        out = writer.tensor((spec.batch, layer.outputs))
        code, kind, options = "FULLY_CONNECTED", "FullyConnectedOptions", {}
    inputs = [last, writer.tensor(weight.shape, weight), writer.tensor(bias.shape, bias)]
    writer.operator(code, inputs, out, kind, fusedActivationFunction=int(layer.relu), **options)
    return out


def build(spec: Spec, cache: Path) -> Runner:
    from ai_edge_litert.interpreter import Interpreter

    # A file for each batch would be half a gigabyte each: one for a batch of 1 serves all, resized.
    single = Spec(**{**spec.as_dict(), "batch": 1})
    path = made(cache / f"{spec.part}-{spec.key}-{spec.size}.tflite", lambda path: _write(single, cache, path))
    net = Interpreter(model_path=str(path), num_threads=spec.threads)
    inlet, outlet = net.get_input_details()[0]["index"], net.get_output_details()[0]["index"]
    net.resize_tensor_input(inlet, [spec.batch, spec.size, spec.size, 3])
    net.allocate_tensors()

    def run(x: np.ndarray) -> np.ndarray:
        net.set_tensor(inlet, x)
        net.invoke()
        return net.get_tensor(outlet)

    def result(y: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(y.transpose(0, 3, 1, 2)) if y.ndim == 4 else y

    return Runner(lambda x: np.ascontiguousarray(x.transpose(0, 2, 3, 1)), run, result)
