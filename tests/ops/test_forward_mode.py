"""Forward-mode derivatives: by the product rule, alone, over reverse mode and under it; those that are refused."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from tests.support.comparisons import plain_torch
from vggfast import nn as ours_nn
from vggfast import ops
from vggfast.ops import reference

pytestmark = pytest.mark.usefixtures("one_thread")


def doubles(*shapes):
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


CONV = [(2, 3, 5, 4), (4, 3, 3, 3), (4,)]
CASES = {
    "conv": (lambda m, *args: m.conv3x3(*args), CONV),
    "conv, ReLU": (lambda m, *args: m.conv3x3(*args, relu=True), CONV),
    "conv, ReLU, pool": (lambda m, *args: m.conv3x3(*args, relu=True, pool=True), CONV),
    "conv without bias, pool": (lambda m, *args: m.conv3x3(*args, pool=True), CONV[:2]),
    "1x1, ReLU": (lambda m, *args: m.conv1x1(*args, relu=True), [CONV[0], (4, 3, 1, 1), (4,)]),
    "pool": (lambda m, x: m.max_pool2x2(x), [(2, 3, 5, 4)]),
    "pool, ceil mode": (lambda m, x: m.max_pool2x2(x, ceil_mode=True), [(2, 3, 5, 3)]),
    "linear": (lambda m, *args: m.linear(*args), [(3, 5), (4, 5), (4,)]),
    "linear without bias": (lambda m, *args: m.linear(*args), [(3, 5), (4, 5)]),
}
each_case = pytest.mark.parametrize(("call", "shapes"), CASES.values(), ids=CASES)


@each_case
def test_each_argument_alone_and_with_others(call, shapes):
    inputs = [t.detach() for t in doubles(*shapes)]
    directions = [torch.randn_like(t) for t in inputs]
    for moving in itertools.product([False, True], repeat=len(inputs)):
        if not any(moving):
            continue

        def tangent(module, moving=moving):
            def f(*moved):
                rest = iter(moved)
                return call(module, *(next(rest) if m else t for m, t in zip(moving, inputs, strict=True)))

            chosen = [[t for m, t in zip(moving, ts, strict=True) if m] for ts in (inputs, directions)]
            return torch.func.jvp(f, *map(tuple, chosen))

        for got, want in zip(tangent(ops), tangent(reference), strict=True):
            torch.testing.assert_close(got, want)


@each_case
def test_derivatives_of_both_modes_agree(call, shapes):
    inputs = doubles(*shapes)
    assert gradcheck(lambda *args: call(ops, *args), inputs, check_forward_ad=True)
    assert gradgradcheck(lambda *args: call(ops, *args), inputs, check_fwd_over_rev=True)


@each_case
def test_hessian(call, shapes):
    inputs = [t.detach() for t in doubles(*shapes)]

    def loss(module):
        return lambda *args: call(module, *args).pow(3).sum()

    for i in range(len(inputs)):
        ours, want = (torch.func.hessian(loss(module), argnums=i)(*inputs) for module in (ops, reference))
        torch.testing.assert_close(ours, want)
    vector = torch.func.jvp(torch.func.grad(loss(ops)), tuple(inputs), tuple(map(torch.ones_like, inputs)))
    want = torch.func.jvp(torch.func.grad(loss(reference)), tuple(inputs), tuple(map(torch.ones_like, inputs)))
    torch.testing.assert_close(vector, want)


def network():
    return ours_nn.FusedSequential(
        ours_nn.Conv3x3(3, 9), nn.ReLU(True), ours_nn.Conv1x1(9, 5), nn.ReLU(), ours_nn.MaxPool2x2(), nn.Flatten(),
        ours_nn.Linear(30, 4),
    ).double()  # fmt: skip


def test_a_network():
    net = network()
    twin, x, v = plain_torch(net), *(t.detach() for t in doubles((2, 3, 6, 4), (2, 3, 6, 4)))
    torch.testing.assert_close(torch.func.jvp(net, (x,), (v,)), torch.func.jvp(twin, (x,), (v,)))
    torch.testing.assert_close(torch.func.jacfwd(net)(x), torch.func.jacrev(twin)(x))
    with torch.no_grad(), forward_ad.dual_level():
        ours, want = (forward_ad.unpack_dual(f(forward_ad.make_dual(x, v))).tangent for f in (net, twin))
    torch.testing.assert_close(ours, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_tangents_dtype_and_format(dtype):
    x = torch.randn(2, 3, 6, 8).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(5, 3, 3, 3).to(dtype)
    y, tangent = torch.func.jvp(lambda x: ops.conv3x3(x, weight), (x,), (x,))
    torch.testing.assert_close(tangent, y)
    assert tangent.is_contiguous(memory_format=torch.channels_last)


def test_gradients_through_a_tangent():
    x, weight = doubles((1, 2, 5, 5), (3, 2, 3, 3))
    v = torch.ones_like(x)

    def loss(op):
        return lambda w: torch.func.jvp(lambda x: op(x, w, None).relu(), (x.detach(),), (v,))[1].pow(2).sum()

    plain = loss(lambda x, w, b: F.conv2d(x, w, b, padding=1))
    torch.testing.assert_close(torch.func.grad(loss(ops.conv3x3))(weight), torch.func.grad(plain)(weight))


REFUSED = {
    "lrn": lambda x: ops.local_response_norm(x),
    "batch_norm": lambda x: ops.batch_norm(x, training=True),
    "sum_pool": lambda x: ops.sum_pool(x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused(name):
    x = torch.randn(1, 2, 4, 4)
    with pytest.raises(NotImplementedError, match=f"vggfast::{name} has no forward-mode derivative: use reverse mode"):
        torch.func.jvp(REFUSED[name], (x,), (x,))
