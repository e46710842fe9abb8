"""Files of other frameworks for the tests of the converters, made without what reads them: small random networks."""

import math

import numpy as np
import torch

import vggfast
from tests.support import caffe_nets, keras_models
from vggfast.training.build import named_layers

MEAN = (120.0, 110.0, 100.0)


def network(config="A", **changes):
    """A small network in evaluation mode whose every tensor is random, biases and statistics too."""
    arguments = {"num_classes": 5, "width": 0.1, "hidden": 16, "pool_size": 2, "init": "he", **changes}
    model = vggfast.VGG(config, **arguments).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.dim() == 1:
            tensor.add_(0.1 * torch.randn(tensor.shape))
    model.preprocessing = vggfast.Preprocessing.torchvision()
    return model


def layers(model):
    """(place in the paper, weight, bias) of each layer, as arrays."""
    model = model.to_linear_head() if model.head == "conv" else model
    return [(place, layer.weight.detach().numpy(), layer.bias.detach().numpy())
            for place, layer in named_layers(model).items()]  # fmt: skip


def _caffe_names(place):
    return {"fc1": "fc6", "fc2": "fc7", "fc3": "fc8"}.get(place, place)


def _channels_last(model, fc_as_conv):
    """(place, weight (H, W, in, out) or (in, out), bias): FC layers as convolutions, or fc1 over H, W, C."""
    pool_size = model.arguments["pool_size"]
    for place, weight, bias in layers(model):
        if place == "fc1":
            weight = weight.reshape(len(weight), -1, pool_size, pool_size)
            weight = weight.transpose(2, 3, 1, 0)
            yield place, weight if fc_as_conv else weight.reshape(-1, weight.shape[-1]), bias
        elif weight.ndim == 2:
            yield place, weight.T[None, None] if fc_as_conv else weight.T, bias
        else:
            yield place, weight.transpose(2, 3, 1, 0), bias


# ---- by format: the tensors of a file, and the file ------------------------------------------------------------------


def keras_tensors(model):
    found = {}
    for place, weight, bias in _channels_last(model, False):
        name = {"fc1": "fc1", "fc2": "fc2", "fc3": "predictions"}.get(place)
        name = name or f"block{place[4]}_conv{place[6]}"
        found |= {f"{name}/kernel": weight, f"{name}/bias": bias}
    return found


def _by_layer(tensors):
    found = {}
    for name, value in tensors.items():
        found.setdefault(name.rpartition("/")[0], []).append((name, value))
    return found


