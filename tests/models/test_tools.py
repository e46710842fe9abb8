"""Tools that trace a network, or look its layers up by class: torch.fx, quantisation, ONNX, counters, captum."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.support.comparisons import plain_torch, relative_error
from vggfast import VGG
from vggfast.nn import Conv1x1, Conv3x3, FusedSequential, Linear, LocalResponseNorm, MaxPool2x2
from vggfast.ops import fc

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def small_linear_layers_too(monkeypatch):
    monkeypatch.setattr(fc, "LEAST_WEIGHTS", 0)


# Not where results are compared bit by bit with those of a graph of torch.fx, in which linear layers are torch's.
on_our_kernels = pytest.mark.usefixtures("small_linear_layers_too")

MODULES = {
    "Conv3x3": lambda: Conv3x3(3, 8),
    "Conv1x1": lambda: Conv1x1(3, 8),
    "MaxPool2x2": lambda: MaxPool2x2(),
    "MaxPool2x2, ceil mode": lambda: MaxPool2x2(ceil_mode=True),
    "LocalResponseNorm": lambda: LocalResponseNorm(),
    "Linear": lambda: nn.Sequential(nn.Flatten(), Linear(3 * 13 * 10, 4)),
    "FusedSequential": lambda: FusedSequential(
        Conv3x3(3, 9), nn.BatchNorm2d(9), nn.ReLU(), MaxPool2x2(), Conv1x1(9, 4), nn.ReLU(True), nn.Flatten(),
        Linear(4 * 6 * 5, 5),
    ),
}  # fmt: skip
each_module = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


def x(*shape):
    return torch.rand(shape or (2, 3, 13, 10))


def vgg(**arguments) -> VGG:
    return VGG("A-LRN", num_classes=5, width=0.1, hidden=16, pool_size=1, init="he", **arguments).eval()


@each_module
def test_fx_traces_each(make):
    module, images = make().eval(), x()
    assert torch.equal(torch.fx.symbolic_trace(module)(images), module(images))


@pytest.mark.parametrize("head", ["linear", "conv", "none"])
def test_fx_traces_networks(head):
    model, images = vgg(head=head), x(1, 3, 64, 64)
    assert torch.equal(torch.fx.symbolic_trace(model)(images), model(images))


def test_a_traced_layer_takes_batches_alone():
    graph = torch.fx.symbolic_trace(Conv3x3(3, 8))
    with pytest.raises(ValueError, match=r"x must have 4 axes \(N, C, H, W\), got shape \(3, 13, 10\)"):
        graph(x()[0])


def test_create_feature_extractor(torchvision):
    from torchvision.models.feature_extraction import create_feature_extractor

    model, images = vgg(), x(1, 3, 64, 64)
    taps = {"features.5": "relu", "features.6": "pool", "classifier.0": "fc"}
    found = create_feature_extractor(model, taps)(images)
    assert torch.equal(found["relu"], model.features[:6](images))
    assert torch.equal(found["pool"], model.features[:7](images))
    assert found["fc"].shape == (1, 16)


def test_fx_fuses_nothing_wrong():
    from torch.fx.experimental.optimization import fuse

    net, images = MODULES["FusedSequential"]().eval(), x()
    assert torch.equal(fuse(net)(images), net(images))


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore::UserWarning:torch.ao.quantization")
def test_prepare_fx_finds_what_it_quantises():
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    def converted(model):
        prepared = quantize_fx.prepare_fx(model, get_default_qconfig_mapping("x86"), (images,))
        prepared(images)
        return quantize_fx.convert_fx(prepared)(images)

    images = x(4, 3, 16, 12)
    net = FusedSequential(
        Conv3x3(3, 9), nn.ReLU(), MaxPool2x2(), Conv1x1(9, 4), nn.ReLU(), nn.Flatten(), Linear(4 * 8 * 6, 5)
    ).eval()
    error = relative_error(converted(net), net(images))
    assert error == pytest.approx(relative_error(converted(plain_torch(net)), net(images)), rel=0.2)
    assert error > 0


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_quantize_dynamic_says_what_to_quantise():
    from torch.ao.quantization import quantize_dynamic

    with pytest.warns(UserWarning, match=r"leaves Linear of vggfast in float, .*quantise vggfast.accelerate.restore\("):
        quantize_dynamic(nn.Sequential(Linear(4, 5)), {nn.Linear}, dtype=torch.qint8)
    linear = Linear(4, 5)
    assert not hasattr(linear, "qconfig")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        linear.qconfig = 3
    assert linear.qconfig == 3
    del linear.qconfig
    assert not hasattr(linear, "qconfig")


@pytest.mark.parametrize("dynamo", [False, True], ids=["TorchScript", "torch.export"])
@pytest.mark.parametrize("name", [*MODULES, "VGG", "dense VGG"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@on_our_kernels
def test_onnx_files_of_any_module(name, dynamo, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    if dynamo:
        pytest.importorskip("onnxscript")
    model, images = MODULES[name]() if name in MODULES else vgg(head="conv" if "dense" in name else "linear"), x()
    images = images if name in MODULES else x(1, 3, 64, 64)
    torch.onnx.export(model.eval(), (images,), tmp_path / "model.onnx", dynamo=dynamo)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(images), rtol=1e-4, atol=1e-5)


# ---- counters ------------------------------------------------------------------------------------------------------


@each_module
@on_our_kernels
def test_flop_counter_counts_as_of_torchs(make):
    def flops(module):
        images = x().requires_grad_()
        with FlopCounterMode(display=False) as forward:
            y = module(images)
        with FlopCounterMode(display=False) as backward:
            y.sum().backward()
        return forward.get_total_flops(), backward.get_total_flops()

    module = make()
    assert flops(module) == flops(plain_torch(module))


def _without_warnings(module: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(module)


@each_module
@on_our_kernels
def test_thop_counts_as_of_torchs(make):
    thop, module = _without_warnings("thop"), make().eval()
    counts = [thop.profile(m, (x(),), verbose=False) for m in (plain_torch(module), module)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("engine", ["pytorch", "aten"])
@on_our_kernels
def test_ptflops_counts_as_of_torchs(engine, torchvision):  # which it imports where it is
    ptflops = _without_warnings("ptflops")
    net = FusedSequential(
        Conv3x3(3, 9), nn.ReLU(), Conv1x1(9, 4), nn.Flatten(), Linear(520, 5)
    )  # it counts pools twice
    counts = [
        ptflops.get_model_complexity_info(m, (3, 13, 10), False, False, backend=engine) for m in (plain_torch(net), net)
    ]
    assert counts[0] == counts[1]


class Flat(nn.Module):
    """captum has no rule for nn.Flatten, and asks for none of what a module with children does."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.features, self.fc = FusedSequential(*layers[:-1]), layers[-1]

    def forward(self, images):
        return self.fc(self.features(images).flatten(1))


@on_our_kernels
def test_relevance_propagates_as_through_torchs():
    attr = _without_warnings("captum.attr")
    ours = Flat(Conv3x3(3, 9), nn.ReLU(), MaxPool2x2(), Conv1x1(9, 4), nn.ReLU(), Linear(120, 5)).eval()
    theirs, images = Flat(*map(plain_torch, (*ours.features, ours.fc))).eval(), x()
    theirs.features = nn.Sequential(*theirs.features)
    found, expected = (attr.LRP(model).attribute(images, target=1) for model in (ours, theirs))
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected)
