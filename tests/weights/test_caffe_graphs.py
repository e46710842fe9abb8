"""Caffe's and MatConvNet's networks by their layers: what these compute, or the one that no VGG has there."""

import copy

import pytest
import torch

import vggfast
from tests.support.caffe_nets import layer, layers_of, write, write_prototxt
from tests.support.comparisons import relative_error
from tests.support.foreign import caffe_tensors, matconvnet_tensors, network, write_matconvnet
from vggfast.weights.formats import read

MODEL = network()
TENSORS = caffe_tensors(MODEL)
LAYERS = layers_of(TENSORS)
X = torch.randn(1, 3, 64, 64)
ROUNDS_UP = "its pools round odd extents up, ours down: the same for H and W that are multiples of 32"
NO_SOFTMAX = "layer prob, a softmax behind the scores, is left out: the network gives what it reads"


def changed(name, **params):
    """The authors' layers, with other settings of one: fields of the message `param`, or a part of the layer."""
    found = copy.deepcopy(LAYERS)
    each = next(each for each in found if each["name"] == name)
    for param, value in params.items():
        each[param] = {**each.get(param, {}), **value} if isinstance(value, dict) else value
    return found


def put(name, *others, instead=False, layers=LAYERS):
    """Others behind a layer, or instead of it, in the way of what it gives."""
    at = next(i for i, each in enumerate(layers) if each["name"] == name)
    return [*layers[: at + (not instead)], *others, *layers[at + 1 :]]


# ---- Caffe -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[".caffemodel", "old .caffemodel", ".prototxt"])
def read_layers(request, tmp_path):
    """Reads layers with the network's weights, as one of the three forms has them."""
    pytest.importorskip("google.protobuf")

    def run(layers, tensors=TENSORS, **settings):
        path = tmp_path / "m.caffemodel"
        if request.param == ".prototxt":
            write(path, tensors)
            write_prototxt(tmp_path / "m.prototxt", layers)
        else:
            write(path, tensors, old=request.param.startswith("old"), layers=layers)
        return read(path, **settings)

    return run


def assert_same(found):
    assert torch.equal(found.model(X), MODEL(X))


def test_the_authors_network(read_layers):
    found = read_layers(LAYERS)
    assert_same(found)
    assert [note for note in found.notes if "prototxt" not in note] == [ROUNDS_UP, NO_SOFTMAX]


SAME = {
    "names of one's own": [
        {**each, "top": [f"t{t}" for t in each["top"]], "bottom": [f"t{b}" for b in each["bottom"]]} for each in LAYERS
    ],
    "training": [
        *LAYERS[:-1],
        layer("SoftmaxWithLoss", "loss", ["fc8", "label"]),
        layer("Accuracy", "accuracy", ["fc8", "label"]),
    ],
    "split": [
        *LAYERS[:-1],
        layer("Split", "split", "fc8", ["fc8_0", "fc8_1"]),
        layer("SoftmaxWithLoss", "loss", ["fc8_0", "label"]),
        layer("Softmax", "prob", "fc8_1"),
    ],
    "no activations in place": put(
        "relufc7",
        layer("ReLU", "r", "fc7", "r7"),
        {**LAYERS[-2], "bottom": ["r7"]},
        LAYERS[-1],
        instead=True,
        layers=[each for each in LAYERS[:-2] if each["name"] != "dropfc7"],
    ),
    "both pads": changed("conv1_1", convolution_param={"pad": [1, 1]}),
    "dropout's share": changed("dropfc6", dropout_param={"dropout_ratio": 0.7, "scale_train": True}),
}


@pytest.mark.parametrize("layers", SAME.values(), ids=SAME)
def test_layers_of_the_same_values(read_layers, layers):
    assert_same(read_layers(layers))


