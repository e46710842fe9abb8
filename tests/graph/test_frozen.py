"""Batch norms of other classes than BatchNorm2d: torchvision's frozen ones, with and without it, and SyncBatchNorm."""

import copy
import re

import pytest
import torch
from torch import nn

import vggfast
from tests.support.comparisons import relative_error
from vggfast.graph import layers, recognise

pytestmark = pytest.mark.usefixtures("one_thread")

SOURCE = '''
class FrozenBatchNorm2d(torch.nn.Module):
    """What torchvision's does, of a torchvision that is not there."""

    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.eps = eps
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.ones(num_features))
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.zeros(num_features))

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]
'''


def made_in(room: str) -> type[nn.Module]:
    scope = {"__name__": room, "torch": torch}
    exec(SOURCE, scope)
    return scope["FrozenBatchNorm2d"]


@pytest.fixture(params=["torchvision's", "without torchvision"])
def kind(request):
    if request.param == "without torchvision":
        return made_in("torchvision.ops.misc")
    request.getfixturevalue("torchvision")
    from torchvision.ops.misc import FrozenBatchNorm2d

    return FrozenBatchNorm2d


def draw(norm: nn.Module) -> nn.Module:
    for name, tensor in norm.state_dict().items():
        if tensor.dim():
            tensor.uniform_(-1, 1) if name in ("bias", "running_mean") else tensor.uniform_(0.5, 2)
    return norm


def network(kind) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), draw(kind(16)), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 9, 1, bias=False), draw(kind(9, eps=0.5)),
    )  # fmt: skip


def assert_engine_computes(model):
    x = torch.randn(2, 3, 20, 24)
    with torch.no_grad():
        exact = copy.deepcopy(model).eval().double()(x.double())
    assert relative_error(vggfast.Engine(model)(x), exact) < 1e-5


@pytest.mark.parametrize("training", [False, True])
def test_an_engine_folds_frozen_ones(kind, training):
    assert_engine_computes(network(kind).train(training))


def test_an_engine_folds_those_of_processes():
    assert_engine_computes(nn.SyncBatchNorm.convert_sync_batchnorm(network(nn.BatchNorm2d)))


def test_torchvisions_vgg_with_frozen_ones(torchvision, kind):
    model = torchvision.models.vgg11_bn(num_classes=10, init_weights=False)
    for i, layer in enumerate(model.features):
        if isinstance(layer, nn.BatchNorm2d):
            model.features[i] = draw(kind(layer.num_features))
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Sequential(nn.Linear(512, 10))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        exact = copy.deepcopy(model).eval().double()(x.double())
    assert relative_error(vggfast.Engine(model)(x), exact) < 1e-5


def test_what_is_read(kind):
    norm = draw(kind(16, eps=0.25))
    (node,) = recognise(nn.Sequential(norm))
    assert isinstance(node.layer, layers.BatchNorm)
    assert node.layer.eps == 0.25
    for mine, name in (("mean", "running_mean"), ("var", "running_var"), ("weight", "weight"), ("bias", "bias")):
        assert getattr(node.layer, mine).data_ptr() == getattr(norm, name).data_ptr()


class Hidden:
    """A forward that a subclass puts before it."""

    def forward(self, x):
        return -super().forward(x)


REFUSED = {
    "a subclass with its own forward": (
        lambda kind: type("Own", (Hidden, kind), {})(16), "is Own, a FrozenBatchNorm2d whose forward is its own"),
    "of another package": (lambda kind: made_in("detectron2.layers")(16), "a layer must be one that a VGG has"),
    "a hook": (lambda kind: _with(kind(16), lambda norm: norm.register_forward_hook(lambda *args: None)),
               "is FrozenBatchNorm2d, with a forward hook"),
    "another forward": (lambda kind: _with(kind(16), lambda norm: setattr(norm, "forward", lambda x: x)),
                        "is FrozenBatchNorm2d, whose forward was replaced"),
    "no weight": (lambda kind: _with(kind(16), lambda norm: setattr(norm, "weight", None)),
                  "must have a weight and a bias, got None"),
    "a deleted mean": (lambda kind: _with(kind(16), lambda norm: delattr(norm, "running_mean")),
                       "must have running_mean, which was deleted"),
    "a bias of another shape": (lambda kind: _with(kind(16), lambda norm: setattr(norm, "bias", torch.zeros(3))),
                                r"its bias must have shape \(16,\), got \(3,\)"),
}  # fmt: skip


def _with(norm, change):
    change(norm)
    return norm


@pytest.mark.parametrize(("build", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(kind, build, text):
    model = nn.Sequential(nn.Conv2d(3, 16, 1), build(kind))
    with pytest.raises(TypeError, match=f"model.1 .*{text}"):
        vggfast.Engine(model)


def test_a_class_that_was_changed():
    kind = made_in("torchvision.ops.misc")
    kind.forward = lambda self, x: -x
    with pytest.raises(TypeError, match=re.escape("model.1 is FrozenBatchNorm2d")):
        vggfast.Engine(nn.Sequential(nn.Conv2d(3, 16, 1), kind(16)))


def test_one_that_follows_no_convolution(kind):
    with pytest.raises(TypeError, match=r"model.1 is FrozenBatchNorm2d.*right behind a convolution"):
        vggfast.Engine(nn.Sequential(nn.ReLU(), kind(3)))
