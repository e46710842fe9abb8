"""Networks of other frameworks: what is recognised, and what comes out, against files made without the readers."""

import re
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vggfast
from tests.support.comparisons import relative_error
from tests.support.foreign import (
    KINDS,
    MEAN,
    keras_tensors,
    layers,
    matconvnet_tensors,
    network,
    torch_tensors,
    write_keras_h5,
    write_matconvnet,
    write_onnx,
    write_safetensors,
)  # fmt: skip
from vggfast.cli import main
from vggfast.weights import load_model, save_model
from vggfast.weights.convert import write
from vggfast.weights.formats import CONVENTIONS, _caffe_text, detect, read
from vggfast.weights.formats.torchvision import fold

CAFFE = vggfast.Preprocessing.caffe()


@pytest.fixture(params=KINDS)
def kind(request):
    """(format, file's name, tensors of a network, writer) of each kind; skips by name where its package is absent."""
    name, tensors, writer, package = KINDS[request.param]
    pytest.importorskip(package)
    return request.param.partition(" ")[0].rstrip(","), name, tensors, writer


def assert_same_network(ours, model):
    assert {**ours.arguments, "head": None} == {**model.arguments, "head": None}
    for name, tensor in model.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def _conventional(format):
    return CAFFE if format == "onnx" else None


@pytest.mark.parametrize("config", ["A", "C", "E"])
def test_whole_networks(tmp_path, kind, config):
    format, name, tensors, writer = kind
    model = network(config)
    writer(tmp_path / name, tensors(model))
    found = read(tmp_path / name, preprocessing=_conventional(format))
    assert (found.format, found.part) == (format, "the whole network")
    assert_same_network(found.model, model)
    assert not found.model.training
    if format == "matconvnet":
        assert found.model.preprocessing == vggfast.Preprocessing(MEAN)
        assert found.extra["classes"] == [f"class {i}" for i in range(5)]
    elif format != "onnx":
        assert found.model.preprocessing == CONVENTIONS[format]
        assert "convention" in found.origin


def test_features_alone(tmp_path, kind):
    format, name, tensors, writer = kind
    model = network("D", head="none", num_classes=1000, hidden=4096, pool_size=7)
    writer(tmp_path / name, tensors(model))
    found = read(tmp_path / name, format, preprocessing=_conventional(format))
    assert found.part == "features only (no FC layers)"
    assert_same_network(found.model, model)
    assert found.model.head == "none"


def test_fc_layers_alone(tmp_path, kind):
    format, name, tensors, writer = kind
    if format == "onnx":
        pytest.skip("an ONNX graph has no FC layers of a VGG without its convolutions")
    model = network("D")
    head = {key: value for key, value in tensors(model).items()
            if ("conv" not in key and "features" not in key) or "fc" in key}  # fmt: skip
    writer(tmp_path / name, head)
    with pytest.raises(ValueError, match=r"holds the FC layers alone: give .*--features FILE"):
        read(tmp_path / name, format)
    donor = network("D", head="none")
    donor.features = model.features
    donor.preprocessing = CAFFE
    save_model(donor, tmp_path / "features.safetensors", {"credit": "theirs", "scales": [64]})
    found = read(tmp_path / name, format, features=tmp_path / "features.safetensors")
    assert_same_network(found.model, model)
    assert found.model.preprocessing == CAFFE
    assert {**found.extra, "classes": None} == {"credit": "theirs", "classes": None}


def test_what_more_than_convolutions_is_left_out_when_asked(tmp_path, kind):
    format, name, tensors, writer = kind
    model = network()
    writer(tmp_path / name, tensors(model))
    found = read(tmp_path / name, features_only=True, preprocessing=_conventional(format))
    assert found.model.head == "none"
    assert_same_state(found.model.features, model.features)


def assert_same_state(ours, theirs):
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


@pytest.mark.parametrize("changes", [
    {"pool_size": 1, "in_channels": 1}, {"num_classes": 1, "width": 0.07}, {"hidden": 1, "width": 0.02},
])  # fmt: skip
def test_sizes_are_recognised(tmp_path, kind, changes):
    format, name, tensors, writer = kind
    model = network("C", **changes)
    if format == "matconvnet" and "num_classes" in changes:
        pytest.skip("the names of five classes are in the file")
    writer(tmp_path / name, tensors(model))
    found = read(tmp_path / name, preprocessing=_conventional(format) if model.arguments["in_channels"] == 3 else None)
    assert_same_network(found.model, model)
    if "in_channels" in changes:
        assert found.model.preprocessing is None


