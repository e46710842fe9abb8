"""The Hopper convolutions on the simulated GPU: every tile, at sizes that cross its edges. The GPU is made small, so that a
block computes several tiles."""

import pytest
import torch
import torch.nn.functional as F
from conftest import (
    assert_as_accurate_as_tf32,
    assert_rounded_once,
    assert_same_bits,
    conv_precision,
    relative_error,
)
from simulated import simulator

from vggfast.ops.conv import conv, conv_dgrad
from vggfast.ops.selection import gather_selected

pytestmark = pytest.mark.backends("sim")
PORTABLE = ("auto", "large", "tall", "small")
EPILOGUES = {"none": (False, False), "relu": (True, False), "pool": (False, True), "relu, pool": (True, True)}
# (N, Cin, H, W, Cout)
ODD = (2, 72, 9, 17, 136)  # channels beyond a span, and beyond a tile's
SHAPES = {
    "one pixel": (1, 64, 1, 1, 64),
    "odd": ODD,
    "more rows than a tile has": (1, 64, 31, 9, 64),
    "images end within a tile": (5, 16, 7, 7, 200),
    "many channels": (1, 464, 6, 20, 8),  # so many that eight blocks may share them
}


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        names = simulator().cuda.conv_tiles() if simulator() else ()
        metafunc.parametrize("name", [name for name in names if name not in PORTABLE])


@pytest.fixture
def tile(sim):
    """A function that sets the convolutions' tile, and the GPU's size, until the test ends."""

    def use(name: str) -> None:
        sim.cuda.set_conv_tile(name)
        sim.set_multiprocessors(max(2, int(name[-1]) if "split" in name else 0))

    yield use
    sim.cuda.set_conv_tile("auto")
    sim.set_multiprocessors(132)
    sim.set_seed(0)


def tensors(n, cin, h, w, cout):
    return torch.randn(n, cin, h, w), torch.randn(cout, cin, 3, 3) / (3 * cin**0.5), torch.randn(cout)


def check_fprop(x, weight, bias, relu, pool, close=assert_rounded_once):
    y, selection = conv(x, weight, bias, relu, pool, relu or pool)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=weight.shape[2] // 2)
    close(y, gather_selected(exact, selection) if relu or pool else exact)


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_tile(backend, sim, tile, name, shape, epilogue):
    if epilogue.endswith("pool") and shape == "one pixel":
        pytest.skip("no window")
    tile(name)
    sim.set_seed(len(name) + len(shape))
    check_fprop(*(t.bfloat16() for t in tensors(*SHAPES[shape])), *EPILOGUES[epilogue])


@pytest.mark.parametrize("epilogue", ["relu", "relu, pool"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_every_dtype(backend, tile, name, dtype, epilogue):
    tile(name)
    with conv_precision("tf32"):
        close = assert_as_accurate_as_tf32 if dtype == torch.float32 else assert_rounded_once
        check_fprop(*(t.to(dtype) for t in tensors(*ODD)), *EPILOGUES[epilogue], close)


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_dgrad(backend, tile, name, epilogue):
    """Mirrored weights; a gradient that is seen through a selection."""
    tile(name)
    relu, pool = EPILOGUES[epilogue]
    x, weight, bias = (t.bfloat16() for t in tensors(*ODD))
    y, selection = conv(x, weight, bias, relu, pool, relu or pool)
    selection = selection if relu or pool else None
    gy = torch.randn_like(y)
    got = conv_dgrad(gy, selection, weight, 9, 17)
    leaf = x.double().requires_grad_()
    z = F.conv2d(leaf, weight.double(), padding=1)
    exact = gather_selected(z, selection) if relu or pool else z
    assert_rounded_once(got, torch.autograd.grad(exact, leaf, gy.double())[0])


def test_orders(backend, sim, tile, name):
    """The same bits, in whatever order threads run and copies land."""
    tile(name)
    x, weight, bias = (t.bfloat16() for t in tensors(*SHAPES["many channels"]))
    results = []
    for seed in range(3):
        sim.set_seed(seed)
        results.append(conv(x, weight, bias, True, False, False)[0])
    for other in results[1:]:
        assert_same_bits(results[0], other)


@pytest.mark.parametrize("relu", [False, True])
def test_1x1(backend, tile, name, relu):
    tile(name)
    x, weight, bias = (t.bfloat16() for t in tensors(*ODD))
    check_fprop(x, weight[..., 1:2, 1:2], bias, relu, False)


def test_weights_where_they_lie(backend, sim, tile, name):
    """channels_last weights are not packed."""
    tile(name)
    x, weight, bias = (t.bfloat16() for t in tensors(*ODD))
    packed = conv(x, weight, bias, True, False, False)[0]
    sim.clear_counters()
    in_place = conv(x, weight.contiguous(memory_format=torch.channels_last), bias, True, False, False)[0]
    assert set(sim.counters()) == {"conv_fprop_hopper_kernel"}
    assert_same_bits(packed, in_place)


def test_nan_and_infinity_stay_in_their_windows(backend, tile, name):
    tile(name)
    x, weight, bias = (t.bfloat16() for t in tensors(1, 64, 12, 20, 64))
    x[0, 3, 5, 9], x[0, 7, 0, 19] = float("nan"), float("inf")
    y = conv(x, weight, bias, True, False, False)[0]
    wanted = F.relu(F.conv2d(x.double(), weight.double(), bias.double(), padding=1))
    assert torch.equal(y.isnan(), wanted.isnan())
    finite = wanted.isfinite()
    assert relative_error(y[finite], wanted[finite]) < 2**-8