STRANGE = {
    "stride": (changed("conv1_1", convolution_param={"stride": 2}), r"layer conv1_1, .* must have strides \[1, 1\]"),
    "pad": (changed("conv2_1", convolution_param={"pad": 0}), r"layer conv2_1, .* must have pads \[1, 1, 1, 1\]"),
    "one pad": (changed("conv2_1", convolution_param={"pad": [], "pad_h": 1}), r"got \[1, 1, 0, 0\]"),
    "dilation": (changed("conv2_1", convolution_param={"dilation": 2}), "layer conv2_1, .* must have dilation"),
    "group": (changed("conv2_1", convolution_param={"group": 2}), "layer conv2_1, .* must have groups 1, got 2"),
    "kernel": (changed("conv2_1", convolution_param={"kernel_size": 5}), "layer conv2_1 must have kernel_size"),
    "of a fork": (changed("conv2_1", convolution_param={"hole": 2}), "layer conv2_1 has the setting"),
    "average": (changed("pool2", pooling_param={"pool": "AVE"}), "layer pool2 is a pooling by AVE"),
    "pool of 3": (changed("pool2", pooling_param={"kernel_size": 3}), "layer pool2, a max-pool, must have extents"),
    "stride of 1": (changed("pool2", pooling_param={"stride": 1}), "layer pool2, a max-pool, must have strides"),
    "padded pool": (changed("pool2", pooling_param={"pad": 1}), "layer pool2, a max-pool, must have pads"),
    "global pool": (changed("pool5", pooling_param={"global_pooling": True}), "layer pool5 is a global pooling by MAX"),
    "leaky": (changed("reluconv1_1", relu_param={"negative_slope": 0.1}), "layer reluconv1_1 is a leaky ReLU"),
    "sigmoid": (changed("reluconv2_1", type="Sigmoid"), "layer reluconv2_1 is a sigmoid, where"),
    "no ReLU": (put("reluconv1_1", instead=True), "layer pool1 is a max-pool, where configuration A has a ReLU"),
    "no dropout's place": (put("relufc6", layer("TanH", "t", "fc6", "fc6")), "layer t is a tanh, which"),
    "sum": (
        put("pool1", layer("Eltwise", "sum", ["pool1", "pool1"], "pool1")),
        "read by sum, sum, where configuration A",
    ),
    "branch": (
        put("pool1", layer("Pooling", "aside", "pool1", pooling_param={"kernel_size": 2})),
        "layer pool1 is a tensor read by",
    ),
    "LRN": (put("reluconv1_1", layer("LRN", "norm1", "conv1_1", "conv1_1")), "layer norm1 must have .*'k': 2.0"),
    "transpose": (changed("fc6", inner_product_param={"transpose": True}), "layer fc6 must have transpose False"),
    "axis": (changed("fc6", inner_product_param={"axis": 2}), "layer fc6 must have axis 1, got 2"),
    "bias": (changed("fc6", inner_product_param={"bias_term": False}), r"left over: fc6\[1\]"),
    "source": (
        [layer("Power", "mine", [], ["data"]), *LAYERS],
        "one input that layers read, got layer mine, a Power",
    ),
    "dropout that scales": (changed("dropfc6", dropout_param={"scale_train": False}), "dropfc6 must have scale_train"),
    "dropout of a fork": (changed("dropfc6", dropout_param={"sample_weights_test": True}), "dropfc6 has the setting"),
    "sigmoid scores": (changed("prob", type="Sigmoid"), "layer prob is a sigmoid, which"),
}


@pytest.mark.parametrize(("layers", "message"), STRANGE.values(), ids=STRANGE)
def test_what_no_vgg_has_is_named(read_layers, layers, message):
    with pytest.raises(ValueError, match=rf"(?i)m\.caffemodel.*{message}"):
        read_layers(layers)


@pytest.mark.parametrize("kind", ["image", "window"])
def test_a_scale_of_the_source(read_layers, kind):
    source = layer(f"{kind.title()}Data", "source", [], ["data", "label"], **{f"{kind}_data_param": {"scale": 0.5}})
    found = read_layers([source, *LAYERS])
    assert found.model.preprocessing == vggfast.Preprocessing((0, 0, 0), (2, 2, 2), "BGR")
    assert found.origin == "the file (layer source)"


def test_weights_of_one_axis(tmp_path):
    pytest.importorskip("google.protobuf")
    write(tmp_path / "m.caffemodel", {**TENSORS, "fc6[0]": TENSORS["fc6[0]"].ravel()}, layers=LAYERS)
    with pytest.raises(ValueError, match=r"layer fc6 must have weights of 2 axes, got shape \(\d+,\)"):
        read(tmp_path / "m.caffemodel")


