"""FusedSequential with batch norm: what is fused with it, and that it trains and normalises as torch's does."""

import re

import pytest
import torch
from torch import nn

from tests.models.test_nn import CONV, CONV_RELU_POOL, image, ops_of
from tests.support.comparisons import plain_torch, relative_error
from vggfast.nn import Conv1x1, Conv3x3, FusedSequential, MaxPool2x2

pytestmark = pytest.mark.usefixtures("one_thread")


def normed(**options) -> FusedSequential:
    return FusedSequential(
        Conv3x3(3, 9), nn.BatchNorm2d(9, **options), nn.ReLU(inplace=True), MaxPool2x2(),
        Conv3x3(9, 10), nn.BatchNorm2d(10, **options), nn.ReLU(inplace=True),
        Conv1x1(10, 6), nn.BatchNorm2d(6, **options),
    ).double()  # fmt: skip


NORMED = [CONV, "batch_norm"] * 3


def assert_trains_like(net, twin, x):
    """Output, gradients and buffers of a step; a bias that batch norm takes out again has a gradient of rounding."""
    results = []
    for model in (net, twin):
        own = x.clone().requires_grad_()
        y = model(own)
        weights = [p for name, p in model.named_parameters() if "bias" not in name or p.shape == (6,)]
        results.append([y, *torch.autograd.grad(y.pow(3).sum(), [own, *weights]), *model.buffers()])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.5}], ids=str
)
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_torchs(options, training):
    net = normed(**options).train(training)
    twin = plain_torch(net).train(training)
    for _ in range(3):
        assert_trains_like(net, twin, image())
    assert ops_of(net, image()) == NORMED


def test_autocast_keeps_maps_in_bfloat16_where_convolutions_do(tiles):
    net, x = normed().float(), image().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assert ops_of(net, x) == NORMED
        y = net(x)
    assert y.dtype == torch.bfloat16
    leaves = [x, *net.parameters()]
    twin = plain_torch(net)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = twin(x)
    exact = plain_torch(net).double()(x.double())
    assert relative_error(y, exact) <= 2 * relative_error(theirs, exact)
    assert [g.dtype for g in torch.autograd.grad(y.float().pow(2).sum(), leaves)] == [torch.float32] * len(leaves)


def test_a_frozen_batch_norm_in_a_network_that_trains():
    net = normed()
    net[1].eval()
    net[5].requires_grad_(False)
    x, before = image(requires_grad=True), net[1].running_mean.clone()
    assert ops_of(net, x) == NORMED
    assert torch.equal(net[1].running_mean, before)
    leaves = [x, net[1].weight, net[1].bias]
    twin = plain_torch(net)
    ours = torch.autograd.grad(net(x).pow(3).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad(twin(x).pow(3).sum(), [x, twin[1].weight, twin[1].bias]))


def test_a_batch_norm_that_was_rewritten():
    net, x = normed(), image()
    twin = plain_torch(net)
    for model in (net, twin):
        model[1].running_mean = model[1].running_var = None
        model[5].momentum = None
        model[8].track_running_stats = False
    assert_trains_like(net, twin, x)


FOLDED = [CONV_RELU_POOL, CONV, "batch_norm", CONV]  # the second has many weights beside its maps


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 0.5}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inference_has_batch_norm_in_the_convolution(options, dtype):
    net, x = normed(**options).to(dtype), image().to(dtype)
    net[4].bias = None
    net(x)  # in training: the statistics count
    net.eval()
    with torch.no_grad():
        for change in (lambda: None, lambda: net[0].weight.data.mul_(2), lambda: net[1].running_var.data.add_(1)):
            change()
            assert ops_of(net, x) == FOLDED
            twin = plain_torch(net).double().eval()
            assert relative_error(net(x), twin(x.double())) < (1e-13 if dtype is torch.float64 else 1e-5)


NOT_FOLDED = {
    "gradients to a parameter": lambda net, x: net[0].requires_grad_(),
    "gradients to a bias": lambda net, x: net[1].bias.requires_grad_(),
    "gradients to images": lambda net, x: x.requires_grad_(),
    "training": lambda net, x: net[1].train(),
    "no statistics": lambda net, x: (setattr(net[1], "running_mean", None), setattr(net[1], "running_var", None)),
}


@pytest.mark.parametrize("change", NOT_FOLDED.values(), ids=NOT_FOLDED)
def test_what_keeps_batch_norm_out_of_the_convolution(change):
    net, x = normed()[:4].eval().requires_grad_(False), image()
    assert ops_of(net, x) == [CONV_RELU_POOL]
    change(net, x)
    twin = plain_torch(net)
    assert ops_of(net, x) == [CONV, "batch_norm"]
    assert relative_error(net(x), twin(x)) < 1e-13


UNFUSED = {
    "hook": lambda net: net[1].register_forward_hook(lambda m, args, y: None),
    "subclass": lambda net: net.__setitem__(1, type("Own", (nn.BatchNorm2d,), {})(9).double()),
    "forward": lambda net: setattr(net[1], "forward", lambda x: x),
    "SyncBatchNorm": lambda net: net.__setitem__(1, nn.SyncBatchNorm(9).double()),
    "parametrised": lambda net: nn.utils.parametrize.register_parametrization(net[1], "weight", nn.Identity()),
}


@pytest.mark.parametrize("change", UNFUSED.values(), ids=UNFUSED)
def test_what_unfuses_a_batch_norm(change):
    net = normed()
    change(net)
    assert ops_of(net, image()) == [CONV, "max_pool", *NORMED[2:]]


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 4, 8, 8)], ids=str)
def test_a_batch_norms_error_is_torchs(shape):
    net = FusedSequential(nn.BatchNorm2d(3), nn.ReLU())
    with pytest.raises((ValueError, RuntimeError)) as theirs:
        nn.BatchNorm2d(3)(torch.zeros(shape))
    with pytest.raises(theirs.type, match=re.escape(str(theirs.value))):
        net(torch.zeros(shape))


def test_functional_calls_see_torchs_batch_norm():
    net = normed()
    parameters, x = dict(net.named_parameters()), image()

    def loss(parameters, model):
        return torch.func.functional_call(model, parameters, (x,)).pow(2).sum()

    net.eval()
    ours, theirs = (torch.func.grad(loss)(parameters, model) for model in (net, plain_torch(net)))
    torch.testing.assert_close(ours, theirs)
