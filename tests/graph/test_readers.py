"""Whoever reads a network computes what ``model.eval()`` does, or names the layer that it does not know."""

import copy
import functools
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

import vggfast
from tests.graph.networks import ALL, CASES, change_parameters, network
from tests.support.comparisons import relative_error
from vggfast.features import Extractor
from vggfast.graph import guard, recognise
from vggfast.graph.layers import AveragePool, MaxPool
from vggfast.weights import load_model, save_model
from vggfast.weights.formats import onnx_writer

pytestmark = pytest.mark.usefixtures("one_thread")

X = 64  # pixels along an axis: the head fits in one place


def by_engine(model, x, tmp_path):
    yield vggfast.Engine(model)(x), model.eval()(x)


def by_evaluator(model, x, tmp_path):
    scores = vggfast.evaluate.Evaluator(model).dense(x, None, flip=False)
    yield scores, model.eval()(x).softmax(1)


def by_extractor(model, x, tmp_path):
    maps = Extractor(model, ("pool5", "penultimate"), (X,), preprocessing=vggfast.Preprocessing.caffe()).maps(x)
    yield maps["pool5"], model.eval().features(x)
    read = []
    last = [module for module in model.classifier.modules() if isinstance(module, nn.Linear)][-1]
    with last.register_forward_pre_hook(lambda module, args: read.append(args[0])):
        model(x)
    yield maps["penultimate"].mean((2, 3)), read[0]


def by_conv_head(model, x, tmp_path):
    other = model.to_conv_head()
    yield other.eval()(x), model.eval()(x)
    ours, theirs = ({p.data_ptr() for p in each.parameters()} for each in (model, other))
    assert ours == theirs


def by_saving(model, x, tmp_path):
    save_model(model, tmp_path / "m.safetensors")
    yield load_model(tmp_path / "m.safetensors")[0](x), model.eval()(x)


def by_onnx(model, x, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    onnx_writer.write(model, tmp_path / "m.onnx", {})
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    yield torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), model.eval()(x)


READERS = {
    "Engine": by_engine,
    "Evaluator": by_evaluator,
    "Extractor": by_extractor,
    "to_conv_head": by_conv_head,
    "save_model": by_saving,
    "onnx": by_onnx,
}
assert READERS.keys() == ALL


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", CASES)
def test_right_or_named(name, reader, tmp_path):
    case = CASES[name]
    model = network(**case.arguments)
    case.change(model)
    x = torch.rand(2, 3, X, X)
    with torch.no_grad():
        if reader in case.right:
            for got, expected in READERS[reader](model, x, tmp_path):
                assert relative_error(got, expected) < 1e-4
            return
        error, text = (ValueError if reader == "save_model" else case.error), case.text
        if reader == "save_model" and case.right != ALL - {"save_model"}:
            text = re.escape(text.split()[0])
        with pytest.raises(error, match=text) as caught:
            list(READERS[reader](model, x, tmp_path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", READERS)
def test_hooks_on_all_modules(reader, tmp_path):
    with (
        torch.no_grad(),
        nn.modules.module.register_module_forward_hook(lambda module, args, y: y * 2),
        pytest.raises((TypeError, ValueError), match="there is a hook on all modules"),
    ):
        list(READERS[reader](network(), torch.rand(1, 3, X, X), tmp_path))


@pytest.mark.parametrize("reader", READERS)
def test_code_put_into_a_class(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x.clamp(0, 1))
    with torch.no_grad(), pytest.raises((TypeError, ValueError), match="the forward of that class was replaced"):
        list(READERS[reader](network(), torch.rand(1, 3, X, X), tmp_path))


def test_code_put_into_a_class_before_the_guard_knew_it(monkeypatch):
    """As a library does that is imported before this one."""
    monkeypatch.setitem(guard._known, nn.ReLU, None)
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x.clamp(0, 1))
    guard.know(nn.ReLU)
    with pytest.raises(TypeError, match=r"features\.1 is ReLU, and the forward of that class was replaced"):
        vggfast.Engine(network())


def test_backward_hooks_matter_where_gradients_are_computed():
    model, x = network(), torch.rand(1, 3, X, X)
    model.classifier[3].register_full_backward_hook(lambda module, gx, gy: None)
    with torch.no_grad():
        assert relative_error(vggfast.Engine(model)(x), model(x)) < 1e-5
    with pytest.raises(TypeError, match=r"classifier\.3 is Linear, with a backward hook"):
        model.to_conv_head()


def test_a_trunk_needs_no_known_head():
    model = network()
    model.classifier.append(nn.Softmax(1))
    x = torch.rand(1, 3, X, X)
    extractor = Extractor(model, ("relu5_1",), (X,), preprocessing=vggfast.Preprocessing.caffe())
    assert relative_error(extractor.maps(x)["relu5_1"], model.features[:18](x)) < 1e-5


def test_a_compiled_network_is_the_network():
    model, x = network(), torch.rand(1, 3, X, X)
    compiled = torch.compile(model)
    assert relative_error(vggfast.Engine(compiled)(x), model(x)) < 1e-5
    compiled.register_forward_hook(lambda module, args, y: y + 1)
    with pytest.raises(TypeError, match="model is OptimizedModule, with a forward hook"):
        vggfast.Engine(compiled)


def test_the_training_mode_of_parametrisations_stays():
    model = network()
    layer = nn.utils.parametrizations.spectral_norm(model.features[0])
    model.train()
    before = [buffer.clone() for buffer in layer.buffers()]
    vggfast.Engine(model)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, layer.buffers(), strict=True))