def test_a_lrn_of_the_paper(read_layers):
    model = network("A-LRN")
    tensors = caffe_tensors(model)
    param = {"local_size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}
    norm = layer("LRN", "norm1", "conv1_1", "conv1_1", lrn_param=param)
    found = read_layers(put("reluconv1_1", norm, layers=layers_of(tensors)), tensors)
    assert found.model.arguments["config"] == "A-LRN"
    assert torch.equal(found.model(X), model(X))


@pytest.mark.parametrize("form", [".caffemodel", ".prototxt"])
@pytest.mark.parametrize("scaled", [True, False])
def test_batch_norm_and_scale(tmp_path, form, scaled):
    pytest.importorskip("google.protobuf")
    model = network("A", batch_norm=True)
    tensors, layers = {}, []
    norms = [m for m in model.features if isinstance(m, torch.nn.BatchNorm2d)]
    convs = [m for m in model.features if isinstance(m, torch.nn.Conv2d)]
    for each in layers_of(TENSORS):
        layers.append(each)
        name = each["name"]
        if each["type"] == "Convolution":
            norm, conv = norms.pop(0), convs.pop(0)
            tensors |= {f"{name}[0]": conv.weight.detach().numpy(), f"{name}[1]": conv.bias.detach().numpy()}
            norm.eps = 1e-3
            layers.append(layer("BatchNorm", f"bn_{name}", name, name, batch_norm_param={"eps": 1e-3}))
            values = norm.running_mean * 4, norm.running_var * 4, torch.tensor([4.0])
            tensors |= {f"bn_{name}[{i}]": value.numpy() for i, value in enumerate(values)}
            if scaled:
                layers.append(layer("Scale", f"scale_{name}", name, name, scale_param={"bias_term": True}))
                weights = {"0": norm.weight, "1": norm.bias}
                tensors |= {f"scale_{name}[{i}]": value.detach().numpy() for i, value in weights.items()}
            else:
                norm.weight.data.fill_(1)
                norm.bias.data.zero_()
    model.classifier, model.avgpool = MODEL.classifier, MODEL.avgpool
    tensors |= {name: value for name, value in TENSORS.items() if name[:2] == "fc"}
    write(tmp_path / "m.caffemodel", tensors, layers=layers)
    if form == ".prototxt":
        write_prototxt(tmp_path / "deploy.prototxt", layers)
    assert relative_error(read(tmp_path / "m.caffemodel").model(X), model(X)) < 1e-5


def test_what_a_prototxt_says_besides(tmp_path):
    pytest.importorskip("google.protobuf")
    write(tmp_path / "m.caffemodel", TENSORS)
    data = [
        {**layer("Data", "train", [], ["data", "label"], transform_param={}), "include": {"phase": "TRAIN"}},
        {**layer("Data", "test", [], ["data", "label"], transform_param={"scale": 0.5, "mean_value": [1, 2, 3]}),
         "include": {"phase": "TEST"}},
    ]  # fmt: skip
    write_prototxt(tmp_path / "m_deploy.prototxt", [*data, *LAYERS], head="# a comment\n")
    found = read(tmp_path / "m.caffemodel")
    assert found.model.preprocessing == vggfast.Preprocessing((1, 2, 3), (2, 2, 2), "BGR")
    assert found.origin == "the file (layer test)"
    assert "its layers are those of m_deploy.prototxt" in found.notes
    for head, message in (
        ("input_dim: 1 input_dim: 3 input_dim: 70 input_dim: 70\n", "multiples of 32, got 70x70"),
        ("input_dim: 1 input_dim: 3 input_dim: 32 input_dim: 128\n", "fc6 must read a square map, got 1x4"),
        ("layer {\n", "m_deploy.prototxt cannot be read: it lacks a closing bracket"),
        ("}\n", "m_deploy.prototxt cannot be read: it has a closing bracket too many"),
    ):
        write_prototxt(tmp_path / "m_deploy.prototxt", LAYERS, head=f'input: "data"\n{head}')
        with pytest.raises(ValueError, match=rf"m.*{message}"):
            read(tmp_path / "m.caffemodel")
    write_prototxt(tmp_path / "m_deploy.prototxt", LAYERS[:-2])
    with pytest.raises(ValueError, match="ends behind layer relufc7, where configuration A has"):
        read(tmp_path / "m.caffemodel")


def test_words_of_a_prototxt(tmp_path):
    pytest.importorskip("google.protobuf")
    write(tmp_path / "m.caffemodel", TENSORS)
    source = layer("Data", "source", [], ["data"], transform_param={"scale": 0.5})
    path = tmp_path / "m.prototxt"
    write_prototxt(path, [source, *LAYERS], head="")
    text = path.read_text().replace("pool: MAX", "pool: 0 global_pooling: False")
    text = text.replace("inner_product_param {", "inner_product_param { bias_term: True transpose: f ")
    path.write_text(text, encoding="utf-8-sig")
    found = read(tmp_path / "m.caffemodel")
    assert_same(found)
    assert found.origin == "the file (layer source)"


@pytest.mark.parametrize(("rules", "state", "runs"), [
    ({"include": {"stage": "more"}}, "", False),
    ({"include": {"stage": "more"}}, 'state { stage: "more" }\n', True),
    ({"include": {"not_stage": "more"}}, "", True),
    ({"include": {"min_level": 1}}, "", False),
    ({"include": {"min_level": 1}}, "state { level: 1 }\n", True),
    ({"include": [{"phase": "TRAIN"}, {"phase": "TEST"}]}, "", True),
    ({"exclude": {"phase": "TEST"}}, "", False),
    ({"exclude": {"phase": "TEST", "stage": "more"}}, "", True),
    ({"exclude": {"stage": "more"}}, 'state { stage: "more" }\n', False),
])  # fmt: skip
def test_rules_of_a_prototxt(tmp_path, rules, state, runs):
    pytest.importorskip("google.protobuf")
    write(tmp_path / "m.caffemodel", TENSORS)
    write_prototxt(tmp_path / "m.prototxt", changed("reluconv1_1", **rules), head=f'{state}input: "data"\n')
    if runs:
        assert_same(read(tmp_path / "m.caffemodel"))
    else:
        with pytest.raises(ValueError, match="layer pool1 is a max-pool, where configuration A has a ReLU"):
            read(tmp_path / "m.caffemodel")


# ---- MatConvNet ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer { name: " + '"' + '\\"' * 100_000 + "x", "the text .* has no end"),
        (" " * (257 << 10), "at most 256 KiB, got 257"),
    ],
)
def test_a_prototxt_that_takes_time(tmp_path, text, message):
    write(tmp_path / "m.caffemodel", TENSORS)
    (tmp_path / "m.prototxt").write_text(text)
    with pytest.raises(ValueError, match=rf"m\.prototxt .*{message}"):
        read(tmp_path / "m.caffemodel")