@pytest.mark.parametrize("config", ["A", "A-LRN", "D"])
@pytest.mark.parametrize("kind", ["torchvision .pth", "timm", "onnx"])
def test_batch_norm(tmp_path, kind, config):
    name, tensors, writer, package = KINDS[kind]
    pytest.importorskip(package)
    if kind == "onnx" and config == "A-LRN":
        pytest.skip("the writer of this test has no LRN; our own has")
    model = network(config, batch_norm=True)
    writer(tmp_path / name, tensors(model))
    assert_same_network(read(tmp_path / name, preprocessing=CAFFE).model, model)


def test_older_batch_norm_has_no_count(tmp_path):
    model = network(batch_norm=True)
    tensors = {name: value for name, value in torch_tensors(model).items() if "num_batches" not in name}
    write_safetensors(tmp_path / "m.safetensors", tensors)
    assert_same_network(read(tmp_path / "m.safetensors").model, model)


def test_other_dtypes_become_float32(tmp_path):
    model = network().double()
    torch.save(model.state_dict(), tmp_path / "m.pth")
    assert_same_network(read(tmp_path / "m.pth").model, model.float())


# ---- ONNX as other exporters write it --------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"fc": "MatMul"}, {"share": True}])
def test_onnx_of_other_exporters(tmp_path, settings):
    pytest.importorskip("onnx")
    model = network()
    if "share" in settings:
        model.features[6].bias.data.copy_(model.features[8].bias)
    write_onnx(tmp_path / "m.onnx", torch_tensors(model), **settings)
    assert_same_network(read(tmp_path / "m.onnx", preprocessing=CAFFE).model, model)


def test_onnx_batch_norm_of_another_epsilon(tmp_path):
    pytest.importorskip("onnx")
    model = network(batch_norm=True)
    write_onnx(tmp_path / "m.onnx", torch_tensors(model), epsilon=1e-3)
    found = read(tmp_path / "m.onnx", preprocessing=CAFFE).model
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 1e-3
    x = torch.randn(2, 3, 64, 64)
    assert relative_error(found(x), model(x)) < 1e-5


def test_keras_fc_layers_as_convolutions(tmp_path):
    pytest.importorskip("h5py")
    model = network()
    tensors = keras_tensors(model)
    size, kernel = model.arguments["pool_size"], tensors["fc1/kernel"]
    tensors["fc1/kernel"] = kernel.reshape(size, size, -1, kernel.shape[1])
    for name in ("fc2/kernel", "predictions/kernel"):
        tensors[name] = tensors[name][None, None]
    write_keras_h5(tmp_path / "m.h5", tensors)
    assert_same_network(read(tmp_path / "m.h5").model, model)


def test_notes_on_the_file_of_the_convolutions(tmp_path):
    pytest.importorskip("h5py")
    tensors = keras_tensors(network())
    for name, part in {"head": "fc|predictions", "body": "block"}.items():
        write_keras_h5(tmp_path / f"{name}.h5", {key: value for key, value in tensors.items() if re.match(part, key)})
    found = read(tmp_path / "head.h5", features=tmp_path / "body.h5")
    assert any(note.startswith(f"{tmp_path / 'body.h5'}: the file holds weights alone") for note in found.notes)


def test_matconvnet_means_of_other_shapes(tmp_path):
    pytest.importorskip("scipy")
    tensors = matconvnet_tensors(network())
    write_matconvnet(tmp_path / "m.mat", tensors, mean=np.array(MEAN)[:, None])
    assert read(tmp_path / "m.mat").model.preprocessing == vggfast.Preprocessing(MEAN)
    image = np.stack([np.full((2, 3), each) for each in MEAN], -1)
    for mean, origin in ((image, "averageImage"), (image + np.eye(2, 3)[..., None], "the mean colour of averageImage")):
        write_matconvnet(tmp_path / "m.mat", tensors, mean=mean)
        found = read(tmp_path / "m.mat")
        assert found.model.preprocessing.mean == tuple(mean.mean((0, 1)))
        assert found.origin.startswith(f"the file ({origin}")
    write_matconvnet(tmp_path / "m.mat", tensors, mean=np.zeros((4, 4)))
    with pytest.raises(
        ValueError, match=r"averageImage must have shape \(H, W, 3\), or be three numbers, got \(4, 4\)"
    ):
        read(tmp_path / "m.mat")