def test_an_extractor_needs_no_parameters():
    extractor = Extractor(
        nn.Sequential(nn.MaxPool2d(2)), ("pool1",), (32,), preprocessing=vggfast.Preprocessing.caffe()
    )
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(extractor.maps(x)["pool1"], nn.functional.max_pool2d(x, 2))
    model = network()
    model.features.append(nn.MaxPool2d(2))
    with pytest.raises(ValueError, match="scales must make maps of at least 2 x 2 cells for classifier"):
        Extractor(model, ("penultimate",), (X,), preprocessing=vggfast.Preprocessing.caffe())


def test_an_even_normalisation_is_no_onnx(tmp_path):
    pytest.importorskip("onnx")
    model = network()
    model.features[2] = nn.Sequential(nn.LocalResponseNorm(4), model.features[2])
    with pytest.raises(TypeError, match=r"features\.2\.0 is LocalResponseNorm"):
        onnx_writer.write(model, tmp_path / "m.onnx", {})


@pytest.mark.parametrize("model", [nn.DataParallel(network()), nn.Sequential(nn.ReLU())])
def test_only_ours_are_saved(model, tmp_path):
    with pytest.raises(TypeError, match=rf"model must be a vggfast.VGG, got {type(model).__name__}"):
        save_model(model, tmp_path / "m.safetensors")


def test_what_was_made_of_a_network_stays_when_that_changes():
    model, x = network(batch_norm=True), torch.rand(1, 3, X, X)
    model.classifier[1] = nn.LeakyReLU(0.2)
    extractor = Extractor(model, ("penultimate",), (X,), preprocessing=vggfast.Preprocessing.caffe())
    model.classifier[1] = nn.ReLU()
    engine, evaluator = vggfast.Engine(model), vggfast.evaluate.Evaluator(model)
    calls = (engine, lambda x: evaluator.dense(x, None), extractor.rows)
    before = [call(x) for call in calls]
    change_parameters(model)
    assert all(torch.equal(call(x), value) for call, value in zip(calls, before, strict=True))


def test_an_engine_says_that_it_is_not_copied():
    for made in (vggfast.Engine(network()), vggfast.evaluate.Evaluator(network())):
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="an Engine cannot be pickled or copied"):
                copied(made)


