"""The first layer's own CUDA kernels (csrc/cuda/conv/stem) on the simulated GPU: every variant, and every edge."""

import pytest
import torch
import torch.nn.functional as F
from simulated import Simulated

from tests.support.backends import Poisoned
from tests.support.comparisons import (
    assert_as_accurate_as_tf32,
    assert_rounded_once,
    assert_same_bits,
    conv_precision,
    relative_error,
)
from vggfast.ops.conv import conv, conv_dgrad, conv_wgrad
from vggfast.ops.mask import mask_gather, mask_scatter

pytestmark = pytest.mark.backends("sim")
KERNELS = {"stem_fprop_kernel", "stem_dgrad_kernel", "stem_wgrad_kernel"}
DTYPES = [torch.bfloat16, torch.float16, "tf32"]
EPILOGUES = [(False, False), (True, False), (False, True), (True, True)]
PASSES = ("y", "gx", "gw", "gb")


@pytest.fixture
def tile(sim):
    """A function that sets the convolutions' tile until the test ends."""
    yield sim.cuda.set_conv_tile
    sim.cuda.set_conv_tile("auto")


@pytest.fixture(params=[0, 1, 2])
def seed(request, sim):
    """Of the order in which the simulator runs threads."""
    sim.set_seed(request.param)
    yield request.param
    sim.set_seed(0)


