"""Caffe's networks (.caffemodel), by the protobuf library with the few fields of Caffe's schema that are needed.

Layers conv1_1 ... conv5_3, fc6, fc7, fc8, as `layer` or, in files of before 2015, `layers`. Weights lie as ours. The
authors' own files are of this kind: they take BGR, 0 to 255, less a mean that the file does not hold.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vggfast.preprocessing import Preprocessing
from vggfast.weights.formats._parts import Raw

_HEAD = {"fc1": "fc6", "fc2": "fc7", "fc3": "fc8"}
# By message: (name, number, type, repeated) of each field. The numbers of a blob are declared as bytes, which packed
# numbers look like, so that numpy reads them at once.
_SCHEMA = {
    "BlobShape": [("dim", 1, "int64", True)],
    "Blob": [
        ("num", 1, "int32", False), ("channels", 2, "int32", False), ("height", 3, "int32", False),
        ("width", 4, "int32", False), ("data", 5, "bytes", False), ("shape", 7, "BlobShape", False),
        ("double_data", 8, "bytes", False),
    ],
    "Layer": [("name", 1, "string", False), ("type", 2, "string", False), ("blobs", 7, "Blob", True)],
    "OldLayer": [("name", 4, "string", False), ("type", 5, "int32", False), ("blobs", 6, "Blob", True)],
    "Net": [("name", 1, "string", False), ("layers", 2, "OldLayer", True), ("layer", 100, "Layer", True)],
}  # fmt: skip
_OLD_LRN = 15


@cache
def _net() -> Any:
    """The class of Caffe's NetParameter."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="vggfast/caffe.proto", package="vggfast.caffe", syntax="proto2")
    for message, fields in _SCHEMA.items():
        described = file.message_type.add(name=message)
        for name, number, kind, repeated in fields:
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            field = described.field.add(name=name, number=number, label=label)
            if kind in _SCHEMA:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".vggfast.caffe.{kind}"
            else:
                field.type = getattr(kinds, f"TYPE_{kind.upper()}")
            if kind == "int64":
                field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("vggfast.caffe.Net"))


def read(path: Path) -> Raw:
    """A trained network's file."""
    net = _net().FromString(path.read_bytes())
    layers = [*net.layers, *net.layer]
    if not layers:
        raise ValueError("it has no layers")
    tensors: dict[str, np.ndarray] = {}
    for layer in layers:
        if layer.type in ("LRN", _OLD_LRN):
            raise ValueError(f"layer {layer.name} is a local response normalisation, which this reader does not take")
        tensors |= {f"{layer.name}[{i}]": _array(blob) for i, blob in enumerate(layer.blobs)}
    return Raw(tensors, _name, _layout, Preprocessing.caffe(), "the convention of Caffe's VGGs")


def _array(blob: Any) -> np.ndarray:
    data = np.frombuffer(blob.data, "<f4") if blob.data else np.frombuffer(blob.double_data, "<f8")
    old = (blob.num, blob.channels, blob.height, blob.width)
    return data.reshape(list(blob.shape.dim) if blob.HasField("shape") else old).copy()


def _name(key: str, place: str, kind: str) -> str | None:
    return None if place.startswith("bn") else f"{_HEAD.get(place, place)}[{('weight', 'bias').index(kind)}]"


def _layout(place: str, kind: str, tensor: Tensor) -> Tensor:
    """Blobs of before 2015 have four extents throughout: a bias (1, 1, 1, out), an FC layer (1, 1, out, in)."""
    if kind != "weight":
        return tensor.flatten()
    if place.startswith("fc") and tensor.dim() == 4:
        return tensor[0, 0] if tensor.shape[:2] == (1, 1) else tensor.flatten(1)
    return tensor
