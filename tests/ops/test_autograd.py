"""First and second derivatives of every op, and what a graph keeps until its backward."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from tests.support.comparisons import assert_same_bits, integers
from vggfast import ops
from vggfast.ops import reference
from vggfast.ops.conv import conv, conv_dgrad, conv_wgrad
from vggfast.ops.lrn import lrn_dgrad
from vggfast.ops.mask import mask_gather, mask_scatter
from vggfast.ops.pool import max_pool

pytestmark = pytest.mark.usefixtures("one_thread")
EPILOGUES = [(False, False), (True, False), (False, True), (True, True)]


def doubles(*shape) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def check(op, *inputs):
    """On numbers as they come: a window tied or a sum at 0 to within gradcheck's step has no chance."""
    assert gradcheck(op, inputs)
    assert gradgradcheck(op, inputs)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("relu", "pool"), EPILOGUES)
def test_conv3x3(relu, pool, bias):
    inputs = [doubles(1, 2, 4, 5), doubles(3, 2, 3, 3), *([doubles(3)] if bias else [])]
    check(lambda *tensors: ops.conv3x3(*tensors, relu=relu, pool=pool), *inputs)


@pytest.mark.parametrize("views", [1, 2])
def test_mean_posteriors(views):
    check(lambda maps: ops.mean_posteriors(maps, views=views), doubles(4, 5, 2, 3))


@pytest.mark.parametrize("relu", [False, True])
def test_conv1x1(relu):
    check(lambda *tensors: ops.conv1x1(*tensors, relu=relu), doubles(2, 3, 3, 2), doubles(4, 3, 1, 1), doubles(4))


def masked_gradient(relu, pool, h=5, w=4):
    """A gradient of 3 channels, and the mask that goes with it; the pool leaves an odd row or column out."""
    y, mask = conv(torch.randn(2, 2, h, w).double(), torch.randn(3, 2, 3, 3).double(), None, relu, pool, True)
    return torch.randn_like(y).requires_grad_(), mask if relu or pool else None


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("relu", "pool"), EPILOGUES)
def test_conv_dgrad(kernel, relu, pool):
    gy, mask = masked_gradient(relu, pool)
    weight, x_mask = doubles(3, 2, kernel, kernel), torch.randint(0, 4, (2, 1, 5, 4, 1), dtype=torch.uint8)
    check(lambda gy, weight: conv_dgrad(gy, mask, weight, 5, 4), gy, weight)
    check(lambda gy, weight: conv_dgrad(gy, mask, weight, 5, 4, None, x_mask), gy, weight)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("relu", "pool"), EPILOGUES)
def test_conv_wgrad(kernel, bias, relu, pool):
    gy, mask = masked_gradient(relu, pool, 3, 5)

    def wgrad(x, gy):
        gw, gb = conv_wgrad(x, gy, mask, kernel, bias)
        return (gw, gb) if bias else gw

    check(wgrad, doubles(2, 2, 3, 5), gy)


