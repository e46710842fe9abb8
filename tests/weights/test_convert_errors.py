"""A wrong file of each kind: one line that names the file, the tensor and what is allowed."""

import numpy as np
import pytest
import torch

from tests.support.foreign import KINDS, network, truncate
from vggfast import Preprocessing
from vggfast.cli import main
from vggfast.weights import save_model

# Tensors of each format: one to take away, one to cut.
NAMES = {
    "torchvision": ("features.8.bias", "features.6.weight"),
    "timm": ("features.8.bias", "pre_logits.fc2.weight"),
    "keras": ("block3_conv2/bias", "block3_conv1/kernel"),
    "tf-slim": ("vgg_16/conv3/conv3_2/biases", "vgg_16/fc7/weights"),
    "caffe": ("conv3_2[1]", "conv3_1[0]"),
    "matconvnet": ("conv3_2 biases", "conv3_1 filters"),
    "onnx": ("features.8.bias", "features.6.weight"),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    """(format, file's name, tensors of a network A, writer); skips by name where the package is absent."""
    name, tensors, writer, package = KINDS[request.param]
    pytest.importorskip(package)
    return request.param.partition(" ")[0].rstrip(","), name, tensors(network()), writer


@pytest.fixture
def refusal(tmp_path, capsys, kind):
    """Converts the file and returns the one line that is said."""

    def run():
        path = tmp_path / kind[1]
        arguments = ["convert", path, tmp_path / "out.safetensors", "--from", kind[0], "--preprocessing", "caffe"]
        code = main(list(map(str, arguments)))
        err = capsys.readouterr().err
        assert (code, err.count("\n")) == (1, 1), err
        assert str(path) in err
        assert not (tmp_path / "out.safetensors").exists()
        return err

    return run


@pytest.mark.parametrize("what", ["empty", "garbage", "truncated", "absent", "another kind"])
def test_no_such_file(tmp_path, kind, refusal, what):
    path = tmp_path / kind[1]
    if what == "empty":
        path.write_bytes(b"")
    elif what == "garbage":
        path.write_bytes(bytes(range(256)) * 20)
    elif what == "another kind":
        path.write_bytes(b"PK\3\4 and no archive" if kind[0] != "torchvision" else b"\x89HDF\r\n\x1a\n")
    elif what == "truncated":
        kind[3](path, kind[2])
        for each in [path, *tmp_path.glob("*.data-*")]:
            if each.is_file():
                truncate(each)
    err = refusal()
    said = {"absent": "no such weight file", "empty": "must be a weight file, and is empty"}
    assert said.get(what, "file that can be read") in err
    assert "weights_only" not in err


def test_missing_tensor(tmp_path, kind, refusal):
    format, name, tensors, writer = kind
    missing = NAMES[format][0]
    writer(tmp_path / name, {key: value for key, value in tensors.items() if key != missing})
    err = refusal()
    expected = f"is nearest to configuration A in the names of {LABELS[format]} files; missing: {missing}\n"
    assert expected in err or SAID_OF_A_LAYER.get(format, expected) in err


# Of a bias that is missing, where the file says its graph.
SAID_OF_A_LAYER = {
    "keras": "layer block3_conv2 must have 2 variables (kernel, bias), got 1\n",
    "caffe": "layer conv3_2 must have 2 blobs (weight, bias), got 1\n",
    "matconvnet": "layer conv3_2 has no biases\n",
    "onnx": "m.onnx: node y8 reads features.8.bias, which nothing before it gives: a VGG is a chain\n",
}
LABELS = {"torchvision": "torchvision", "timm": "timm", "keras": "Keras", "tf-slim": "TF-slim", "caffe": "Caffe",
          "matconvnet": "MatConvNet", "onnx": "ONNX"}  # fmt: skip


def test_tensor_left_over(tmp_path, kind, refusal):
    format, name, tensors, writer = kind
    more = {"matconvnet": ("extra filters", "extra biases"), "caffe": ("extra[0]", "extra[1]")}.get(
        format, ["extra/kernel"]
    )
    writer(tmp_path / name, {**tensors, **{each: np.zeros((3, 3, 4, 4), np.float32) for each in more}})
    said = "layer extra" if format in ("caffe", "matconvnet") else "left over: extra/kernel\n"
    assert said in refusal()


def test_wrong_shape(tmp_path, kind, refusal):
    format, name, tensors, writer = kind
    cut = NAMES[format][1]
    shorter = tensors[cut][:-1] if format == "caffe" else tensors[cut][..., :-1]
    writer(tmp_path / name, {**tensors, cut: np.ascontiguousarray(shorter)})
    err = refusal()
    if format == "onnx":
        assert "m.onnx: node y6, a 3x2 convolution, must have kernel_shape [3, 3], got [3, 2]" in err
        return
    assert f"{cut}, the {'fc2' if 'fc' in cut else 'conv3_1'} weight, must have shape (" in err
    assert "in our layout to fit the rest of the network, got " in err


def test_integers_are_no_weights(tmp_path, kind, refusal):
    format, name, tensors, writer = kind
    if format in ("caffe", "onnx"):
        pytest.skip("the format's weights are floating-point numbers")
    cut = NAMES[format][1]
    writer(tmp_path / name, {**tensors, cut: tensors[cut].astype(np.int32)})
    assert f"{cut} must have a floating-point dtype, got torch.int32" in refusal()


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "onnx"], indirect=True)
def test_weights_of_another_network(tmp_path, kind, refusal):
    format, name, _, writer = kind
    other = {"caffe": "res2a[0]", "matconvnet": "res2a filters"}.get(format, "layer1/kernel")
    pair = {"matconvnet": {"res2a biases": np.zeros(4, np.float32)}}.get(format, {})
    writer(tmp_path / name, {other: np.zeros((4, 4, 3, 3), np.float32), **pair})
    err = refusal()
    assert ("holds no VGG with the names of" in err and other in err) or "layer res2a" in err


