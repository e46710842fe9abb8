"""Inputs that torch's layers take, and our kernels do not: the accelerated model computes as before."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

import vggfast
from tests.support.comparisons import relative_error
from vggfast import nn as ours

pytestmark = pytest.mark.usefixtures("one_thread")
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("layer", [nn.MaxPool2d(2), nn.Sequential(nn.Identity(), nn.MaxPool2d(2))])
def test_pooling_of_whole_numbers(layer, dtype):
    x = torch.randint(0, 99, (2, 3, 6, 4), dtype=dtype)
    for each in (x, x[0]):
        assert torch.equal(vggfast.accelerate(layer)(each), layer(each))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:Deprecated")
def test_pooling_of_quantised_maps():
    x = torch.quantize_per_tensor(torch.rand(1, 3, 6, 4), 0.01, 0, torch.quint8)
    assert torch.equal(ours.MaxPool2x2()(x).int_repr(), nn.MaxPool2d(2)(x).int_repr())


@pytest.mark.parametrize(
    "shape", [(2, 7, 5), (2, 7, 4, 5, 3), (2, 7, 2, 2, 2, 2), (2, 7, 0, 4), (2, 0, 3, 4), (0, 7, 3, 4)]
)
def test_normalisation_of_any_rank(shape):
    layer, x = nn.LocalResponseNorm(3), torch.randn(shape)
    assert torch.equal(vggfast.accelerate(layer)(x), layer(x))


def test_normalisation_of_whole_numbers():
    layer, x = nn.LocalResponseNorm(3), torch.randint(0, 99, (2, 7, 4, 5))
    assert torch.equal(vggfast.accelerate(layer)(x), layer(x))


def normalised() -> dict[str, nn.Module]:
    conv = nn.Conv2d(3, 4, 3, padding=1)
    net = {
        "batch norm": nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        "LRN": nn.Sequential(conv, nn.ReLU(), nn.LocalResponseNorm(3)),
        "LRN alone": nn.LocalResponseNorm(3),
    }
    return {name: each.double() for name, each in net.items()}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", normalised())
def test_forward_mode(name, training):
    model = normalised()[name].train(training)
    fast = vggfast.accelerate(model)
    x, v = (torch.randn(2, 3, 6, 4, dtype=torch.float64) for _ in range(2))
    with forward_ad.dual_level():
        got, want = (forward_ad.unpack_dual(net(forward_ad.make_dual(x, v))).tangent for net in (fast, model))
    assert relative_error(got, want) < 1e-12
    if not training:  # torch.func refuses to change running statistics
        assert relative_error(torch.func.jvp(fast, (x,), (v,))[1], want) < 1e-12