def test_an_fc_layer_on_a_map():
    """Torch's Linear in a dense head runs along the rows of the score map, which no reader computes."""
    model = network().to_conv_head()
    model.classifier.append(nn.Linear(1, 1))
    assert model(torch.rand(1, 3, X, X)).shape == (1, 10)
    for reader in (vggfast.Engine, vggfast.evaluate.Evaluator, vggfast.VGG.to_linear_head):
        with pytest.raises(
            TypeError, match=r"classifier\.7 is Linear\(.*a layer of a dense head must be a 1x1 convolution"
        ):
            reader(model)


# ---- torchvision's ---------------------------------------------------------------------------------------------------


@pytest.fixture
def theirs(torchvision):
    torch.manual_seed(0)
    vgg = torchvision.models.vgg
    model = vgg.VGG(vgg.make_layers([8, "M", 16, "M", 32, "M", 64, "M", 64, "M"]), num_classes=5)
    model.avgpool, model.classifier = (
        nn.AdaptiveAvgPool2d(2),
        nn.Sequential(nn.Linear(256, 16), nn.ReLU(), nn.Linear(16, 5)),
    )
    return model.eval()


def test_torchvisions_own(theirs, tmp_path):
    x = torch.rand(2, 3, X, X)
    with torch.no_grad():
        for reader in (by_engine, by_evaluator, by_extractor):
            for got, expected in reader(theirs, x, tmp_path):
                assert relative_error(got, expected) < 1e-5


@pytest.mark.parametrize("change", ["subclass", "instance", "class"])
def test_torchvisions_forward(theirs, change, monkeypatch):
    kind = type(theirs)
    if change == "subclass":
        theirs.__class__ = type("Mine", (kind,), {"forward": lambda self, x: kind.forward(self, x) * 2})
    elif change == "instance":
        theirs.forward = lambda x: kind.forward(theirs, x) * 2
    else:
        monkeypatch.setattr(kind, "forward", lambda self, x: self.features(x))
    with pytest.raises(TypeError, match=r"model (is|must be) .*"):
        vggfast.Engine(theirs)
    with pytest.raises(TypeError, match=r"model (is|must be) .*"):
        vggfast.evaluate.Evaluator(theirs)


@pytest.mark.parametrize("name", ["forward", "__call__"])
def test_torchvisions_class_changed_before_the_first_look(theirs, name, monkeypatch):
    kind = type(theirs)
    monkeypatch.delitem(guard._known, kind, raising=False)
    code = getattr(kind, name)
    monkeypatch.setattr(kind, name, functools.partialmethod(lambda self, x: code(self, x) * 2), raising=False)
    with pytest.raises(TypeError, match="model must be a VGG of vggfast or torchvision"):
        vggfast.Engine(theirs)


def test_torchvisions_head_is_linear(theirs):
    theirs.head = "none"  # of the caller's own
    x = torch.rand(1, 3, X, X)
    with torch.no_grad():
        assert relative_error(vggfast.Engine(theirs)(x), theirs(x)) < 1e-5


# ---- the parts of the reader -----------------------------------------------------------------------------------------


def test_nodes_have_paths_modules_and_layers():
    model = network(batch_norm=True)
    found = vggfast.graph.whole(model)
    for node in (*found.trunk, *found.head.nodes):
        assert model.get_submodule(node.path) is node.module
    names = [name for name, _ in vggfast.graph.trunk_names(found.trunk)]
    assert names[:4] == ["conv1_1", "bn1_1", "relu1_1", "pool1"]
    assert names[-4:] == ["conv5_2", "bn5_2", "relu5_2", "pool5"]
    assert [name for name, _ in vggfast.graph.fc_names(found.head.nodes)] == ["fc1", "fc2", "fc3"]
    seen = vggfast.graph.geometry(found.trunk)
    assert (seen.in_channels, seen.out_channels, seen.stride) == (3, 64, 32)
    assert seen.reach == 1 + 2 + 2 * 4 + 2 * 8 + 2 * 16
    fused = [node.path for node in vggfast.graph.fold(found.trunk)]
    assert len(fused) == len(found.trunk) - 8