def test_alexnet_and_resnet(tmp_path, capsys, torchvision):
    for name, message in (
        ("alexnet", "is nearest to configuration A in the names of torchvision files; missing: "),
        ("resnet18", "holds no VGG with the names of torchvision files"),
    ):
        with torch.device("meta"):
            state = getattr(torchvision.models, name)().state_dict()
        torch.save({key: torch.zeros(1) for key in state}, tmp_path / "m.pth")
        assert main(["convert", str(tmp_path / "m.pth"), str(tmp_path / "o.safetensors")]) == 1
        assert message in capsys.readouterr().err


def test_onnx_graphs_of_other_networks(tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.float32), "w")
    value = onnx.helper.make_tensor_value_info
    for op, settings, message in (
        (
            "Conv",
            {"strides": [2, 2], "pads": [1] * 4},
            "m.onnx: node y, a 3x3 convolution, must have strides [1, 1], got [2, 2]",
        ),
        ("Conv", {}, "node y, a 3x3 convolution, must have pads [1, 1, 1, 1], got [0, 0, 0, 0]"),
        (
            "MaxPool",
            {"kernel_shape": [3, 3], "strides": [2, 2]},
            "node y, a max-pool, must have kernel_shape [2, 2], got [3, 3]",
        ),
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, "must have ceil_mode 0, got 1"),
        ("Sigmoid", {}, "node y is a Sigmoid, which no VGG has there"),
        ("LRN", {"size": 3}, "node y must have {'size': 5, 'alpha': 0.0001"),
    ):
        inputs = ["x", "w"] if op == "Conv" else ["x"]
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node(op, inputs, ["y"], **settings)], "net",
            [value("x", 1, [1, 3, 8, 9])], [value("y", 1, None)], [weight],
        )  # fmt: skip
        onnx.save(onnx.helper.make_model(graph), str(tmp_path / "m.onnx"))
        arguments = ["convert", str(tmp_path / "m.onnx"), str(tmp_path / "o.safetensors"), "--preprocessing", "caffe"]
        assert main(arguments) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda nodes: setattr(nodes[-2], "op_type", "Tanh"), "is a Tanh, which no VGG has there"),
        (
            lambda nodes: nodes[-1].attribute.add(name="alpha", type=1, f=0.5),
            "m.onnx: node classifier.6, a Gemm, must have alpha 1.0, got 0.5",
        ),
    ],
)
def test_onnx_heads_of_other_networks(tmp_path, capsys, change, message):
    onnx = pytest.importorskip("onnx")
    model = network("A")
    model.preprocessing = Preprocessing.caffe()
    save_model(model, tmp_path / "m.safetensors")
    assert main(["convert", str(tmp_path / "m.safetensors"), str(tmp_path / "m.onnx")]) == 0
    graph = onnx.load(str(tmp_path / "m.onnx"))
    change(graph.graph.node)
    onnx.save(graph, str(tmp_path / "m.onnx"))
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "m.onnx"), str(tmp_path / "o.safetensors")]) == 1
    assert message in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "m.onnx"), str(tmp_path / "o.safetensors"), "--features-only"]) == 0


def test_matconvnets_other_files(tmp_path, capsys):
    savemat = pytest.importorskip("scipy.io").savemat
    savemat(tmp_path / "m.mat", {"weights": np.zeros(3)})
    assert main(["convert", str(tmp_path / "m.mat"), str(tmp_path / "o.safetensors")]) == 1
    assert "it has no list 'layers', but weights" in capsys.readouterr().err
    savemat(
        tmp_path / "m.mat", {"layers": np.array([{"name": "d1", "type": "dagnn.Conv", "block": {"size": 3}}], object)}
    )
    assert main(["convert", str(tmp_path / "m.mat"), str(tmp_path / "o.safetensors")]) == 1
    assert "it is a DagNN, whose layers are blocks between variables" in capsys.readouterr().err