def test_onnx_needs_to_be_told_what_it_takes(tmp_path):
    pytest.importorskip("onnx")
    write_onnx(tmp_path / "m.onnx", torch_tensors(network()))
    with pytest.raises(ValueError, match=r"m\.onnx does not say what pixels .* --preprocessing torchvision\|timm"):
        read(tmp_path / "m.onnx")


# ---- writers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "conv", "none"])
@pytest.mark.parametrize("config", ["A-LRN", "B", "C"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_onnx_round_trip_runs_alike_elsewhere(tmp_path, config, head, batch_norm):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model = network(config, batch_norm=batch_norm)
    model = model.to_conv_head() if head == "conv" else model
    if head == "none":
        model = vggfast.VGG(**{**model.arguments, "head": "none"}, init="he").eval()
    model.preprocessing = CAFFE
    names = [f"class {i}" for i in range(5)] if head != "none" else []
    metadata = {"credit": "somebody's", **({"classes": names} if names else {})}
    save_model(model, tmp_path / "m.safetensors", metadata)
    write(read(tmp_path / "m.safetensors"), tmp_path / "m.onnx")
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for x in (torch.randn(1, 3, 64, 64), torch.randn(2, 3, 64, 64 if head == "linear" else 97)):
        assert relative_error(torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), model(x)) < 1e-5
    found = read(tmp_path / "m.onnx")
    assert found.model.head == head
    assert_same_state(found.model, model)
    assert (found.model.preprocessing, found.extra) == (CAFFE, metadata)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", [name for name in CONVENTIONS if name != "timm"])
def test_torchvision_takes_the_same_pictures(tmp_path, torchvision, suffix, name):
    """The same outputs in torchvision's own module, borders and all, by the preprocessing that is told."""
    model = network("D").eval()
    model.preprocessing = CONVENTIONS[name]
    save_model(model, tmp_path / "m.safetensors", {"classes": list("abcde")})
    out = tmp_path / f"theirs{suffix}"
    note = write(read(tmp_path / "m.safetensors"), out, "torchvision")
    assert "the source's classes have no place in it, and are left out" in note
    widths = [w if w == "M" else max(1, round(w * 0.1)) for w in torchvision.models.vgg.cfgs["D"]]
    with torch.device("meta"):  # the two layers of 4096 are replaced
        theirs = torchvision.models.VGG(torchvision.models.vgg.make_layers(widths), num_classes=5)
    theirs.avgpool, theirs.classifier = model.avgpool, vggfast.VGG(**model.arguments).classifier
    theirs.load_state_dict(load_file(out) if suffix == ".safetensors" else torch.load(out), assign=True)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 70, 3), np.uint8)
    takes = fold(model.features[0].weight.detach(), model.preprocessing)[1]
    assert (takes.order, takes.top, takes.std) == ("RGB", 1.0, vggfast.Preprocessing.torchvision().std)
    assert ("mean of its own" in note) == (name != "torchvision")
    assert all(f"{value:.7g}" in note for value in takes.mean) or name == "torchvision"
    expected = model(model.preprocessing.tensor(pixels)[None])
    assert relative_error(theirs.eval()(takes.tensor(pixels)[None]), expected) < 1e-5
    if suffix == ".safetensors":  # which keeps what the network takes
        again = read(out)
        assert (again.model.preprocessing, again.origin) == (takes, "the file")
        assert relative_error(again.model(takes.tensor(pixels)[None]), expected) < 1e-5


def test_torchvision_has_no_c_and_no_lrn(tmp_path):
    for config in ("C", "A-LRN"):
        save_model(network(config), tmp_path / "m.safetensors")
        with pytest.raises(ValueError, match=f"configuration {config}: torchvision has A, B, D and E"):
            write(read(tmp_path / "m.safetensors"), tmp_path / "m.pth")
    assert not (tmp_path / "m.pth").exists()


# ---- the command -----------------------------------------------------------------------------------------------------


