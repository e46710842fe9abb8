"""The Hopper convolutions on the simulated GPU: every tile, at sizes that cross its edges, in several orders of threads and
of landing copies."""

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_as_accurate_as_tf32, assert_rounded_once, conv_precision

from vggfast.ops.conv import conv, conv_dgrad
from vggfast.ops.selection import gather_selected

pytestmark = pytest.mark.backends("sim")
PORTABLE = ("auto", "large", "tall", "small")
# name: (N, Cin, H, W, Cout)
SHAPES = {
    "one pixel": (1, 64, 1, 1, 64),
    "odd, channels beyond a span": (2, 72, 9, 17, 136),
    "more rows than a tile has": (1, 64, 31, 9, 64),
    "images end within a tile": (5, 64, 7, 7, 200),
}


@pytest.fixture
def tile(sim):
    """A function that sets the convolutions' tile until the test ends. The GPU is small, so that a block computes several
    tiles, and its threads and copies come in another order for each name."""

    def use(name: str) -> None:
        sim.cuda.set_conv_tile(name)
        sim.set_multiprocessors(2)
        sim.set_seed(len(name))

    yield use
    sim.cuda.set_conv_tile("auto")
    sim.set_multiprocessors(132)
    sim.set_seed(0)


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        from simulated import simulator

        names = [] if simulator() is None else [n for n in simulator().cuda.conv_tiles() if n not in PORTABLE]
        metafunc.parametrize("name", names)


def tensors(dtype, n, cin, h, w, cout):
    x, weight, bias = torch.randn(n, cin, h, w), torch.randn(cout, cin, 3, 3) / (3 * cin**0.5), torch.randn(cout)
    return [t.to(dtype) for t in (x, weight, bias)]


def assert_close(got, want, tf32):
    (assert_as_accurate_as_tf32 if tf32 else assert_rounded_once)(got, want)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "tf32"], ids=str)
@pytest.mark.parametrize(("relu", "pool"), [(False, False), (True, False), (True, True)])
def test_every_tile(backend, sim, tile, name, shape, dtype, relu, pool):
    tf32, dtype = dtype == "tf32", torch.float32 if dtype == "tf32" else dtype
    if pool and min(SHAPES[shape][2:4]) < 2:
        pytest.skip("no window")
    tile(name)
    x, weight, bias = tensors(dtype, *SHAPES[shape])
    with conv_precision("tf32" if tf32 else "ieee"):
        y, selection = conv(x, weight, bias, relu, pool, relu)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert_close(y, gather_selected(exact, selection) if relu else exact, tf32)
