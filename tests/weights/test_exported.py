"""Networks of torch.export, quantised by PT2E and plain: what a file or a live module says is computed."""

import pytest
import torch
from torch import nn

import vggfast
from tests.support.comparisons import relative_error
from tests.support.exported import INT8, Layer, Rounded, Vgg
from vggfast.cli import main
from vggfast.quantisation import integers
from vggfast.weights import load_model
from vggfast.weights.formats import read

pytestmark = pytest.mark.usefixtures("one_thread")
PREPROCESSING = vggfast.Preprocessing.torchvision()


def saved(exported, path):
    torch.export.save(exported, path)
    return path


def check(model, module, count=12):
    """A value near the middle of two steps may go either way, and then changes what follows: not of most images."""
    engine = vggfast.Engine(model, dtype="int8", size=64)
    x = torch.randn(count, 3, 64, 64)
    with torch.no_grad():
        errors = torch.tensor([relative_error(engine(each), module(each)) for each in x.split(2)])
    assert errors.median() < 1e-5
    assert errors.max() < 0.1


FORMS = {
    "uint8": lambda vgg: None,
    "no ReLUs": lambda vgg: [vgg.layers.__setitem__(i, nn.Identity()) for i in vgg.of(nn.ReLU)],
    "weights of uint8": lambda vgg: [weights_of_uint8(vgg.layers[i]) for i in vgg.of(Layer)],
    "images as they are": lambda vgg: vgg.layers.__setitem__(0, nn.Identity()),
    "a rounded output": lambda vgg: vgg.layers.append(Rounded(0.02, 120, 0, 255, torch.uint8)),
    "FC layers of floats": lambda vgg: [vgg.layers.__setitem__(i, plain(vgg.layers[i])) for i in vgg.of(Layer)[-2:]],
    "a softmax": lambda vgg: vgg.layers.append(nn.Softmax(1)),
}  # fmt: skip


def weights_of_uint8(layer):
    layer.whole = (layer.whole.short() + 128).to(torch.uint8)
    layer.zero_point += 128
    layer.range = 0, 255


def plain(layer):
    linear = nn.Linear(layer.whole.shape[1], len(layer.whole))
    nn.init.normal_(linear.weight, std=0.2)
    return linear


def in_floats(batch_norm):
    """The same network before it is quantised, of other weights."""
    layers = []
    for layer in Vgg().layers:
        if not isinstance(layer, Layer):
            layers += [] if isinstance(layer, Rounded) else [layer]
            continue
        outputs, inputs = layer.whole.shape[:2]
        if layer.whole.dim() == 2:
            layers.append(nn.Linear(inputs, outputs))
        else:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), *([nn.BatchNorm2d(outputs)] if batch_norm else [])]
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("live", [True, False], ids=["live", "file"])
@pytest.mark.parametrize("name", FORMS)
def test_the_same_as_by_torch(tmp_path, name, live):
    vgg = Vgg()
    FORMS[name](vgg)
    exported = vgg.exported()
    found = read(exported.module() if live else saved(exported, tmp_path / "m.pt2"), preprocessing=PREPROCESSING)
    assert (found.format, found.part) == ("pt2", "the whole network")
    if name == "a softmax":
        assert any("a softmax behind the scores, is left out" in note for note in found.notes)
        vgg.layers = vgg.layers[:-1]
    check(found.model, vgg)


def test_int8_activations(tmp_path):
    vgg = Vgg(INT8)
    check(read(saved(vgg.exported(), tmp_path / "m.pt2"), preprocessing=PREPROCESSING).model, vgg)


def test_whole_numbers_and_scales_are_those_of_the_module():
    vgg = Vgg()
    model = read(vgg.exported().module(), preprocessing=PREPROCESSING).model
    layers = [vgg.layers[i] for i in vgg.of(Layer)]
    assert len(model.quantisation.layers) == len(layers) == 11
    for layer, (path, scales) in zip(layers, model.quantisation.layers.items(), strict=True):
        own = model.get_submodule(path)
        assert torch.equal(integers(path, own.weight, scales.weight), layer.whole)
        assert torch.equal(scales.weight, layer.scale)
        assert torch.equal(own.bias, layer.bias)
        assert own.bias.data_ptr() != layer.bias.data_ptr()
    assert model.quantisation.input.scale == vgg.layers[0].settings[0]
    assert model.quantisation.layers["classifier.6"].source == vgg.layers[vgg.of(Rounded)[-1]].settings[0]


