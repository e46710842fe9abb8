"""Caffe's networks as plain dicts, {field: its values}: from a prototxt, and from the binary form of a .caffemodel.

A field that this schema does not know is kept too, by its number, so that nothing that changes a layer goes unseen.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np

Fields = dict[str, list[Any]]

# By message: number and type of each field, with "*" where it is repeated. The numbers of a blob are declared as bytes,
# which packed numbers look like, so that numpy reads them at once.
_PARAMETERS = {
    "Convolution": "num_output 1 uint32, bias_term 2 bool, pad 3 uint32*, kernel_size 4 uint32*, group 5 uint32, "
    "stride 6 uint32*, weight_filler 7 bytes, bias_filler 8 bytes, pad_h 9 uint32, pad_w 10 uint32, "
    "kernel_h 11 uint32, kernel_w 12 uint32, stride_h 13 uint32, stride_w 14 uint32, engine 15 int32, axis 16 int32, "
    "force_nd_im2col 17 bool, dilation 18 uint32*",
    "Pooling": "pool 1 int32, kernel_size 2 uint32, stride 3 uint32, pad 4 uint32, kernel_h 5 uint32, "
    "kernel_w 6 uint32, stride_h 7 uint32, stride_w 8 uint32, pad_h 9 uint32, pad_w 10 uint32, engine 11 int32, "
    "global_pooling 12 bool, round_mode 13 int32",
    "Relu": "negative_slope 1 float, engine 2 int32",
    "InnerProduct": "num_output 1 uint32, bias_term 2 bool, weight_filler 3 bytes, bias_filler 4 bytes, axis 5 int32, "
    "transpose 6 bool",
    "Lrn": "local_size 1 uint32, alpha 2 float, beta 3 float, norm_region 4 int32, k 5 float, engine 6 int32",
    "BatchNorm": "use_global_stats 1 bool, moving_average_fraction 2 float, eps 3 float",
    "Scale": "axis 1 int32, num_axes 2 int32, filler 3 bytes, bias_term 4 bool, bias_filler 5 bytes",
    "Softmax": "engine 1 int32, axis 2 int32",
    "Flatten": "axis 1 int32, end_axis 2 int32",
    "Transformation": "scale 1 float, mirror 2 bool, crop_size 3 uint32, mean_file 4 string, mean_value 5 float*, "
    "force_color 6 bool, force_gray 7 bool",
    "Data": "scale 2 float, mean_file 3 string",
    "MemoryData": "batch_size 1 uint32, channels 2 uint32, height 3 uint32, width 4 uint32",
    "Dropout": "dropout_ratio 1 float, scale_train 2 bool",
    "Input": "shape 1 BlobShape*",
}
# The same in both versions of a layer, under other numbers.
_OF_LAYER = {
    "convolution_param": ("Convolution", 106, 10), "pooling_param": ("Pooling", 121, 19),
    "relu_param": ("Relu", 123, 30), "inner_product_param": ("InnerProduct", 117, 17), "lrn_param": ("Lrn", 118, 18),
    "softmax_param": ("Softmax", 125, 39), "transform_param": ("Transformation", 100, 36),
    "data_param": ("Data", 107, 11), "memory_data_param": ("MemoryData", 119, 22),
    "image_data_param": ("Data", 115, 15), "window_data_param": ("Data", 129, 20),
    "dropout_param": ("Dropout", 108, 12),
}  # fmt: skip
_SCHEMA = {
    "BlobShape": "dim 1 int64*",
    "Blob": "num 1 int32, channels 2 int32, height 3 int32, width 4 int32, data 5 bytes, shape 7 BlobShape, "
    "double_data 8 bytes",
    "Rule": "phase 1 int32",
    **_PARAMETERS,
    "Layer": "name 1 string, type 2 string, bottom 3 string*, top 4 string*, blobs 7 Blob*, include 8 Rule*, "
    "exclude 9 Rule*, flatten_param 135 Flatten, batch_norm_param 139 BatchNorm, scale_param 142 Scale, "
    "input_param 143 Input, " + ", ".join(f"{name} {new} {kind}" for name, (kind, new, _) in _OF_LAYER.items()),
    "OldLayer": "bottom 2 string*, top 3 string*, name 4 string, type 5 int32, blobs 6 Blob*, include 32 Rule*, "
    "exclude 33 Rule*, " + ", ".join(f"{name} {old} {kind}" for name, (kind, _, old) in _OF_LAYER.items()),
    "Net": "name 1 string, layers 2 OldLayer*, input 3 string*, input_dim 4 int32*, input_shape 8 BlobShape*, "
    "layer 100 Layer*",
}
# What a prototxt has by name, a .caffemodel by number.
_CHOICES = {
    "pool": ("MAX", "AVE", "STOCHASTIC"), "round_mode": ("CEIL", "FLOOR"), "phase": ("TRAIN", "TEST"),
    "norm_region": ("ACROSS_CHANNELS", "WITHIN_CHANNEL"), "engine": ("DEFAULT", "CAFFE", "CUDNN"),
    "type": (
        "NONE", "ACCURACY", "BNLL", "CONCAT", "CONVOLUTION", "DATA", "DROPOUT", "EUCLIDEAN_LOSS", "FLATTEN",
        "HDF5_DATA", "HDF5_OUTPUT", "IM2COL", "IMAGE_DATA", "INFOGAIN_LOSS", "INNER_PRODUCT", "LRN",
        "MULTINOMIAL_LOGISTIC_LOSS",
        "POOLING", "RELU", "SIGMOID", "SOFTMAX", "SOFTMAX_LOSS", "SPLIT", "TANH", "WINDOW_DATA", "ELTWISE", "POWER",
        "SIGMOID_CROSS_ENTROPY_LOSS", "HINGE_LOSS", "MEMORY_DATA", "ARGMAX", "THRESHOLD", "DUMMY_DATA", "SLICE", "MVN",
        "ABSVAL", "SILENCE", "CONTRASTIVE_LOSS", "EXP", "DECONVOLUTION",
    ),
}  # fmt: skip
_TOKEN = re.compile(r"""#[^\n]*|"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?|[{}<>:\[\],;]|[^\s{}<>:\[\],;#"']+""")