def _run(capsys, *arguments):
    code = main(["convert", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command(tmp_path, capsys):
    pytest.importorskip("h5py")
    model = network("D")
    write_keras_h5(tmp_path / "m.h5", KINDS["keras .h5"][1](model))
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    code, out, _ = _run(capsys, tmp_path / "m.h5", tmp_path / "m.safetensors", "--classes", tmp_path / "names.txt")
    assert code == 0
    assert out.splitlines() == [
        f"read           {tmp_path}/m.h5: keras, the whole network",
        f"network        D: width 0.1, 3 channels in, 5 classes, hidden 16, pool 2, {model_size(model):,} parameters",
        "note           the file holds weights alone; that its layers are keras.applications' is told by their names",
        "preprocessing  BGR, 0 to 255, mean 103.939 116.779 123.68, std 1 1 1 (the convention of keras.applications)",
        f"wrote          {tmp_path}/m.safetensors: ours, with its preprocessing",
    ]
    ours, extra = load_model(tmp_path / "m.safetensors")
    assert_same_network(ours, model)
    assert (ours.preprocessing, extra["classes"]) == (CAFFE, list("abcde"))
    code, out, _ = _run(capsys, tmp_path / "m.h5", tmp_path / "n.safetensors", "--preprocessing", "tf-slim")
    assert "RGB, 0 to 255, mean 123.68 116.78 103.94, std 1 1 1 (--preprocessing)" in out
    assert load_model(tmp_path / "n.safetensors")[0].preprocessing == CONVENTIONS["tf-slim"]


def model_size(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("arguments", "message"), [
    (["m.pth", "out.bin"], "out.bin must have the suffix .safetensors for ours; .pth, .pt, .safetensors for "
     "torchvision; .onnx for onnx, got '.bin'"),
    (["m.pth", "out.pth", "--to", "onnx"], "out.pth must have the suffix .safetensors for ours; "
     ".pth, .pt, .safetensors for torchvision; .onnx for onnx, got '.pth'"),
    (["none.pth", "out.safetensors"], "none.pth: no such weight file"),
    (["m.pth", "out.safetensors", "--classes", "two.txt"], "there are 2 names of classes, and the network has 5"),
    (["m.pth", "out.safetensors", "--classes", "gap.txt"],
     "gap.txt must have the name of a class on each line, and line 2 is empty"),
    (["m.pth", "out.pth", "--classes", "two.txt"], "out.pth will be in torchvision's format, which cannot hold"),
    (["m.pth", "out.safetensors", "--features", "m.pth"], "m.pth holds convolutions itself"),
    (["gap.txt", "out.safetensors"], "gap.txt is a weight file of no format that its content or suffix tells: --from"),
])  # fmt: skip
def test_command_errors_are_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    torch.save(network().state_dict(), "m.pth")
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    code, _, err = _run(capsys, *arguments)
    assert (code, err.count("\n")) == (1, 1)
    assert message in err
    assert not list(tmp_path.glob("out*"))


def test_ours_keeps_what_it_says(tmp_path, capsys):
    model = network("A", dropout=0.25).to_conv_head()
    save_model(model, tmp_path / "m.safetensors", {"classes": list("abcde"), "scales": [64]})
    assert detect(tmp_path / "m.safetensors") == "ours"
    assert _run(capsys, tmp_path / "m.safetensors", tmp_path / "n.safetensors", "--preprocessing", "caffe")[0] == 0
    again, extra = load_model(tmp_path / "n.safetensors")
    assert again.arguments == model.arguments
    assert (extra["classes"], extra["scales"], again.preprocessing) == (list("abcde"), [64], CAFFE)
    found = read(tmp_path / "m.safetensors", features_only=True)
    assert found.model.head == "none"
    assert_same_state(found.model.features, model.features)


def test_a_raw_file_points_to_convert(tmp_path):
    torch.save(network().state_dict(), tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"vggfast convert .*m\.pth OUT\.safetensors makes one"):
        load_model(tmp_path / "m.pth")


@pytest.mark.parametrize(("format", "package", "module"), [
    ("keras", "h5py", "h5py"), ("caffe", "protobuf", "google.protobuf"), ("matconvnet", "scipy", "scipy.io"),
    ("onnx", "onnx", "onnx"), ("tf-slim", "tensorflow", "tensorflow"),
])  # fmt: skip
def test_a_package_that_is_absent_is_named(tmp_path, capsys, monkeypatch, format, package, module):
    monkeypatch.setitem(sys.modules, module, None)
    _caffe_text._net.cache_clear()
    (tmp_path / "m").write_bytes(b"x")
    code, _, err = _run(capsys, tmp_path / "m", tmp_path / "o.safetensors", "--from", format)
    assert (code, err.count("\n")) == (2, 1)
    assert f"files need the package {package}" in err
    assert ("pip install tensorflow" if format == "tf-slim" else "pip install 'vggfast[convert]'") in err


def test_layers_of_the_test_files_are_the_networks():
    """What the files of these tests are made of has every parameter of the network."""
    model = network("C")
    assert sum(weight.size + bias.size for _, weight, bias in layers(model)) == model_size(model)
