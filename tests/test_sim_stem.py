"""The first layer's own CUDA kernels (csrc/cuda/conv/stem) on the simulated GPU: every variant, and every edge."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_as_accurate_as_tf32, assert_rounded_once, assert_same_bits, conv_precision, relative_error

from vggfast.ops.conv import conv, conv_dgrad, conv_wgrad
from vggfast.ops.selection import gather_selected

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
    """y, the gradients, and the selection or None."""
    with conv_precision("tf32" if x.dtype == torch.float32 else "ieee"):
        y, selection = conv(x, weight, bias, relu, pool, relu or pool)
        selection = selection if relu or pool else None
        gx = conv_dgrad(gy, selection, weight, *x.shape[2:])
        gw, gb = conv_wgrad(x, gy, selection, 3, True)
    return dict(zip(PASSES, (y, gx, gw, gb), strict=True)), selection


def exact(x, weight, bias, gy, selection):
    """The same in float64, for what was selected."""
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    z = F.conv2d(*leaves, padding=1)
    y = z if selection is None else gather_selected(z, selection)
    return dict(zip(PASSES, (y.detach(), *torch.autograd.grad(y, leaves, gy.double())), strict=True))


def check(sim, dtype, n, c, h, w, cout, relu, pool):
    inputs = draw(dtype, n, c, h, w, cout, pool)
    sim.clear_counters()
    got, selection = run(*inputs, relu, pool)
    assert KERNELS < set(sim.counters()), "other kernels ran"
    wanted = exact(*inputs, selection)
    for name in PASSES:
        (assert_as_accurate_as_tf32 if dtype == "tf32" else assert_rounded_once)(got[name], wanted[name])
    if dtype == "tf32":  # a bias and its gradient are not rounded
        assert relative_error(got["gb"], wanted["gb"]) < 1e-6
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("relu", "pool"), EPILOGUES)
@pytest.mark.parametrize("c", [1, 2, 3, 4])
def test_every_variant(backend, sim, dtype, relu, pool, c):
    """Odd sizes, more than a tile each way, and more channels than a block of any pass has."""
    check(sim, dtype, 2, c, 15, 35, 72, relu, pool)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 3), (12, 32), (13, 33), (11, 31), (25, 30), (9, 61), (40, 8)])
def test_edges(backend, sim, dtype, size):
    """Sizes below, at and beyond the tiles of each pass (12 x 32, 30 columns, 8 x 4 or 2), pooled where there is room."""
    for cout in (8, 64):
        check(sim, dtype, 1, 3, *size, cout, True, min(size) > 1)
