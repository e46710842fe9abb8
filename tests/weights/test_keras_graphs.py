"""Keras' models by their config: what their layers compute, or the layer that no VGG has there."""

import copy
import json

import numpy as np
import pytest
import torch

import vggfast
from tests.support.comparisons import relative_error
from tests.support.foreign import keras_tensors, network
from tests.support.keras_models import (
    batch_norm,
    by_layer,
    conv,
    dense,
    flatten,
    functional,
    layer,
    layers_of,
    pool,
    sequential,
    write_h5,
    write_keras,
)  # fmt: skip
from vggfast.weights.formats import read

pytest.importorskip("h5py")
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture
def write(tmp_path, model):
    """Writes layers in a Sequential, or a model itself, with the network's weights and others."""

    def run(layers, suffix=".keras", shape=(None, 64, 64, 3), **more):
        given = layers if isinstance(layers, dict) else sequential(layers, shape)
        path = tmp_path / f"m{suffix}"
        variables = by_layer(keras_tensors(model)) | more
        (write_keras if suffix == ".keras" else write_h5)(path, given, variables)
        return path

    return run


@pytest.fixture
def layers(model):
    return layers_of(keras_tensors(model))


def changed(layers, name, **settings):
    """The layers, with other settings of one."""
    found = copy.deepcopy(layers)
    next(each for each in found if each["config"]["name"] == name)["config"].update(settings)
    return found


def put(layers, name, *others, instead=False):
    """The layers, with others before one or instead of it."""
    at = next(i for i, each in enumerate(layers) if each["config"]["name"] == name)
    return [*layers[:at], *others, *layers[at + instead :]]


def scores(path, **settings):
    found = read(path, **settings).model
    return found(found.preprocessing.tensor(PIXELS)[None])


def expected(model, preprocessing=None):
    preprocessing = preprocessing or vggfast.Preprocessing.caffe()
    return model(preprocessing.tensor(PIXELS)[None])


# ---- as the network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("version", [2, 3])
def test_functional_models(write, layers, model, suffix, version):
    assert torch.equal(scores(write(functional(layers, version=version), suffix)), expected(model))


def test_names_do_not_matter(tmp_path, model, layers):
    """A network of one's own, whose layers Keras has named; without the names in the groups, too."""
    renamed, variables = copy.deepcopy(layers), {}
    for i, each in enumerate(renamed):
        variables[f"layer_{i}"] = by_layer(keras_tensors(model)).get(each["config"]["name"], [])
        each["config"]["name"] = f"layer_{i}"
    for named in (True, False):
        write_keras(tmp_path / "m.keras", functional(renamed), variables, named)
        assert torch.equal(scores(tmp_path / "m.keras"), expected(model))


SAME = {
    "a ReLU of its own": lambda each: put(
        changed(each, "block1_conv1", activation="linear"), "block1_pool",
        layer("ReLU", "r", max_value=None, negative_slope=0.0, threshold=0.0),
    ),
    "an activation of its own": lambda each: put(
        changed(each, "block1_conv1", activation="linear"), "block1_pool", layer("Activation", "r", activation="relu")
    ),
    "zeros before a valid convolution": lambda each: put(
        changed(each, "block2_conv1", padding="valid"), "block2_conv1",
        layer("ZeroPadding2D", "z", padding=[[1, 1], [1, 1]], data_format="channels_last"),
    ),
    "dropout": lambda each: put(each, "fc2", layer("Dropout", "d", rate=0.5, seed=None, noise_shape=None)),
    "augmentation": lambda each: [layer("RandomFlip", "f", mode="horizontal", seed=None), *each],
    "pools of strides that are left out": lambda each: changed(each, "block1_pool", strides=None),
    "pools that round up": lambda each: changed(each, "block1_pool", padding="same"),
    "an ended graph": lambda each: [*each, layer("Activation", "a", activation="linear")],
}  # fmt: skip


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_other_layers_of_the_same_values(write, layers, model, change):
    assert torch.equal(scores(write(change(layers))), expected(model))


def test_a_softmax_is_left_out_and_said(write, layers, model):
    found = read(write(changed(layers, "predictions", activation="softmax")))
    assert found.notes == [
        "layer predictions, a softmax behind the scores, is left out: the network gives what it reads"
    ]
    assert torch.equal(found.model(found.model.preprocessing.tensor(PIXELS)[None]), expected(model))


