"""What torch records in place of running it, and vmap over nothing."""

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import vggfast
from vggfast import ops

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
def test_jit_trace(tmp_path, grad_mode, frozen):
    """What was traced in any grad mode computes and differentiates as the module, loaded and frozen too."""
    module, x = vggfast.VGG("A-LRN", width=0.1, head="none").eval(), torch.randn(1, 3, 32, 32)
    with grad_mode():
        torch.jit.save(torch.jit.trace(module, (x,)), tmp_path / "traced.pt")
    traced = torch.jit.load(tmp_path / "traced.pt")
    for parameter in traced.parameters():
        parameter.requires_grad_(not frozen)
    for shape in ((1, 3, 32, 32), (2, 3, 48, 40)):
        x = torch.randn(shape)
        assert_close(traced(x), module(x))
        x.requires_grad_()
        assert_close(torch.autograd.grad(traced(x).sum(), x), torch.autograd.grad(module(x).sum(), x))


RECORDERS = {
    "jit.trace": lambda f, x: torch.jit.trace(f, (x,)),
    "make_fx": lambda f, x: make_fx(f)(x),
    "make_fx, before dispatch": lambda f, x: make_fx(f, pre_dispatch=True)(x),
    "make_fx, symbolic": lambda f, x: make_fx(f, tracing_mode="symbolic")(x),
    "fake mode": lambda f, x: _in_fake_mode(f, x),
}


def _in_fake_mode(f, x):
    with FakeTensorMode(allow_non_fake_inputs=True):
        return f(x)


@pytest.mark.parametrize("record", RECORDERS.values(), ids=RECORDERS)
def test_what_runs_beside_torch_is_not_recorded(record):
    """Its results would be constants, or memory that nobody wrote."""
    engine, x = vggfast.Engine(nn.Sequential(nn.ReLU())), torch.randn(1, 3, 4, 4)
    with torch.no_grad(), pytest.raises(TypeError, match="a call of an Engine cannot be traced"):
        record(lambda t: engine(t), x)
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(TypeError, match="a call of crop_images cannot be traced"):
        record(lambda t: ops.crop_images([picture], 4, shifts=t), torch.ones(1, 3))
    assert_close(engine(x), x.relu())  # and works again


@pytest.mark.parametrize(("op", "shapes", "in_dims", "expected"), [
    (lambda x, weight: ops.conv3x3(x, weight, relu=True), [(0, 2, 3, 5, 4), (6, 3, 3, 3)], (0, None), (2, 6, 5, 4)),
    (ops.conv3x3, [(2, 3, 5, 4), (6, 0, 3, 3, 3)], (None, 1), (2, 6, 5, 4)),
    (ops.max_pool2x2, [(2, 0, 3, 5, 4)], 1, (2, 3, 2, 2)),
    (ops.mean_posteriors, [(0, 2, 3, 5, 4)], 0, (2, 3)),
])  # fmt: skip
def test_vmap_of_no_examples(op, shapes, in_dims, expected):
    args = [torch.randn(shape, requires_grad=True) for shape in shapes]
    y = vmap(op, in_dims)(*args)
    assert y.shape == (0, *expected)
    assert [g.shape for g in torch.autograd.grad(y.sum(), args)] == [t.shape for t in args]
