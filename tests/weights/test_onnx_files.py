"""ONNX files: tensors in other files, broken ones, and what our writer writes."""

import os

import pytest
import torch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.support.foreign import network  # noqa: E402
from tests.support.onnx_graphs import Edited, by_onnxruntime, images, off  # noqa: E402
from vggfast.weights.formats import onnx_writer, read  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
# ---- tensors in other files ------------------------------------------------------------------------------------------


def with_data(folder, location="data/w.bin", **entries):
    """A graph whose first weight lies in another file, which is written unless the location says another."""
    graph = Edited(folder / "m.onnx", width=0.05)
    tensor = next(each for each in graph.graph.initializer if each.name == "features.0.weight")
    (folder / "data").mkdir()
    (folder / "data/w.bin").write_bytes(b"12345678" + tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": 8, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    path = folder / "m.onnx"
    path.write_bytes(graph.file.SerializeToString())
    return path, graph.network


@pytest.mark.parametrize(
    "entries", [{}, {"length": 324}, {"location": "data/../data/w.bin"}, {"location": "./data/w.bin"}]
)
def test_tensors_in_other_files_of_the_folder(tmp_path, entries):
    path, model = with_data(tmp_path, **entries)
    assert torch.equal(read(path).model.features[0].weight, model.features[0].weight)


@pytest.mark.parametrize(("entries", "message"), [
    ({"location": "../outside.bin"}, r"lies in '../outside\.bin', which must be a file in the folder"),
    ({"location": "/etc/passwd"}, "lies in '/etc/passwd', which must be a file in the folder"),
    ({"location": "link.bin"}, r"lies in 'link\.bin', which must be a file in the folder"),
    ({"location": "folder/outside.bin"}, "lies in 'folder/outside.bin', which must be a file in the folder"),
    ({"location": "loop"}, "lies in 'loop', which "),
    ({"location": ""}, "lies in '', which must be a file in the folder"),
    ({"location": "a\0b"}, "which must be a file in the folder"),
    ({"location": "none.bin"}, r"lies in 'none\.bin', which is not there"),
    ({"location": "data"}, "lies in 'data', which is not there"),
    ({"location": "fifo"}, "lies in 'fifo', which is not there"),
    ({"offset": 9}, "must have 324 bytes of it from 9 on, got the rest of 332"),
    ({"offset": 1 << 62}, "must have 324 bytes of it from 4611686018427387904 on"),
    ({"length": 1 << 62}, "must have 324 bytes of it from 8 on, got 4611686018427387904 of 332"),
    ({"length": 320}, "must have 324 bytes of it from 8 on, got 320 of 332"),
    ({"offset": -8}, "must have an offset and a length of 0 or more, got -8 and 0"),
    ({"offset": "x"}, "must have an offset and a length of 0 or more, got x and 0"),
])  # fmt: skip
def test_tensors_in_files_that_are_not_the_graphs_own(tmp_path, entries, message):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(bytes(1000))
    os.symlink("../outside.bin", folder / "link.bin")
    os.symlink("..", folder / "folder")
    os.symlink("loop", folder / "loop")
    os.mkfifo(folder / "fifo")
    path, _ = with_data(folder, **entries)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert all(each in str(caught.value) for each in (str(path), "tensor features.0.weight"))


@pytest.mark.parametrize("dims", [[1 << 40, 3, 3, 3], [3, 3, 3], [-1, 3, 3, 3], [1 << 62, 1 << 62], [0, 1 << 62, 3, 3]])
def test_shapes_that_no_tensor_has(tmp_path, dims):
    graph = Edited(tmp_path / "m.onnx", width=0.05)
    graph.graph.initializer[0].dims[:] = dims
    path = graph.save()
    with pytest.raises(ValueError, match=r"features\.0\.weight") as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_graphs_that_grow(tmp_path):
    """Tensors doubled over and over are not computed, nor are long chains followed by recursion."""
    graph = Edited(tmp_path / "m.onnx", width=0.05)
    make = onnx.helper.make_node
    for i in range(40):
        graph.nodes.insert(i, make("Concat", [f"c{i - 1}" if i else "features.0.bias"] * 2, [f"c{i}"], f"c{i}", axis=0))
    graph.nodes[40].input[2] = "c39"
    with pytest.raises(ValueError, match=r"node c\d, a Concat of constants, is not computed here"):
        read(graph.save())
    graph = Edited(tmp_path / "m.onnx", width=0.05)
    for i in range(5000):
        graph.nodes.insert(i, make("Identity", [f"c{i - 1}" if i else "features.0.bias"], [f"c{i}"]))
    graph.nodes[5000].input[2] = "c4999"
    assert read(graph.save()).model.features[0].bias.shape == (3,)
    graph.nodes.extend([graph.nodes[0]] * 15000)
    with pytest.raises(ValueError, match="it has 20027 nodes, and a VGG has at most some hundreds"):
        read(graph.save())


def test_names_of_any_kind(tmp_path):
    graph = Edited(tmp_path / "m.onnx", width=0.05)
    graph.nodes[3].name, graph.nodes[3].op_type = "a\nname\x00" + "x" * 1000, "Sigmoid"
    with pytest.raises(ValueError, match="node a name") as caught:
        read(graph.save())
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [
    ("preprocessing", "{"), ("preprocessing", "3"), ("preprocessing", "{}"), ("preprocessing", "[" * 100000),
    ("preprocessing", '{"mean": [1], "std": [1]}'), ("preprocessing", '{"mean": 1, "std": 1, "x": 1}'),
    ("preprocessing", '{"mean": ["a", "b", "c"], "std": [1, 1, 1]}'), ("classes", "3"), ("classes", "[1, 2]"),
    ("classes", "'"), ("other", "NaN, 1"),
])  # fmt: skip
def test_metadata_that_we_never_write(tmp_path, key, value):
    graph = Edited(tmp_path / "m.onnx", width=0.05)
    onnx.helper.set_model_props(graph.file, {key: value})
    with pytest.raises(ValueError, match=rf"m\.onnx: the metadata's {key} must be as vggfast writes it, got"):
        read(graph.save())


