"""Convolutions in a row: gradients that come masked, to the bit those of layers that run alone; and who sees which."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.comparisons import assert_same_bits
from vggfast.nn import Conv1x1, Conv3x3, FusedSequential, MaxPool2x2
from vggfast.ops import _backends

pytestmark = pytest.mark.usefixtures("one_thread")


def network(dtype) -> FusedSequential:
    """Rows of ReLUs, a pool, and a convolution without either; a layer of each kernel."""
    return FusedSequential(
        Conv3x3(3, 16), nn.ReLU(), Conv3x3(16, 24), nn.ReLU(), Conv3x3(24, 16), nn.ReLU(), MaxPool2x2(),
        Conv3x3(16, 16), nn.ReLU(), Conv1x1(16, 16), nn.ReLU(), Conv3x3(16, 24), Conv3x3(24, 8), nn.ReLU(),
    ).to(dtype)  # fmt: skip


@pytest.fixture
def masks(monkeypatch):
    """A function that says whether dgrad is to mask gx; and a list of what the op was asked for since."""
    backend, asked = _backends.OF_DEVICE["cpu"](0), []

    def use(value: bool) -> list[bool]:
        monkeypatch.setattr(type(backend), "masks_gx", value)
        asked.clear()
        return asked

    run = type(backend).run

    def watched(self, name, *args, **options):
        if name == "conv_dgrad":
            asked.append(args[4] is not None)
        return run(self, name, *args, **options)

    monkeypatch.setattr(type(backend), "run", watched)
    return use


def draw(dtype, n=2, h=9, w=10):
    torch.manual_seed(4)
    return network(dtype), torch.randn(n, 3, h, w).to(dtype).requires_grad_()


def gradients(model, x, create_graph=False):
    y = model(x)
    gy = torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(y.dtype)
    return torch.autograd.grad(y, [x, *model.parameters()], gy, create_graph=create_graph)


def check(masks, dtype, n) -> None:
    model, x = draw(dtype, n)
    masks(False)
    expected = gradients(model, x)
    asked = masks(True)
    for ours, others in zip(gradients(model, x), expected, strict=True):
        assert_same_bits(ours, others)
    # From the last layer to the first, what is before each: nothing, two ReLUs, a pool, two ReLUs, the input.
    assert asked == [False, True, True, False, True, True, False]


@pytest.mark.parametrize("n", [0, 2])
def test_the_same_bits(masks, n):
    check(masks, torch.float64, n)


@pytest.mark.backends("sim")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_same_bits_on_cuda(backend, masks, dtype):
    check(masks, dtype, 2)


@pytest.mark.parametrize("frozen", ["weights", "all but the last", "x"])
def test_what_needs_no_gradient(masks, frozen):
    model, x = draw(torch.float64)
    x.requires_grad_(frozen != "x")
    convs = [module for module in model if hasattr(module, "weight")]
    for module in convs[:-1] if "last" in frozen else convs if frozen == "weights" else []:
        module.requires_grad_(False)
    wanted = [t for t in (x, *model.parameters()) if t.requires_grad]
    masks(False)
    expected = torch.autograd.grad(model(x).square().sum(), wanted)
    asked = masks(True)
    for ours, others in zip(torch.autograd.grad(model(x).square().sum(), wanted), expected, strict=True):
        assert_same_bits(ours, others)
    assert sum(asked) == 4


def test_second_derivatives(masks):
    model, x = draw(torch.float64, 1, 5, 4)
    found = []
    for masked in (False, True):
        asked = masks(masked)
        first = gradients(model, x, create_graph=True)
        found.append(torch.autograd.grad(sum(t.square().sum() for t in first), [x, *list(model.parameters())[:-1]]))
        assert any(asked) == masked
    for ours, others in zip(*found, strict=True):
        torch.testing.assert_close(ours, others, rtol=1e-12, atol=1e-12 * others.abs().max().item())


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Functions, Dispatches])
def test_modes_see_what_layers_alone_give(masks, mode):
    model, x = draw(torch.float64)
    asked = masks(True)
    with mode():
        gradients(model, x)
    assert not any(asked)
    with torch.device("cpu"):
        gradients(model, x)
    assert any(asked)


@pytest.mark.parametrize("watch", ["forward hook", "pre-hook", "backward hook"])
def test_hooks_see_whole_gradients(masks, watch):
    """Of what is between the first two layers."""
    model, x = draw(torch.float64)
    seen = []

    def whole():
        first, second = model[0], model[2]
        y = torch.relu(nn.functional.conv2d(x, first.weight, first.bias, padding=1))
        y.retain_grad()
        rest = model[2:](y)
        rest.backward(torch.linspace(-1, 1, rest.numel()).reshape(rest.shape).to(rest.dtype))
        assert second.weight.grad is not None
        return y

    y = whole()
    if watch == "forward hook":
        model[1].register_forward_hook(lambda module, args, y: y.register_hook(seen.append) and None)
    elif watch == "pre-hook":
        model[2].register_forward_pre_hook(lambda module, args: args[0].register_hook(seen.append) and None)
    else:
        model[2].register_full_backward_hook(lambda module, gx, gy: seen.append(gx[0]))
    asked = masks(True)
    gradients(model, x)
    assert any(asked)  # of the layers behind
    torch.testing.assert_close(seen[0], y.grad)
    assert (seen[0][y == 0] != 0).any()


def test_transforms_run_the_layers_alone(masks):
    model, x = draw(torch.float64)
    asked = masks(True)
    params = dict(model.named_parameters())
    found = grad(lambda params, x: functional_call(model, params, (x,)).square().sum())(params, x)
    assert not any(asked)
    assert all(t.abs().max() > 0 for t in found.values())


def test_no_gradient_no_mask(masks, monkeypatch):
    model, x = draw(torch.float64)
    masks(True)
    with torch.no_grad():
        expected = model(x)
    assert_same_bits(model(x).detach(), expected)


@pytest.mark.backends("sim")
def test_under_autocast(backend, masks):
    """The mask is that of the rounded layer."""
    model, x = draw(torch.float32)
    found = []
    for masked in (False, True):
        masks(masked)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(gradients(model, x))
    for ours, others in zip(*found, strict=True):
        assert_same_bits(ours, others)


@pytest.mark.backends("sim")
def test_scatters_of_a_backward(backend, sim, masks):
    """Of the seven layers the pool's alone, and the one without a ReLU before it, have their masks undone in memory;
    unmasked gradients need one for each layer that has a mask and is Hopper's."""
    model, x = draw(torch.bfloat16)
    counts = []
    for masked in (False, True):
        masks(masked)
        sim.clear_counters()
        gradients(model, x)
        counts.append(sim.counters()["mask_scatter_kernel"]["launches"])
    assert counts == [5, 2]