RESCALED = {
    "scale": ([layer("Rescaling", "r", scale=1 / 255, offset=0.0)], vggfast.Preprocessing((0,) * 3, (255,) * 3)),
    "offset": ([layer("Rescaling", "r", scale=1 / 127.5, offset=-1)], vggfast.Preprocessing(*[(127.5,) * 3] * 2)),
    "channels": (
        [layer("Rescaling", "r", scale=[1.0, 0.5, 0.25], offset=[-1, -2, -3])],
        vggfast.Preprocessing((1, 4, 12), (1, 2, 4)),
    ),
    "both": (
        [layer("Rescaling", "r", scale=0.5, offset=0.0),
         layer("Normalization", "n", axis=[-1], invert=False, mean=[1.0, 2, 3], variance=[4.0, 9, 16])],
        vggfast.Preprocessing((2, 4, 6), (4, 6, 8)),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("before", "preprocessing"), RESCALED.values(), ids=RESCALED)
def test_what_prepares_images_becomes_preprocessing(write, layers, model, before, preprocessing):
    found = read(write([*before, *layers]))
    assert relative_error(scores(write([*before, *layers])), expected(model, preprocessing)) < 1e-5
    assert found.origin.startswith("the file (layer r")


def test_a_normalization_that_was_adapted(write, layers, model):
    before = layer("Normalization", "n", axis=[-1], invert=False, mean=None, variance=None)
    path = write([before, *layers], n=[np.array([1.0, 2, 3]), np.array([4.0, 9, 16]), np.array(7)])
    assert relative_error(scores(path), expected(model, vggfast.Preprocessing((1, 2, 3), (2, 3, 4)))) < 1e-5


@pytest.mark.parametrize("settings", [{}, {"scale": False}, {"center": False, "epsilon": 0.1}])
@pytest.mark.parametrize("use_bias", [True, False])
def test_batch_norm_of_keras_epsilon(tmp_path, settings, use_bias):
    theirs = network("A", batch_norm=True)
    found, variables = [], {}
    plain = network("A")
    for each in layers_of(keras_tensors(plain)):
        name = each["config"]["name"]
        if "conv" not in name:
            found.append(each)
            continue
        found += [conv(name, activation="linear", use_bias=use_bias), batch_norm(f"{name}_bn", **settings),
                  layer("Activation", f"{name}_relu", activation="relu")]  # fmt: skip
    state = iter(theirs.features)
    for each in found:
        name = each["config"]["name"]
        if each["class_name"] == "Conv2D":
            module = next(m for m in state if isinstance(m, torch.nn.Conv2d))
            module.bias.data.mul_(use_bias)
            variables[name] = [module.weight.detach().permute(2, 3, 1, 0).numpy(), module.bias.detach().numpy()][
                : 1 + use_bias
            ]
        if each["class_name"] == "BatchNormalization":
            module = next(m for m in state if isinstance(m, torch.nn.BatchNorm2d))
            module.eps = each["config"]["epsilon"]
            if not each["config"]["scale"]:
                module.weight.data.fill_(1)
            if not each["config"]["center"]:
                module.bias.data.zero_()
            kinds = [("weight", "scale"), ("bias", "center"), ("running_mean", ""), ("running_var", "")]
            variables[name] = [getattr(module, kind).detach().numpy() for kind, flag in kinds
                               if each["config"].get(flag, True)]  # fmt: skip
    head = by_layer(keras_tensors(plain))
    theirs.classifier, theirs.avgpool = plain.classifier, plain.avgpool
    variables |= {name: head[name] for name in ("fc1", "fc2", "predictions")}
    write_keras(tmp_path / "m.keras", sequential(found), variables)
    assert relative_error(scores(tmp_path / "m.keras"), expected(theirs)) < 1e-5


# ---- models within models --------------------------------------------------------------------------------------------


def _nested(layers, within=functional):
    """(the convolutions as a model of their own, the rest)."""
    at = next(i for i, each in enumerate(layers) if each["class_name"] == "Flatten")
    return within(layers[:at], name="vgg"), layers[at:]


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("within", [functional, sequential])
@pytest.mark.parametrize("without", [functional, sequential])
def test_a_vgg_within_a_model(write, layers, model, suffix, within, without):
    base, rest = _nested(layers, within)
    assert torch.equal(scores(write(without([base, *rest]), suffix)), expected(model))
    other = [layer("Rescaling", "r", scale=0.5, offset=0.0), base, flatten(), dense("new"), dense("last")]
    weights = {"new": [np.zeros((12, 8), np.float32), np.zeros(8, np.float32)]}
    path = write(without(other), suffix, **weights)
    maps = model.features(vggfast.Preprocessing((0,) * 3, (2,) * 3).tensor(PIXELS)[None])
    assert relative_error(scores(path, features_only=True), maps) < 1e-5
    with pytest.raises(ValueError, match=r"m\..*: layer new must"):
        read(path)


@pytest.mark.parametrize("names", [["vgg"], ["one", "two"]])
def test_weights_alone_within_a_model(tmp_path, model, names):
    import h5py

    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        for i, name in enumerate(names):
            held = file.create_group(f"layers/functional_{i}")
            held.create_group("vars").attrs["name"] = name
            for j, (each, values) in enumerate(by_layer(keras_tensors(model)).items()):
                group = held.create_group(f"layers/conv2d_{j}/vars")
                group.attrs["name"] = each
                for k, value in enumerate(values):
                    group[str(k)] = value
    if len(names) > 1:
        with pytest.raises(ValueError, match="it holds layers of one name: one/block1_conv1 and two/block1_conv1"):
            read(tmp_path / "m.weights.h5")
        return
    found = read(tmp_path / "m.weights.h5")
    assert torch.equal(found.model.state_dict()["features.0.weight"], model.features[0].weight)
    assert "the file holds weights alone; that its layers are keras.applications'" in found.notes[0]


# ---- what no VGG has -------------------------------------------------------------------------------------------------

STRANGE = {
    "elu": (lambda each: changed(each, "block1_conv1", activation="elu"), "block1_conv1 is an elu activation"),
    "no ReLU": (lambda each: changed(each, "block1_conv1", activation="linear"), "block1_pool is a max-pool, where"),
    "own function": (
        lambda each: changed(each, "fc1", activation={"class_name": "function", "config": "mine"}),
        "fc1 is a mine",
    ),
    "average pools": (
        lambda each: put(each, "block2_pool", pool("p", "AveragePooling2D"), instead=True),
        "p is an AveragePooling2D",
    ),
    "pool of 3": (
        lambda each: changed(each, "block1_pool", pool_size=[3, 3]),
        "block1_pool, a max-pool, must have extents",
    ),
    "pool of stride 1": (lambda each: changed(each, "block1_pool", strides=[1, 1]), r"must have strides \[2, 2\]"),
    "sixth pool": (lambda each: put(each, "flatten", pool("p")), "p is a max-pool behind the fifth"),
    "strides": (
        lambda each: changed(each, "block1_conv1", strides=[2, 2]),
        r"must have strides \[1, 1\], got \[2, 2\]",
    ),
    "dilation": (lambda each: changed(each, "block3_conv1", dilation_rate=[2, 2]), "must have dilation"),
    "valid": (lambda each: changed(each, "block3_conv1", padding="valid"), r"must have pads \[1, 1, 1, 1\], got"),
    "causal": (lambda each: changed(each, "block3_conv1", padding="causal"), "must have padding 'same' or 'valid'"),
    "groups": (lambda each: changed(each, "block3_conv1", groups=2), "must have groups 1, got 2"),
    "channels first": (
        lambda each: changed(each, "block1_conv1", data_format="channels_first"),
        "data_format channels_last",
    ),
    "lambda": (lambda each: [layer("Lambda", "mine"), *each], "layer mine is a Lambda, where"),
    "resizing": (lambda each: [layer("Resizing", "r", height=64, width=64), *each], "layer r is a Resizing, where"),
    "own class": (
        lambda each: put(each, "block1_conv1", {**each[0], "module": "mine"}, instead=True),
        "is a Conv2D of another package",
    ),
    "padding": (
        lambda each: put(each, "block1_pool", layer("ZeroPadding2D", "z", padding=[[1, 1], [1, 1]])),
        "z is a padding",
    ),
    "ReLU6": (
        lambda each: put(each, "block1_pool", layer("ReLU", "r", max_value=6.0)),
        "r must have max_value None, got 6.0",
    ),
    "late rescaling": (
        lambda each: put(each, "block1_pool", layer("Rescaling", "r", scale=2.0)),
        "r is a Rescaling, where",
    ),
    "negative": (
        lambda each: [layer("Rescaling", "r", scale=-1.0, offset=0.0), *each],
        "r must have scales greater than 0",
    ),
    "no flatten": (lambda each: put(each, "flatten", instead=True), "fc1 reads a map that is not flattened"),
    "global maximum": (
        lambda each: put(each, "flatten", layer("GlobalMaxPooling2D", "g"), instead=True),
        "g is a GlobalMaxPooling2D",
    ),
    "global average": (
        lambda each: put(each, "flatten", layer("GlobalAveragePooling2D", "g"), instead=True),
        "fc1 must read 1x1 places",
    ),
    "average of a row": (
        lambda each: [*each, layer("GlobalAveragePooling2D", "g", keepdims=False)],
        "g averages what is flat",
    ),
    "sigmoid": (lambda each: changed(each, "predictions", activation="sigmoid"), "predictions is a sigmoid activation"),
    "int8": (
        lambda each: changed(each, "fc1", dtype="int8_from_float32"),
        "fc1 has the dtype policy int8_from_float32",
    ),
    "unknown setting": (lambda each: changed(each, "fc1", gain=2.0), "fc1 has the setting gain=2.0"),
}


@pytest.mark.parametrize(("change", "message"), STRANGE.values(), ids=STRANGE)
def test_what_no_vgg_has_is_named(write, layers, change, message):
    with pytest.raises(ValueError, match=rf"m\.keras: .*{message}"):
        read(write(change(layers)))


def test_inputs_that_make_a_difference(write, layers):
    with pytest.raises(ValueError, match="fc1 must read a square map, got 1x4"):
        read(write(layers, shape=(None, 32, 128, 3)))
    with pytest.raises(ValueError, match=r"block1_pool rounds odd extents up, .* multiples of 32, got 70x70"):
        read(write(changed(layers, "block1_pool", padding="same"), shape=(None, 70, 70, 3)))


def test_graphs_that_branch(write, layers):
    def refused(model):
        with pytest.raises(ValueError, match=r"m\.keras") as error:
            read(write(model))
        return str(error.value)

    whole = functional(layers)
    two = copy.deepcopy(whole)
    two["config"]["output_layers"] = [["block2_pool", 0, 0], ["predictions", 0, 0]]
    assert "layer block2_pool is read by block3_conv1, an output" in refused(two)
    again = copy.deepcopy(whole)
    again["config"]["layers"][3]["inbound_nodes"] *= 2
    assert "block1_pool is read by block2_conv1, block2_conv1" in refused(again)
    late = copy.deepcopy(whole)
    late["config"]["layers"][-2]["inbound_nodes"][0]["kwargs"] = {"training": True}
    assert "fc2 is a Dense with training=True" in refused(late)
    two["config"]["input_layers"] = [["a", 0, 0], ["b", 0, 0]]
    assert "it must have one input, got 2: a, b" in refused(two)
    assert "its config has two layers of one name" in refused(sequential([*layers, layers[0]]))
    assert "it holds a Mine, whose config says no layers" in refused({**whole, "class_name": "Mine"})
    del whole["config"]["output_layers"]
    assert "its config is not of the form that Keras gives it" in refused(whole)


def test_float_types_are_said(write, layers):
    notes = read(write(changed(layers, "fc1", dtype="mixed_float16"))).notes
    assert notes == ["layer fc1 computes in mixed_float16; the network here, in float32"]


def test_variables_that_no_layer_has(write, layers):
    with pytest.raises(ValueError, match="left over: more/bias, more/kernel"):
        read(write(layers, ".h5", more=[np.zeros((2, 2)), np.zeros(2)]))


def test_keras_own_files(tmp_path, monkeypatch):
    """Case 06 and 07 by Keras itself, where it is there."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    from keras import layers as kinds

    from tests.weights.test_convert_real import small_keras

    base = small_keras(keras, "A", top=False)
    tops = [kinds.Flatten(), kinds.Dense(16, "relu"), kinds.Dense(16, "relu"), kinds.Dense(5)]
    theirs = keras.Sequential([keras.Input((64, 64, 3)), kinds.Rescaling(1 / 255), base, *tops])
    wanted = torch.from_numpy(theirs.predict(PIXELS[None].astype(np.float32), verbose=0))
    for name in ("m.keras", "m.h5"):
        theirs.save(tmp_path / name)
        assert json.dumps(read(tmp_path / name).model.arguments["config"]) == '"A"'
        assert relative_error(scores(tmp_path / name), wanted) < 1e-5
        assert read(tmp_path / name, features_only=True).part == "features only (no FC layers)"
