"""Keras' configs of models, as Keras 2 and 3 write them, and files of them, made without Keras."""

import io
import json
import re
import zipfile

import numpy as np

_POLICY = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}, "registered_name": None}
_WITH_WEIGHTS = {
    "use_bias": True, "kernel_initializer": {"class_name": "GlorotUniform", "config": {"seed": None}},
    "kernel_regularizer": None, "kernel_constraint": None, "activity_regularizer": None,
}  # fmt: skip
_POOL = {"pool_size": [2, 2], "padding": "valid", "strides": [2, 2], "data_format": "channels_last"}


def layer(kind, name, **config):
    """A layer's config in a Sequential of Keras 3."""
    return {
        "module": "keras.layers", "class_name": kind, "registered_name": None,
        "config": {"name": name, "trainable": True, "dtype": _POLICY, **config},
    }  # fmt: skip


def conv(name, kernel=3, **config):
    return layer("Conv2D", name, **{
        "filters": 8, "kernel_size": [kernel] * 2, "strides": [1, 1], "padding": "same", "data_format": "channels_last",
        "dilation_rate": [1, 1], "groups": 1, "activation": "relu", **_WITH_WEIGHTS, **config,
    })  # fmt: skip


def dense(name, **config):
    return layer("Dense", name, **{
        "units": 8, "activation": "relu", **_WITH_WEIGHTS, "quantization_config": None, **config
    })  # fmt: skip


def batch_norm(name, **config):
    return layer("BatchNormalization", name, **{
        "axis": -1, "momentum": 0.99, "epsilon": 1e-3, "center": True, "scale": True, "synchronized": False, **config
    })  # fmt: skip


def pool(name, kind="MaxPooling2D", **config):
    return layer(kind, name, **{**_POOL, **config})


def flatten(name="flatten"):
    return layer("Flatten", name, data_format="channels_last")


def layers_of(tensors):
    """Those of keras.applications' networks, for tensors by its names."""
    found = []
    convs = [name.partition("/")[0] for name in tensors if re.fullmatch(r"block\d_conv\d/kernel", name)]
    for i, name in enumerate(convs):
        found.append(conv(name, kernel=tensors[f"{name}/kernel"].shape[0]))
        if convs[i + 1 : i + 2] == [] or convs[i + 1][5] != name[5]:
            found.append(pool(f"block{name[5]}_pool"))
    fcs = [name for name in ("fc1", "fc2", "predictions") if f"{name}/kernel" in tensors]
    if fcs:
        found += [flatten(), *map(dense, fcs)]
        found[-1]["config"]["activation"] = "linear"
    return found


def input_shape(tensors):
    """Of the images whose map the first FC layer reads: 64x64 where there is none."""
    channels = [value.shape for name, value in tensors.items() if re.fullmatch(r"block\d_conv\d/kernel", name)]
    inputs = tensors["fc1/kernel"].shape[0] if "fc1/kernel" in tensors else 0
    if not channels:
        return [None, inputs]
    extent = 32 * round((inputs / channels[-1][-1]) ** 0.5) or 64
    return [None, extent, extent, channels[0][2]]


def sequential(layers, shape=(None, 64, 64, 3), name="sequential"):
    """A model of layers, which may be models themselves."""
    first = layer("InputLayer", f"{name}_input", batch_shape=list(shape))
    return {**layer("Sequential", name, layers=[first, *layers]), "module": "keras"}


def functional(layers, shape=(None, 64, 64, 3), name="functional", version=3):
    """The same as a graph, by the names of what each reads."""
    first = layer(
        "InputLayer", f"{name}_input", **{"batch_shape" if version == 3 else "batch_input_shape": list(shape)}
    )
    found, last = [{**first, "name": f"{name}_input", "inbound_nodes": []}], f"{name}_input"
    for each in layers:
        tensor = {"class_name": "__keras_tensor__", "config": {"dtype": "float32", "keras_history": [last, 0, 0]}}
        node = {"args": [tensor], "kwargs": {}} if version == 3 else [[last, 0, 0, {}]]
        last = each["config"]["name"]
        found.append({**each, "name": last, "inbound_nodes": [node]})
    ends = [[f"{name}_input", 0, 0], [last, 0, 0]]
    inputs, outputs = ends if version == 3 else ([ends[0]], [ends[1]])
    config = {"layers": found, "input_layers": inputs, "output_layers": outputs}
    return {**layer("Functional", name, **config), "module": "keras.src.models.functional"}


def _group(kind):
    return re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", kind).lower()


def _is_model(layer):
    return "layers" in layer["config"]


def _write_groups(root, model, variables, named):
    """Keras 3's groups of variables; `named`: with the layers' names, as later versions have them."""
    counts = {}
    for each in model["config"]["layers"]:
        kind, name = _group(each["class_name"]), each["config"]["name"]
        at = f"layers/{kind}_{counts[kind]}" if counts.get(kind) else f"layers/{kind}"
        counts[kind] = counts.get(kind, 0) + 1
        held = root.create_group(at).create_group("vars")
        if named:
            held.attrs["name"] = name
        for i, value in enumerate(variables.get(name, [])):
            held[str(i)] = value
        if _is_model(each):
            _write_groups(root[at], each, variables, named)


def by_layer(tensors):
    """{layer: its arrays}."""
    found = {}
    for name, value in tensors.items():
        found.setdefault(name.rpartition("/")[0], []).append(value)
    return found


def write_keras(path, model, variables, named=True):
    """A .keras file; `variables` by layer, in Keras' order."""
    import h5py

    weights = io.BytesIO()
    with h5py.File(weights, "w") as file:
        _write_groups(file, model, variables, named)
        known = re.findall(r'"name": "([^"]+)"', json.dumps(model))
        for name in variables.keys() - set(known):
            file[f"layers/{name}/vars/0"] = variables[name][0]
        file["optimizer/vars/0"] = np.array(7)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("config.json", json.dumps(model))
        archive.writestr("model.weights.h5", weights.getvalue())


def write_h5(path, model, variables, kinds=("kernel", "bias", "moving_mean", "moving_variance")):
    """A whole model as .h5, in Keras 2's form: what is within a model is in its group."""
    import h5py

    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": model["class_name"], "config": model["config"]})
        root = file.create_group("model_weights")
        layers = list(model["config"]["layers"])
        known = re.findall(r'"name": "([^"]+)"', json.dumps(model))
        layers += [layer("Dense", name) for name in variables if name not in known]
        root.attrs["layer_names"] = [each["config"]["name"].encode() for each in layers]
        for each in layers:
            inner = each["config"].get("layers", [each])
            names = []
            group = root.create_group(each["config"]["name"])
            for name in (one["config"]["name"] for one in inner):
                for kind, value in zip(kinds, variables.get(name, []), strict=False):
                    names.append(f"{name}/{kind}:0")
                    group[names[-1]] = value
            group.attrs["weight_names"] = np.array([name.encode() for name in names] or [], "S64")


def write(path, tensors):
    """The model of tensors by keras.applications' names, by the suffix of the path."""
    model = sequential(layers_of(tensors), input_shape(tensors))
    (write_keras if path.suffix == ".keras" else write_h5)(path, model, by_layer(tensors))