def draw(dtype, n, c, h, w, cout, pool):
    """x, weight, bias and a gradient of the output, in the dtype that "tf32" is a way to multiply."""
    dtype = torch.float32 if dtype == "tf32" else dtype
    out = (h // 2, w // 2) if pool else (h, w)
    shapes = [(n, c, h, w), (cout, c, 3, 3), (cout,), (n, cout, *out)]
    return [torch.randn(shape).to(dtype) for shape in shapes]


def run(x, weight, bias, gy, relu, pool):
    """y, the gradients, and the mask or None."""
    with conv_precision("tf32" if x.dtype == torch.float32 else "ieee"):
        y, mask = conv(x, weight, bias, relu, pool, relu or pool)
        mask = mask if relu or pool else None
        gx = conv_dgrad(gy, mask, weight, *x.shape[2:])
        gw, gb = conv_wgrad(x, gy, mask, 3, True)
    return dict(zip(PASSES, (y, gx, gw, gb), strict=True)), mask


def exact(x, weight, bias, gy, mask):
    """The same in float64, for what was selected."""
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    z = F.conv2d(*leaves, padding=1)
    y = z if mask is None else mask_gather(z, mask)
    return dict(zip(PASSES, (y.detach(), *torch.autograd.grad(y, leaves, gy.double())), strict=True))


def check(sim, dtype, n, c, h, w, cout, relu, pool):
    inputs = draw(dtype, n, c, h, w, cout, pool)
    sim.clear_counters()
    got, mask = run(*inputs, relu, pool)
    assert set(sim.counters()) > KERNELS, "other kernels ran"
    expected = exact(*inputs, mask)
    for name in PASSES:
        (assert_as_accurate_as_tf32 if dtype == "tf32" else assert_rounded_once)(got[name], expected[name])
    if dtype == "tf32":  # a bias and its gradient are not rounded
        assert relative_error(got["gb"], expected["gb"]) < 1e-6
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("relu", "pool"), EPILOGUES)
@pytest.mark.parametrize("c", [1, 2, 3, 4])
def test_every_variant(backend, sim, dtype, relu, pool, c):
    """Odd sizes, more than a tile each way, and more channels than a block of any pass has."""
    check(sim, dtype, 2, c, 15, 35, 72, relu, pool)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 2), (2, 1), (3, 3), (12, 32), (13, 33), (11, 31), (25, 30), (9, 61), (40, 8)]
)
def test_edges(backend, sim, dtype, size):
    """Sizes below, at and beyond the tiles of each pass (12 x 32, 30 columns, 8 x 4 or 2), pooled where they can be."""
    for cout in (8, 64):
        check(sim, dtype, 1, 3, *size, cout, True, min(size) > 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_tiles(backend, sim, dtype):
    """More tiles than blocks, so that each block has several, and as many blocks' sums of the weights' gradient."""
    check(sim, dtype, 300, 3, 3, 5, 8, True, False)
    assert sim.counters()["stem_fprop_kernel"]["blocks"] < 300
    assert sim.counters()["stem_wgrad_kernel"]["blocks"] > 8


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_order_of_threads_does_not_matter(backend, sim, dtype, seed):
    """Against what one seed computes, bit by bit; the simulator stops at any race."""
    inputs = draw(dtype, 3, 3, 17, 37, 64, False)
    got, mask = run(*inputs, True, False)
    sim.set_seed(7)
    again, same = run(*inputs, True, False)
    for name in PASSES:
        assert_same_bits(got[name], again[name])
    assert torch.equal(mask, same)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pool", [False, True])
def test_the_same_as_the_portable_kernels(backend, sim, tile, dtype, pool):
    """Sums of small whole numbers are exact: values, ties and masks are the same bits."""
    dtype_of = torch.float32 if dtype == "tf32" else dtype
    shapes = [(2, 3, 14, 19), (40, 3, 3, 3), (40,), (2, 40, 7, 9) if pool else (2, 40, 14, 19)]
    inputs = [torch.randint(-2, 3, shape).to(dtype_of) for shape in shapes]
    ours, mask = run(*inputs, True, pool)
    sim.clear_counters()
    tile("small")
    theirs, expected = run(*inputs, True, pool)
    assert not KERNELS & set(sim.counters())
    assert torch.equal(mask, expected)
    for name in PASSES:
        assert_same_bits(ours[name], theirs[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("c", [1, 3, 4])
def test_what_is_not_finite_stays_where_it_is(backend, dtype, bad, c):
    """In the corners of the image and of tiles, in the bias and the gradient: NaN and infinities come out where they do
    in torch, and nowhere else, though tiles overhang and sums are padded."""
    x, weight, bias, gy = draw(dtype, 1, c, 13, 35, 8, False)
    x[0, 0, 0, 0] = x[0, c - 1, 12, 34] = x[0, 0, 11, 31] = bad
    bias[5] = gy[0, 6, 12, 30] = bad
    got, _ = run(x, weight, bias, gy, False, False)
    expected = exact(x, weight, bias, gy, None)
    for name in PASSES:
        ours, theirs = got[name].double(), expected[name]
        assert torch.equal(ours.isnan(), theirs.isnan()), name
        assert torch.equal(ours.isinf(), theirs.isinf()), name
        assert torch.equal(ours[ours.isinf()], theirs[theirs.isinf()]), name


def test_nan_passes_relu_and_pool(backend):
    """As in torch: NaN is the maximum of its window, and is passed on; so is its gradient."""
    x, weight, bias, gy = draw(torch.bfloat16, 1, 3, 8, 8, 8, True)
    x[0, 1, 3, 4] = float("nan")
    got, mask = run(x, weight, bias, gy, True, True)
    z = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert torch.equal(got["y"].isnan(), F.max_pool2d(z, 2).isnan())
    assert torch.equal(got["y"].isnan(), mask_gather(z, mask).isnan())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0)], ids=str)