def from_binary(content: bytes) -> Fields:
    """A .caffemodel's network, its blobs as arrays."""
    return _plain(_net().FromString(content))


def from_text(text: str) -> Fields:
    """A prototxt's.

    Raises:
        ValueError: its brackets do not fit, or a field has no name.
    """
    stack: list[Fields] = [{}]
    name, in_list = "", False
    for token in _TOKEN.findall(text):
        if token in ("{", "<"):
            inner: Fields = {}
            stack[-1].setdefault(name, []).append(inner)
            stack.append(inner)
            name = ""
        elif token in ("}", ">"):
            stack.pop()
            if not stack:
                raise ValueError("it has a closing bracket too many")
        elif token in ("[", "]"):
            in_list = token == "["
            name = name if in_list else ""
        elif not name and token not in (":", ",", ";") and token[0] != "#":
            name = token
        elif token not in (":", ",", ";") and token[0] != "#":
            stack[-1].setdefault(name, []).append(_value(name, token))
            name = name if in_list else ""
    if len(stack) != 1:
        raise ValueError("it lacks a closing bracket")
    return stack[0]


def _value(name: str, token: str) -> Any:
    if token[0] in "\"'":
        if len(token) == 1 or token[-1] != token[0]:
            raise ValueError(f"the text {token[:50]} has no end")
        return token[1:-1]
    if token in ("true", "True", "t", "false", "False", "f"):
        return token[0] in "tT"
    for kind in (int, float):
        try:
            value = kind(token)
        except ValueError:
            continue
        return _chosen(name, value)
    return token


def _chosen(name: str, value: Any) -> Any:
    """The choice of a field, by its number; a number that is none, and of other fields any, as it is."""
    return dict(enumerate(_CHOICES.get(name, ()))).get(value, value)


@cache
def _net() -> Any:
    """The class of Caffe's NetParameter."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="vggfast/caffe.proto", package="vggfast.caffe", syntax="proto2")
    for message, fields in _SCHEMA.items():
        described = file.message_type.add(name=message)
        for name, number, kind in (field.split() for field in fields.split(", ")):
            label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
            field = described.field.add(name=name, number=int(number), label=label)
            if (kind := kind.rstrip("*")) in _SCHEMA:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".vggfast.caffe.{kind}"
            else:
                field.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("vggfast.caffe.Net"))


def _plain(message: Any) -> Fields:
    from google.protobuf import unknown_fields

    found: Fields = {}
    for field, value in message.ListFields():
        once = isinstance(value, str | bytes | int | float) or hasattr(value, "ListFields")
        values = [value] if once else list(value)
        if field.name == "blobs":
            values = list(map(_array, values))
        elif field.message_type is not None:
            values = list(map(_plain, values))
        elif field.type != field.TYPE_STRING:
            values = [_chosen(field.name, each) for each in values]
        found[field.name] = values
    if message.DESCRIPTOR.name in _PARAMETERS:
        for field in unknown_fields.UnknownFieldSet(message):
            found.setdefault(f"field {field.field_number}", []).append(field.data)
    return found


def _array(blob: Any) -> np.ndarray:
    data = np.frombuffer(blob.data, "<f4") if blob.data else np.frombuffer(blob.double_data, "<f8")
    old = (blob.num, blob.channels, blob.height, blob.width)
    return data.reshape(list(blob.shape.dim) if blob.HasField("shape") else old).copy()
