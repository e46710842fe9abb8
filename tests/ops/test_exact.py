"""Convolutions that are told whether their sums are direct: forward, backward, and whatever torch makes of the call."""

import functools

import pytest
import torch
from torch.func import jvp, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from vggfast import _native, ops
from vggfast.ops.conv import conv_dgrad, conv_wgrad

pytestmark = pytest.mark.usefixtures("one_thread")
either = pytest.mark.parametrize("exact", [True, False])

X, WEIGHT = (1, 48, 12, 14), (48, 48, 3, 3)


@pytest.fixture(autouse=True)
def _algorithm():
    before = _native.conv_algorithm()
    yield
    _native.set_conv_algorithm(before)


def fused(conv, x, weight):
    return conv(x, weight, relu=True, pool=True)


def forward(conv, x, weight):
    return [conv(x, weight), fused(conv, x, weight)]


def gradients(conv, x, weight):
    return torch.autograd.grad(fused(conv, x, weight).square().sum(), (x, weight))


def of_one_alone(conv, x, weight):
    fixed = weight.detach()
    return [
        *torch.autograd.grad(fused(conv, x, fixed).square().sum(), x),
        *torch.autograd.grad(fused(conv, x.detach(), weight).square().sum(), weight),
    ]


def second_order(conv, x, weight):
    first = torch.autograd.grad(conv(x, weight).square().sum(), (x, weight), create_graph=True)
    return torch.autograd.grad(sum(each.square().sum() for each in first), (x, weight))


def tangents(conv, x, weight):
    f = functools.partial(fused, conv)
    return [jvp(lambda x: f(x, weight), (x,), (x,))[1], jvp(lambda weight: f(x, weight), (weight,), (weight,))[1]]


def tangents_of_gradients(conv, x, weight):
    def pulled(x, weight):
        y, pull = vjp(conv, x, weight)
        return pull(y.detach())

    return jvp(pulled, (x, weight), (x, weight))[1]


def over_images(conv, x, weight):
    def pulled(x):
        y, pull = vjp(lambda x, weight: fused(conv, x, weight), x, weight)
        return y, *pull(y)

    return vmap(pulled)(torch.stack([x, 2 * x]))


def over_weights(conv, x, weight):
    return [vmap(lambda weight: conv(x, weight))(torch.stack([weight, 2 * weight]))]


def compiled(conv, x, weight):
    call = torch.compile(functools.partial(fused, conv), backend="aot_eager", fullgraph=True)
    return torch.autograd.grad(call(x, weight).square().sum(), (x, weight))


def traced(conv, x, weight):
    x, weight = x.detach(), weight.detach()

    def call(x, weight):
        y, pull = vjp(lambda x, weight: conv(x, weight), x, weight)
        return y, *pull(y)

    return make_fx(call)(x, weight)(x, weight)


def in_autocast(conv, x, weight):
    with torch.autocast("cpu", torch.float16):  # for which there are no convolutions: float32
        return gradients(conv, x, weight)


KINDS = [
    forward, gradients, of_one_alone, second_order, tangents, tangents_of_gradients, over_images, over_weights,
    compiled, traced, in_autocast,
]  # fmt: skip


@either
@pytest.mark.parametrize("compute", KINDS, ids=lambda kind: kind.__name__)
def test_a_call_counts_more_than_the_process_setting(compute, exact):
    x, weight = (torch.randn(shape, requires_grad=True) for shape in (X, WEIGHT))
    _native.set_exact(exact)
    expected = compute(ops.conv3x3, x, weight)
    _native.set_exact(not exact)
    as_set = compute(ops.conv3x3, x, weight)
    got = compute(functools.partial(ops.conv3x3, exact=exact), x, weight)
    for mine, same, other in zip(got, expected, as_set, strict=True):
        assert torch.equal(mine, same)
        assert not torch.equal(same, other), "the setting would not have counted"


@either
def test_gradients_by_their_own_ops(exact):
    gy, x, weight = (torch.randn(shape) for shape in (X, X, WEIGHT))
    calls = [(conv_dgrad, (gy, None, weight, 12, 14)), (lambda *args: conv_wgrad(*args)[0], (x, gy, None, 3, False))]
    for op, args in calls:
        _native.set_exact(exact)
        expected = op(*args)
        _native.set_exact(not exact)
        assert torch.equal(op(*args, exact), expected)
        assert not torch.equal(op(*args), expected)


def test_calls_by_turns():
    """On the same weights in inference, whatever is kept of them from one call to the next."""
    x, weight = (torch.randn(shape) for shape in (X, WEIGHT))
    expected = {}
    for exact in (True, False):
        _native.set_exact(exact)
        expected[exact] = ops.conv3x3(x, weight.clone())
    assert not torch.equal(*expected.values())
    with torch.no_grad():
        for _ in range(3):
            for exact in (True, False, None, True, None, False):
                got = [ops.conv3x3(x, weight, exact=exact) for _ in range(2)]
                assert all(torch.equal(y, expected[bool(exact)]) for y in got)


def test_the_same_operations_are_counted():
    x, weight = (torch.randn(shape, requires_grad=True) for shape in ((1, 3, 4, 5), (7, 3, 3, 3)))
    with FlopCounterMode(display=False) as counter:
        ops.conv3x3(x, weight, exact=True).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 3 * 7 * 9 * 20


@either
def test_pointwise(exact):
    x, weight = torch.randn(2, 5, 4, 3), torch.randn(7, 5, 1, 1)
    assert torch.equal(ops.conv1x1(x, weight, exact=exact), ops.conv1x1(x, weight))


@pytest.mark.parametrize("wrong", ["yes", 2, torch.tensor(True)])
def test_what_is_no_flag(wrong):
    for op, size in ((ops.conv3x3, 3), (ops.conv1x1, 1)):
        with pytest.raises(TypeError, match=r"exact must be True, False or None, got "):
            op(torch.randn(1, 2, 4, 4), torch.randn(2, 2, size, size), exact=wrong)
