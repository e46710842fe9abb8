"""Caffe's networks, as lists of layers, written as a prototxt or, field by field, as a .caffemodel."""

import struct

import numpy as np

# (number in a new layer, in an old one) of each parameter message, and the fields of each: number and kind.
_MESSAGES = {
    "convolution_param": (106, 10), "pooling_param": (121, 19), "relu_param": (123, 30),
    "inner_product_param": (117, 17), "lrn_param": (118, 18), "softmax_param": (125, 39), "transform_param": (100, 36),
    "batch_norm_param": (139, None), "scale_param": (142, None), "dropout_param": (108, 12),
    "image_data_param": (115, 15), "window_data_param": (129, 20),
}  # fmt: skip
_FIELDS = {
    "convolution_param": {"num_output": 1, "bias_term": 2, "pad": 3, "kernel_size": 4, "group": 5, "stride": 6,
                          "pad_h": 9, "pad_w": 10, "dilation": 18, "hole": 77},
    "pooling_param": {"pool": 1, "kernel_size": 2, "stride": 3, "pad": 4, "global_pooling": 12, "round_mode": 13},
    "relu_param": {"negative_slope": -1},
    "inner_product_param": {"num_output": 1, "bias_term": 2, "axis": 5, "transpose": 6},
    "lrn_param": {"local_size": 1, "alpha": -2, "beta": -3, "norm_region": 4, "k": -5},
    "softmax_param": {"axis": 2},
    "transform_param": {"scale": -1, "crop_size": 3, "mean_value": -5},
    "batch_norm_param": {"use_global_stats": 1, "eps": -3},
    "scale_param": {"axis": 1, "bias_term": 4},
    "dropout_param": {"dropout_ratio": -1, "scale_train": 2, "sample_weights_test": 3},
    "image_data_param": {"scale": -2},
    "window_data_param": {"scale": -2},
}  # fmt: skip
_NUMBERS = {"MAX": 0, "AVE": 1, "STOCHASTIC": 2, "CEIL": 0, "FLOOR": 1, "ACROSS_CHANNELS": 0, "WITHIN_CHANNEL": 1}
_OLD_TYPES = {
    "Convolution": 4, "Data": 5, "Dropout": 6, "InnerProduct": 14, "LRN": 15, "Pooling": 17, "ReLU": 18, "Sigmoid": 19,
    "Softmax": 20, "Power": 26, "SoftmaxWithLoss": 21, "Split": 22, "TanH": 23, "Eltwise": 25, "Accuracy": 1,
    "ImageData": 12, "WindowData": 24,
}  # fmt: skip


def layer(kind, name, bottom, top=None, **params):
    """A layer; `params` are messages, {field: value}, by their names."""
    bottoms = [bottom] if isinstance(bottom, str) else list(bottom)
    tops = [name if top is None else top] if not isinstance(top, list) else top
    return {"type": kind, "name": name, "bottom": bottoms, "top": tops, **params}


def layers_of(tensors):
    """The authors' network of these tensors: in-place ReLUs and dropout, a softmax at the end."""
    names = list(dict.fromkeys(name.split("[")[0] for name in tensors))
    found, last = [], "data"
    for name, after in zip(names, [*names[1:], ""], strict=True):
        shape = tensors[f"{name}[0]"].shape if f"{name}[0]" in tensors else (1, 1)
        if name[:2] == "fc":
            found.append(layer("InnerProduct", name, last, inner_product_param={"num_output": shape[-2]}))
        else:
            param = {"num_output": shape[0], "pad": shape[-1] // 2, "kernel_size": list(shape[2:])}
            found.append(layer("Convolution", name, last, convolution_param=param))
        last = name
        if name != "fc8":
            found.append(layer("ReLU", f"relu{name}", last, last))
        if name[:2] == "fc" and name != "fc8":
            found.append(layer("Dropout", f"drop{name}", last, last))
        if name[:4] == "conv" and name[:5] != after[:5]:
            param = {"pool": "MAX", "kernel_size": 2, "stride": 2}
            found.append(layer("Pooling", f"pool{name[4]}", last, pooling_param=param))
            last = f"pool{name[4]}"
    if "fc8" in names:
        found.append(layer("Softmax", "prob", last))
    return found


def write(path, tensors, old=False, layers=None):
    """A .caffemodel: `layer` and shapes, or old `layers` and four extents."""
    content = _field(1, b"VGG")
    for each in layers_of(tensors) if layers is None else layers:
        blobs = [value for key, value in tensors.items() if key.startswith(f"{each['name']}[")]
        content += _field(2 if old else 100, _layer(each, blobs, old))
    path.write_bytes(content)


def write_prototxt(path, layers, head='input: "data"\n'):
    path.write_text(head + "".join(f"layer {{\n{_text(each)}}}\n" for each in layers))


def _text(fields):
    lines = []
    for name, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, dict):
                lines.append(f"  {name} {{\n{_text(value)}  }}\n")
            elif isinstance(value, str) and value not in _NUMBERS and name != "phase":
                lines.append(f'  {name}: "{value}"\n')
            else:
                lines.append(f"  {name}: {str(value).lower() if isinstance(value, bool) else value}\n")
    return "".join(lines)


def _varint(value):
    text = b""
    while value > 127:
        text, value = text + bytes([value & 127 | 128]), value >> 7
    return text + bytes([value])


def _field(number, value):
    """A protobuf field: a number, a float where `number` is below 0, or bytes."""
    if number < 0:
        return _varint(-number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _message(name, fields):
    parts = []
    for field, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            parts.append(_field(_FIELDS[name][field], _NUMBERS.get(value, value)))
    return b"".join(parts)


def _layer(each, blobs, old):
    numbers = {"bottom": 2, "top": 3, "name": 4} if old else {"bottom": 3, "top": 4, "name": 1}
    parts = [_field(5, _OLD_TYPES[each["type"]]) if old else _field(2, each["type"].encode())]
    parts.append(_field(numbers["name"], each["name"].encode()))
    parts += [_field(numbers[key], value.encode()) for key in ("bottom", "top") for value in each[key]]
    parts += [_field(_MESSAGES[key][old], _message(key, value)) for key, value in each.items() if key in _MESSAGES]
    for value in blobs:
        data = _field(5, np.asarray(value, "<f4").tobytes())
        if old:
            extents = (1,) * (4 - value.ndim) + value.shape
            data = b"".join(_field(i, extent) for i, extent in enumerate(extents, 1)) + data
        else:
            data += _field(7, _field(1, b"".join(map(_varint, value.shape))))
        parts.append(_field(6 if old else 7, data))
    return b"".join(parts)