@pytest.mark.parametrize(("relu", "pool"), EPILOGUES[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_mask_is_a_scatter_before_the_op(exact, relu, pool, dtype):
    """Also where the gradient that was cut is not finite."""
    gy, mask = masked_gradient(relu, pool, 7, 6)
    gy = gy.detach().to(dtype)
    gy[mask_gather(torch.ones(2, 3, 7, 6), mask) == 0] = float("nan")
    gz = mask_scatter(gy, mask, 7, 6)
    x, weight = torch.randn(2, 2, 7, 6, dtype=dtype), torch.randn(3, 2, 3, 3, dtype=dtype)
    assert torch.equal(conv_dgrad(gy, mask, weight, 7, 6), conv_dgrad(gz, None, weight, 7, 6))
    for ours, plain in zip(conv_wgrad(x, gy, mask, 3, True), conv_wgrad(x, gz, None, 3, True), strict=True):
        assert torch.equal(ours, plain)
    x_mask = torch.randint(0, 4, (2, 1, 7, 6, 1), dtype=torch.uint8)
    gy[:, :, 2, 2] = float("nan")
    masked = mask_scatter(conv_dgrad(gy, mask, weight, 7, 6), x_mask, 7, 6)
    assert_same_bits(conv_dgrad(gy, mask, weight, 7, 6, None, x_mask), masked)


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_max_pool2x2(ceil_mode):
    check(lambda x: ops.max_pool2x2(x, ceil_mode=ceil_mode), doubles(2, 3, 5, 3))


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_sum_pool(reduce):
    check(lambda x: ops.sum_pool(x, reduce=reduce), doubles(2, 3, 3, 2))


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("beta", [0.75, 1.3])
def test_local_response_norm(size, beta):
    check(lambda x: ops.local_response_norm(x, size, 0.5, beta, 1.0), doubles(1, 6, 2, 2))


def test_lrn_dgrad():
    check(lambda gy, x: lrn_dgrad(gy, x, 4, 0.5, 0.75, 1.0), doubles(1, 6, 2, 2), doubles(1, 6, 2, 2))


@pytest.mark.parametrize(("relu", "pool"), EPILOGUES[1:])
def test_gather_and_scatter(relu, pool):
    x, weight = torch.randn(2, 3, 5, 4), torch.randn(9, 3, 3, 3)
    y, mask = conv(x.double(), weight.double(), None, relu, pool, True)
    check(lambda z: mask_gather(z, mask), doubles(2, 9, 5, 4))
    check(lambda g: mask_scatter(g, mask, 5, 4), torch.randn_like(y).requires_grad_())


@pytest.mark.parametrize(("relu", "pool"), EPILOGUES[1:])
def test_gather_is_what_the_forward_selected_and_scatter_its_transpose(relu, pool):
    x, weight = integers(2, 3, 7, 6), integers(9, 3, 3, 3)
    z = ops.conv3x3(x, weight)
    y, mask = conv(x, weight, None, relu, pool, True)
    assert torch.equal(mask_gather(z, mask), y)
    a, b = integers(*z.shape), integers(*y.shape)
    assert (mask_gather(a, mask) * b).sum() == (a * mask_scatter(b, mask, 7, 6)).sum()


def test_third_derivative():
    def third(module):
        x = torch.linspace(-1, 1, 2 * 3 * 4 * 4).double().reshape(2, 3, 4, 4).requires_grad_()
        y = module.local_response_norm(module.conv3x3(x, torch.ones(3, 3, 3, 3).double() / 9, relu=True), 3, 1.0)
        for _ in range(3):
            (y,) = torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)
        return y

    torch.testing.assert_close(third(ops), third(reference))


# ---- what is asked for is what is computed and kept ---------------------------------------------------------------


def subsets_of(count):
    return [needs for needs in itertools.product([False, True], repeat=count) if any(needs)]


def saved_by(op, *inputs, **options) -> list[torch.Tensor]:
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        op(*inputs, **options)
    return saved


@pytest.mark.parametrize("needs", subsets_of(3), ids=str)
@pytest.mark.parametrize(("relu", "pool"), EPILOGUES)
class TestNeeds:
    N, CIN, COUT, H, W = 2, 5, 19, 7, 6

    def inputs(self, needs):
        shapes = [(self.N, self.CIN, self.H, self.W), (self.COUT, self.CIN, 3, 3), (self.COUT,)]
        return [
            torch.randn(shape, dtype=torch.float64, requires_grad=need)
            for shape, need in zip(shapes, needs, strict=True)
        ]

    def test_gradients(self, needs, relu, pool):
        inputs = self.inputs(needs)
        leaves = [t for t in inputs if t.requires_grad]
        ours, theirs = (
            torch.autograd.grad(module.conv3x3(*inputs, relu=relu, pool=pool).pow(2).sum(), leaves)
            for module in (ops, reference)
        )
        torch.testing.assert_close(ours, theirs)

    def test_saved_tensors(self, needs, relu, pool):
        """x only for weight's gradient, weight only for x's, and of the output nothing but bits."""
        x, weight, bias = self.inputs(needs)
        expected = {t.data_ptr() for t, need in ((x, weight.requires_grad), (weight, x.requires_grad)) if need}
        saved = saved_by(ops.conv3x3, x, weight, bias, relu=relu, pool=pool)
        bits = [t for t in saved if t.dtype == torch.uint8]
        assert {t.data_ptr() for t in saved if t.dtype != torch.uint8} == expected
        assert len(saved) == len(bits) + len(expected)
        scale = 2 if pool else 1
        outputs = self.N * (self.H // scale) * (self.W // scale)
        assert sum(t.untyped_storage().nbytes() for t in bits) == (relu + 2 * pool) * outputs * ((self.COUT + 7) // 8)


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_max_pool_saves_two_bits_an_output(ceil_mode):
    x = torch.randn(2, 16, 7, 5, requires_grad=True)
    (mask,) = saved_by(ops.max_pool2x2, x, ceil_mode=ceil_mode)
    assert mask.dtype == torch.uint8
    assert 8 * mask.numel() == 2 * ops.max_pool2x2(x, ceil_mode=ceil_mode).numel()


def test_sum_pool_saves_nothing_and_lrn_its_input():
    x = torch.randn(2, 16, 7, 5, requires_grad=True)
    assert saved_by(ops.sum_pool, x) == []
    assert [t.data_ptr() for t in saved_by(ops.local_response_norm, x)] == [x.data_ptr()]


@pytest.mark.parametrize(
    "op", [lambda x, w: conv(x, w, None, True, True, False), lambda x, w: max_pool(x, False, False)]
)
def test_no_gradient_goes_where_no_mask_was_kept(op):
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3)
    with pytest.raises(RuntimeError, match=r"save must be True where a gradient is to flow through .*, got False"):
        op(x.requires_grad_(), weight)


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_no_mask_without_gradients(quiet, monkeypatch):
    kept = []
    monkeypatch.setattr("vggfast.ops.conv.empty_mask", lambda *args: kept.append(args))
    with quiet():
        y = ops.conv3x3(torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3, requires_grad=True), relu=True, pool=True)
    assert not kept
    assert not y.requires_grad