def test_what_is_no_sequential_of_layers():
    for model in (nn.Linear(3, 4), nn.ModuleList(), "vgg16", type("Net", (nn.Module,), {})()):
        with pytest.raises(TypeError, match="model must be a VGG of vggfast or torchvision"):
            vggfast.graph.whole(model)
    with pytest.raises(TypeError, match=r"of its layers, got mine\.VGG"):
        vggfast.graph.whole(type("VGG", (nn.Module,), {"__module__": "mine"})())
    model = network()
    model.features = nn.Conv2d(3, 8, 3)
    with pytest.raises(TypeError, match=r"features must be an nn\.Sequential, got Conv2d"):
        vggfast.graph.whole(model)


# ---- what runs as one op ---------------------------------------------------------------------------------------------


def test_a_part_of_a_convolution_of_its_own_is_not_fused():
    class Doubled(vggfast.nn.Conv3x3):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(x, 2 * weight, bias)

    layer, x = Doubled(3, 4), torch.rand(1, 3, 8, 8)
    expected = nn.functional.conv2d(x, 2 * layer.weight, layer.bias, padding=1).relu()
    assert relative_error(vggfast.nn.FusedSequential(layer, nn.ReLU())(x), expected) < 1e-5


@pytest.mark.parametrize("where", ["module", "class"])
@pytest.mark.parametrize("follow", [(), (nn.ReLU(),)])
def test_another_part_of_a_convolution_is_run(where, follow, monkeypatch):
    layer, x = vggfast.nn.Conv3x3(3, 4), torch.rand(1, 3, 8, 8)

    def wrapped(x, weight, bias):
        return nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1), "circular"), weight, bias)

    if where == "module":
        layer._conv_forward = wrapped
    else:
        monkeypatch.setattr(nn.Conv2d, "_conv_forward", lambda self, *args: wrapped(*args))
    expected = nn.Sequential(*follow)(wrapped(x, layer.weight, layer.bias))
    assert relative_error(vggfast.nn.FusedSequential(layer, *follow)(x), expected) < 1e-5


def test_the_order_put_into_a_class_is_seen(monkeypatch):
    model = network()
    monkeypatch.setattr(nn.Sequential, "__iter__", lambda self: iter(list(self._modules.values())[:-1]))
    with pytest.raises(TypeError, match="features is FusedSequential, and the __iter__ of that class was replaced"):
        vggfast.Engine(model)


def test_code_put_into_a_class_is_run(monkeypatch):
    model, x = vggfast.nn.FusedSequential(vggfast.nn.Conv3x3(3, 4), nn.ReLU()), torch.rand(1, 3, 8, 8)
    expected = model[0](x).clamp(0, 0.1)
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x.clamp(0, 0.1))
    assert np.allclose(model(x).detach(), expected.detach(), atol=1e-6)


def test_sizes_may_be_lists():
    nodes = recognise(nn.Sequential(nn.MaxPool2d([2, 2]), nn.AdaptiveAvgPool2d([3, 3])))
    assert [node.layer for node in nodes] == [MaxPool(ceil_mode=False), AveragePool(3)]


def test_a_preprocessing_of_another_kind_is_named(tmp_path):
    model = network()
    model.preprocessing = {"mean": (1, 2, 3)}
    for reader in (
        vggfast.evaluate.Evaluator,
        vggfast.VGG.to_conv_head,
        lambda model: save_model(model, tmp_path / "m.safetensors"),
        lambda model: Extractor(model, ("pool5",), (X,)),
    ):
        with pytest.raises(TypeError, match="preprocessing of the model must be a Preprocessing, got dict"):
            reader(model)
    with pytest.raises(TypeError, match="preprocessing must be a Preprocessing, got str"):
        vggfast.evaluate.Evaluator(model, "caffe")
    del model.preprocessing
    assert model.to_conv_head().preprocessing is None


@pytest.mark.parametrize("change", [
    lambda m: m.features._modules.update({"2": None}), lambda m: setattr(m, "features", nn.Conv2d(3, 64, 3, padding=1)),
])  # fmt: skip
def test_features_that_cannot_be_copied_are_named(change):
    model = network()
    change(model)
    with pytest.raises(TypeError, match=r"features(\.2)? must be an? .*, got"):
        model.to_conv_head()