def test_as_torchao_makes_it(tmp_path, capsys):
    """X86InductorQuantizer's, of a network in torchvision's layers with batch norm, as a module and as a file."""
    quantize_pt2e = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    plain, x = in_floats(batch_norm=True), torch.randn(2, 3, 64, 64)
    graph = torch.export.export(plain, (x,)).module()
    config = x86.get_default_x86_inductor_quantization_config()
    prepared = quantize_pt2e.prepare_pt2e(graph, x86.X86InductorQuantizer().set_global(config))
    prepared(x)
    converted = quantize_pt2e.convert_pt2e(prepared)
    check(read(converted, preprocessing=PREPROCESSING).model, converted)
    path = saved(torch.export.export(converted, (x,)), tmp_path / "m.pt2")
    assert main(["convert", str(path), str(tmp_path / "m.safetensors"), "--preprocessing", "torchvision"]) == 0
    assert "11 layers; 10 layers read 8 bits; input rounded to 8 bits" in capsys.readouterr().out
    check(load_model(tmp_path / "m.safetensors")[0], converted)


@pytest.mark.parametrize("live", [True, False], ids=["live", "file"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_networks_of_floats(tmp_path, batch_norm, live):
    """The file's size and another, where its own pool averages as the network's."""
    plain, x = in_floats(batch_norm), torch.randn(2, 3, 64, 64)
    exported = torch.export.export(plain, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    found = read(exported.module() if live else saved(exported, tmp_path / "m"), preprocessing=PREPROCESSING)
    assert found.model.quantisation is None
    with torch.no_grad():
        for images in (x, torch.randn(1, 3, 96, 128)):
            assert relative_error(found.model(images), plain(images)) < 1e-5


class Rows(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


FLATTENS = {
    "view": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: x.reshape(x.shape[0], -1),
    "values": lambda x: x.view(x.size(0), 104),
    "values of any N": lambda x: x.view(-1, 104),
}


def in_rows(make, batch_norm=False):
    layers = in_floats(batch_norm)
    return nn.Sequential(*(Rows(make) if isinstance(each, nn.Flatten) else each for each in layers)).eval()


@pytest.mark.parametrize("dynamic", [None, ({0: torch.export.Dim("n")},)], ids=["fixed", "open"])
@pytest.mark.parametrize("name", FLATTENS)
def test_views_that_flatten(tmp_path, name, dynamic):
    plain, x = in_rows(FLATTENS[name]), torch.randn(2, 3, 64, 64)
    exported = torch.export.export(plain, (x,), dynamic_shapes=dynamic)
    for source in (exported, exported.module(), saved(exported, tmp_path / "m.pt2")):
        found = read(source, preprocessing=PREPROCESSING)
        assert found.part == "the whole network"
        with torch.no_grad():
            assert relative_error(found.model(x), plain(x)) < 1e-5


def test_views_of_maps_of_any_size():
    plain, x = in_rows(FLATTENS["view"]), torch.randn(2, 3, 64, 96)
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=64), 3: torch.export.Dim("w", min=64)}
    found = read(torch.export.export(plain, (x,), dynamic_shapes=(sizes,)), preprocessing=PREPROCESSING)
    with torch.no_grad():
        assert relative_error(found.model(x), plain(x)) < 1e-5


def test_a_network_with_our_layers():
    """Is read when torch's are back, as the error says."""
    plain, x = in_floats(True), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = plain(x)
    model = vggfast.accelerate(plain)
    with pytest.raises(
        ValueError, match=r"is a vggfast\..*: vggfast\.accelerate\.restore\(model\), before it is exported"
    ):
        read(torch.export.export(model, (x,)), preprocessing=PREPROCESSING)
    found = read(torch.export.export(vggfast.accelerate.restore(model), (x,)), preprocessing=PREPROCESSING)
    with torch.no_grad():
        assert relative_error(found.model(x), expected) < 1e-5


def test_convolutions_alone():
    vgg = Vgg()
    found = read(vgg.exported().module(), features_only=True, preprocessing=PREPROCESSING)
    vgg.layers = vgg.layers[: vgg.of(nn.Flatten)[0]]
    check(found.model, vgg)
    assert found.part == "features only (no FC layers)"