def _set(name, **fields):
    def change(layers):
        return [{**each, **(fields if each["name"] == name else {})} for each in layers]

    return change


def _without(name):
    return lambda layers: [each for each in layers if each["name"] != name]


@pytest.mark.parametrize(
    "change",
    [
        None,
        _set("conv1_1", pad=[1, 1, 1, 1]),
        _set("conv1_1", pad=[1, 1], stride=[1, 1], dilate=1),
        _set("pool1", pad=[0, 1, 0, 1]),
        _set("reluconv1_1", leak=0),
        lambda layers: [*layers, {"name": "d", "type": "dropout"}],
        lambda layers: [{**each, "name": "same"} for each in layers],
        lambda layers: [{key: value for key, value in each.items() if key != "name"} for each in layers],
    ],
)
def test_matconvnet(tmp_path, change):
    pytest.importorskip("scipy")
    write_matconvnet(tmp_path / "m.mat", matconvnet_tensors(MODEL), change=change)
    found = read(tmp_path / "m.mat")
    assert_same(found)
    assert NO_SOFTMAX in found.notes
    assert "its FC layers are convolutions: one row of scores for 64x64" in found.notes


@pytest.mark.parametrize(("change", "message"), [
    (_set("pool1", method="avg"), "layer pool1 is a pooling by avg"),
    (_set("pool1", pool=[3, 3]), r"layer pool1, a max-pool, must have extents \[2, 2\], got \[3, 3\]"),
    (_set("pool1", stride=1), "layer pool1, a max-pool, must have strides"),
    (_set("pool1", pad=[1, 0, 1, 0]), "layer pool1, a max-pool, must have pads"),
    (_set("conv1_1", pad=0), r"layer conv1_1, a 3x3 convolution, must have pads \[1, 1, 1, 1\]"),
    (_set("conv1_1", stride=2), "layer conv1_1, a 3x3 convolution, must have strides"),
    (_set("conv1_1", dilate=2), "layer conv1_1, a 3x3 convolution, must have dilation"),
    (_set("conv1_1", pad=[1, 1, 1]), r"pad of layer conv1_1 must be 1 or 2 or 4 numbers, got \[1, 1, 1\]"),
    (_set("reluconv1_1", leak="little"), "leak of layer reluconv1_1 must be numbers, got"),
    (_set("relufc7", type="lrn", param=[5, 1]), "param of layer relufc7 must be 4 numbers"),
    (_set("fc6", pad=1), r"layer fc6, a 2x2 convolution, must have pads \[0, 0, 0, 0\]"),
    (_set("reluconv1_1", leak=0.1), r"layer reluconv1_1 is a leaky ReLU \(leak 0.1\)"),
    (_set("reluconv1_1", type="sigmoid"), "layer reluconv1_1 is a sigmoid, where configuration A has a ReLU, relu1_1"),
    (_set("reluconv1_1", type="bnorm"), "layer reluconv1_1 is a bnorm, where"),
    (_without("reluconv2_1"), "layer pool2 is a max-pool, where"),
    (_without("relufc6"), "layer fc7 is an FC layer, where"),
    (_set("relufc7", type="lrn", param=[5, 1, 1e-4, 0.75]), "layer relufc7 must have"),
])  # fmt: skip
def test_what_no_vgg_has_in_matconvnet(tmp_path, change, message):
    pytest.importorskip("scipy")
    write_matconvnet(tmp_path / "m.mat", matconvnet_tensors(MODEL), change=change)
    with pytest.raises(ValueError, match=rf"m\.mat.*{message}"):
        read(tmp_path / "m.mat")