@pytest.mark.parametrize("name", [b"features.9.output", b"Relu", b"classifier.6.bias", b"preprocessing"])
def test_names_that_are_not_utf8(tmp_path, name):
    path = Edited(tmp_path / "m.onnx", width=0.05).save()
    path.write_bytes(path.read_bytes().replace(name, b"\xf7" + name[1:]))
    with pytest.raises(ValueError, match=r"m\.onnx: it has a name that is not UTF-8"):
        read(path)


# ---- the writer ------------------------------------------------------------------------------------------------------


def set_module(path, module):
    return lambda model: model.set_submodule(path, module)


def other_norms(model):
    for number, module in enumerate(each for each in model.modules() if isinstance(each, torch.nn.BatchNorm2d)):
        module.eps = 10.0 ** -(number + 1)


def plain_norm(model):
    norm = torch.nn.BatchNorm2d(model.features[1].num_features, affine=False)
    norm.running_var.fill_(2)
    model.features[1] = norm


def without_bias(model):
    model.features[3].bias = None
    model.classifier[3].bias = None


WRITTEN = {
    "as made": (lambda model: None, {}),
    "batch norms of other epsilons": (other_norms, {"batch_norm": True}),
    "batch norm without weights": (plain_norm, {"batch_norm": True}),
    "no biases": (without_bias, {}),
    "another LRN": (set_module("features.2", torch.nn.LocalResponseNorm(3, 2e-3, 0.5, 1.5)), {"config": "A-LRN"}),
    "one FC layer": (lambda model: setattr(model, "classifier", torch.nn.Linear(104, 3)), {}),
    "two FC layers": (lambda model: model.classifier.__delitem__(slice(1, 4)), {"hidden": 16}),
    "a Flatten": (lambda model: model.classifier.insert(0, torch.nn.Flatten()), {}),
    "nested layers": (lambda model: setattr(model, "classifier", torch.nn.Sequential(model.classifier)), {}),
    "a global average": (lambda model: None, {"pool_size": 1}),
    "one channel": (lambda model: None, {"in_channels": 1}),
    "four channels": (lambda model: None, {"in_channels": 4}),
    "a dense head": (lambda model: None, {"head": "conv"}),
    "no head": (lambda model: None, {"head": "none"}),
    "nothing in places": (lambda model: (model.features.insert(2, torch.nn.Identity()),
                                         model.features.insert(5, torch.nn.Dropout())), {}),
    "a pool more": (lambda model: model.features.append(torch.nn.MaxPool2d(2)), {"head": "none"}),
    "a ReLU less": (lambda model: model.features.__delitem__(1), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_written_rightly(tmp_path, name):
    change, arguments = WRITTEN[name]
    model = network(**{"config": "A", "width": 0.05, **arguments})
    change(model)
    onnx_writer.write(model.eval(), tmp_path / "m.onnx", {})
    fixed = model.head == "linear" and arguments.get("pool_size") != 1
    for sides in ((64, 64),) if fixed else ((64, 64), (96, 70)):
        x = images((2, arguments.get("in_channels", 3), *sides))
        assert off(by_onnxruntime(tmp_path / "m.onnx", x), model(torch.from_numpy(x)).detach().numpy()) < 1e-5


@pytest.mark.parametrize(("change", "message"), [
    (lambda model: setattr(model.features[0], "stride", (2, 2)),
        r"features\.0 is Conv3x3.*: its stride must be 1, got \(2, 2\)"),
    (lambda model: setattr(model.features[3], "dilation", (2, 2)), r"features\.3 is .*: its dilation must be 1"),
    (lambda model: setattr(model.features[3], "padding", (0, 0)),
        r"features\.3 is .*: a layer before the head must be"),
    (lambda model: setattr(model.features[3], "padding_mode", "reflect"),
        r"features\.3 is .*: its padding_mode must be 'zeros'"),
    (set_module("features.3", torch.nn.Conv2d(3, 6, 3, padding=1, groups=3)),
        r"features\.3 is .*: its groups must be 1, got 3"),
    (set_module("features.3", torch.nn.Conv2d(3, 6, 5, padding=2)),
        r"features\.3 is .*: a convolution must be 3x3 or 1x1"),
    (set_module("features.2", torch.nn.MaxPool2d(3, 2, 1)),
        r"features\.2 is MaxPool2d.*: its kernel_size must be 2, got 3"),
    (set_module("features.2", torch.nn.MaxPool2d(2, ceil_mode=True)),
        r"features\.2 must be a pool whose ceil_mode is False"),
    (set_module("features.2", torch.nn.MaxPool2d(2, 2, dilation=2)),
        r"features\.2 is .*: its dilation must be 1, got 2"),
    (set_module("features.2", torch.nn.AvgPool2d(2)), r"features\.2 is AvgPool2d"),
    (set_module("features.1", torch.nn.LeakyReLU()), r"features\.1 is LeakyReLU"),
    (set_module("classifier.1", torch.nn.GELU()),
        r"classifier\.1 is GELU.*: ONNX files are written with a VGG's layers alone"),
    (set_module("classifier.1", torch.nn.Softmax(1)), r"classifier\.1 is Softmax"),
    (set_module("features.2", torch.nn.LocalResponseNorm(4)), r"features\.2 is LocalResponseNorm"),
    (set_module("avgpool", torch.nn.AvgPool2d(2)), "avgpool is AvgPool2d.*: "),
])  # fmt: skip
def test_what_the_writer_refuses(tmp_path, change, message):
    model = network("A", width=0.05)
    change(model)
    with pytest.raises((TypeError, ValueError), match=message):
        onnx_writer.write(model, tmp_path / "m.onnx", {})
    assert not (tmp_path / "m.onnx").exists()