def write_keras_h5(path, tensors):
    """The older form, as in the published files: names without a model's, suffix ":0", attributes of bytes."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in [*_by_layer(tensors), "flatten"]]
        file.create_group("flatten").attrs["weight_names"] = np.array([], "S1")
        for layer, values in _by_layer(tensors).items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [f"{name}:0".encode() for name, _ in values]
            for name, value in values:
                group[f"{name}:0"] = value


def slim_tensors(model, scope="vgg_16"):
    found = {}
    for place, weight, bias in _channels_last(model, True):
        name = _caffe_names(place)
        name = f"{scope}/{name}" if name[:2] == "fc" else f"{scope}/{name[:5]}/{name}"
        found |= {f"{name}/weights": weight, f"{name}/biases": bias}
    return found


def write_slim(path, tensors, version=2):
    import tensorflow as tf

    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        variables = [tf1.Variable(value, name=name) for name, value in tensors.items()]
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver(variables, write_version=version).save(
            session, str(path), write_meta_graph=False, write_state=False
        )


def matconvnet_tensors(model):
    return {
        f"{_caffe_names(place)} {kind}": value
        for place, weight, bias in _channels_last(model, True)
        for kind, value in (("filters", weight), ("biases", bias))
    }


def write_matconvnet(path, tensors, old=False, mean=None, change=None):
    from scipy.io import savemat

    found = []
    names = list(dict.fromkeys(name.split()[0] for name in tensors))
    for name, after in zip(names, [*names[1:], ""], strict=True):
        values = {kind: tensors[f"{name} {kind}"] for kind in ("filters", "biases") if f"{name} {kind}" in tensors}
        weights = np.empty((1, len(values)), object)
        weights[0] = [*values.values(), None][: len(values)]
        pad = (tensors[f"{name} filters"].shape[0] // 2) * (name[:2] != "fc")
        found.append(
            {"name": name, "type": "conv", "pad": pad, "stride": 1, **(values if old else {"weights": weights})}
        )
        if name != "fc8":
            found.append({"name": f"relu{name}", "type": "relu"})
        if name[:4] == "conv" and name[:5] != after[:5]:
            found.append(
                {"name": f"pool{name[4]}", "type": "pool", "method": "max", "pool": [2, 2], "stride": 2, "pad": 0}
            )
    found = change(found) if change else found
    classes = {"description": np.array([f"class {i}" for i in range(5)], object), "name": np.arange(5)}
    mean = np.array(MEAN, np.float32)[None, None] if mean is None else mean
    metadata = {"normalization": {"averageImage": mean}, "classes": classes}
    savemat(
        path,
        {
            "layers": np.array(found + [{"name": "prob", "type": "softmax"}] * ("fc8" in names), object),
            **(metadata if old else {"meta": metadata}),
        },
    )


def caffe_tensors(model):
    return {
        f"{_caffe_names(place)}[{i}]": value
        for place, *values in layers(model)
        for i, value in enumerate(values)
    }  # fmt: skip


def torch_tensors(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def write_torch(path, tensors):
    torch.save({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, path)


def write_safetensors(path, tensors):
    from safetensors.numpy import save_file

    save_file(tensors, path)


def timm_tensors(model):
    names = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
    pool_size, found = model.arguments["pool_size"], {}
    for name, value in torch_tensors(model).items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and layer in ("classifier.0", "classifier.3"):
            extent = pool_size if layer == "classifier.0" else 1
            value = value.reshape(len(value), -1, extent, extent)
        found[f"{names.get(layer, layer)}.{kind}"] = value
    return found


def write_onnx(path, tensors, fc="Gemm", epsilon=1e-5, share=False):
    """A chain under torch's names: FC layers as Gemm of (out, in), or MatMul and Add after a transpose, as tf2onnx."""
    import onnx

    make, nodes, last = onnx.helper.make_node, [], "x"

    def add(op, *inputs, **settings):
        nonlocal last
        nodes.append(make(op, [last, *inputs], [f"y{len(nodes)}"], **settings))
        last = nodes[-1].output[0]

    convs = [name for name in tensors if name.startswith("features") and tensors[name].ndim == 4]
    counts = {8: (1, 1, 2, 2, 2), 10: (2,) * 5, 13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}[len(convs)]
    for count in counts:
        for _ in range(count):
            layer = convs.pop(0).removesuffix(".weight")
            pad = tensors[f"{layer}.weight"].shape[-1] // 2
            add("Conv", f"{layer}.weight", f"{layer}.bias", pads=[pad] * 4)
            norm = f"features.{int(layer.split('.')[1]) + 1}"
            if f"{norm}.weight" in tensors:
                kinds = ("weight", "bias", "running_mean", "running_var")
                add("BatchNormalization", *(f"{norm}.{kind}" for kind in kinds), epsilon=epsilon)
            add("Relu")
        add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    tensors = {name: value for name, value in tensors.items() if value.dtype == np.float32}
    side = 64
    if (weight := tensors.get("classifier.0.weight")) is not None:
        side = 32 * math.isqrt(weight.shape[1] // len(tensors[f"{layer}.weight"]))
        if fc == "MatMul":
            add("Transpose", perm=[0, 2, 3, 1])
        add("Flatten")
    for i in (0, 3, 6):
        if f"classifier.{i}.weight" not in tensors:
            continue
        if fc == "Gemm":
            add("Gemm", f"classifier.{i}.weight", f"classifier.{i}.bias", transB=1)
        else:
            channels = len(tensors[f"{layer}.bias"])  # of the last convolution
            tensors[f"classifier.{i}.weight"] = _as_tf(tensors[f"classifier.{i}.weight"], i, channels)
            add("MatMul", f"classifier.{i}.weight")
            add("Add", f"classifier.{i}.bias")
        if i < 6:
            add("Relu")
    if share:  # as torch's exporter does with equal tensors
        nodes.insert(0, make("Identity", ["features.8.bias"], ["features.6.bias"]))
        del tensors["features.6.bias"]
    value = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, "net", [value("x", kind, ["N", tensors["features.0.weight"].shape[1], side, side])],
        [value(last, kind, None)],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(each), name) for name, each in tensors.items()],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), str(path))


def _as_tf(weight, index, channels):
    """(out, in) as (in, out), the first layer's inputs in H, W, C order."""
    if index == 0:
        extent = round((weight.shape[1] // channels) ** 0.5)
        weight = weight.reshape(len(weight), channels, extent, extent).transpose(0, 2, 3, 1).reshape(len(weight), -1)
    return weight.T


# By kind of file: its name, the tensors of a network, what writes them, and the package that this needs.
KINDS = {
    "torchvision .pth": ("m.pth", torch_tensors, write_torch, "torch"),
    "torchvision .safetensors": ("m.safetensors", torch_tensors, write_safetensors, "safetensors"),
    "timm": ("m.pth", timm_tensors, write_torch, "torch"),
    "keras .h5": ("m.h5", keras_tensors, write_keras_h5, "h5py"),
    "keras .h5 of a model": ("m.h5", keras_tensors, keras_models.write, "h5py"),
    "keras .keras": ("m.keras", keras_tensors, keras_models.write, "h5py"),
    "tf-slim V1": ("m.ckpt", slim_tensors, lambda path, tensors: write_slim(path, tensors, 1), "tensorflow"),
    "tf-slim V2": ("m.ckpt", slim_tensors, write_slim, "tensorflow"),
    "caffe": ("m.caffemodel", caffe_tensors, caffe_nets.write, "google.protobuf"),
    "caffe, old": ("m.caffemodel", caffe_tensors, lambda *of: caffe_nets.write(*of, old=True), "google.protobuf"),
    "matconvnet": ("m.mat", matconvnet_tensors, write_matconvnet, "scipy"),
    "matconvnet, old": ("m.mat", matconvnet_tensors, lambda *of: write_matconvnet(*of, old=True), "scipy"),
    "onnx": ("m.onnx", torch_tensors, write_onnx, "onnx"),
}


def truncate(path, share=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