def test_weights_of_any_strides(backend, sim, dtype, order):
    """Read, and written as a gradient, where they lie."""
    x, weight, bias, gy = draw(dtype, 1, 3, 9, 10, 16, False)
    back = [order.index(axis) for axis in range(4)]
    weight = weight.permute(order).contiguous().permute(back)
    assert weight.stride() != (27, 9, 3, 1) or order == (0, 1, 2, 3)
    got, _ = run(x, weight, bias, gy, False, False)
    expected = exact(x, weight, bias, gy, None)
    for name in PASSES:
        (assert_as_accurate_as_tf32 if dtype == "tf32" else assert_rounded_once)(got[name], expected[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_a_bias_or_its_gradient(backend, sim, dtype):
    x, weight, bias, gy = draw(dtype, 1, 3, 9, 10, 16, False)
    with conv_precision("tf32" if dtype == "tf32" else "ieee"):
        y, _ = conv(x, weight, None, False, False, False)
        gw, _ = conv_wgrad(x, gy, None, 3, False)
    expected = exact(x, weight, torch.zeros_like(bias), gy, None)
    for got, name in ((y, "y"), (gw, "gw")):
        (assert_as_accurate_as_tf32 if dtype == "tf32" else assert_rounded_once)(got, expected[name])


def test_tf32_keeps_the_bias(backend):
    """Only products are rounded."""
    bias = torch.randn(8)
    y, _ = run(torch.zeros(1, 3, 5, 5), torch.randn(8, 3, 3, 3), bias, torch.zeros(1, 8, 5, 5), False, False)
    assert relative_error(y["y"], bias.reshape(1, 8, 1, 1).expand(1, 8, 5, 5)) < 2.0**-20


@pytest.mark.parametrize(("shape", "why"), [
    ((1, 5, 8, 8, 8), "channels"), ((1, 3, 8, 8, 12), "no whole bytes of a mask"),
    ((1, 3, 4, 4, 680), "gradients of more channels than fit"),
])  # fmt: skip
def test_what_the_portable_kernels_are_left_with(backend, sim, shape, why):
    n, c, h, w, cout = shape
    inputs = draw(torch.bfloat16, n, c, h, w, cout, False)
    sim.clear_counters()
    got, mask = run(*inputs, True, False)
    assert ("stem_dgrad_kernel" in sim.counters()) is False
    assert ("stem_fprop_kernel" in sim.counters()) is (cout == 680)
    for name, expected in exact(*inputs, mask).items():
        assert_rounded_once(got[name], expected)


def test_no_images(backend, sim):
    got, _ = run(*draw(torch.bfloat16, 0, 3, 5, 7, 8, True), True, True)
    assert got["y"].shape == (0, 8, 2, 3)
    assert got["gx"].shape == (0, 3, 5, 7)
    assert not got["gw"].any()
    assert not got["gb"].any()


def test_too_low_for_a_window(sim):
    """A gradient of no rows, which the kernels take though the op does not, has no mask to be read."""
    sim.clear_counters()
    gy = torch.zeros(1, 8, 0, 3).bfloat16()
    mask = torch.zeros(0, dtype=torch.uint8).as_strided((1, 3, 0, 3, 1), (0, 0, 3, 1, 1))
    gx = torch.full((1, 3, 1, 7), float("nan")).bfloat16().contiguous(memory_format=torch.channels_last)
    Poisoned(sim).run("conv_dgrad", gy, mask, torch.randn(8, 3, 3, 3).bfloat16(), gx, None)
    assert "stem_dgrad_kernel" in sim.counters()
    assert not gx.any()


def test_a_mask_on_the_gradient_of_x(backend, sim):
    gy, weight = torch.randn(2, 16, 5, 6).bfloat16(), torch.randn(16, 4, 3, 3).bfloat16()
    x_mask = torch.randint(0, 16, (2, 1, 5, 6, 1), dtype=torch.uint8)
    plain = conv_dgrad(gy, None, weight, 5, 6)
    assert_same_bits(conv_dgrad(gy, None, weight, 5, 6, None, x_mask), mask_scatter(plain, x_mask, 5, 6))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outputs_at_any_address(backend, sim, monkeypatch, dtype):
    """Results that begin where no 16 bytes do are stored value by value."""
    aligned = Simulated.empty

    def unaligned(self, like, shape, dtype, memory_format=torch.contiguous_format):
        t = aligned(self, like, shape, dtype, memory_format)
        return torch.zeros(t.numel() + 1, dtype=dtype)[1:].as_strided(t.shape, t.stride(), 1)

    monkeypatch.setattr(Poisoned, "empty", unaligned)
    check(sim, dtype, 1, 3, 5, 6, 16, True, False)
