"""The Hopper convolutions: every tile, at sizes that cross its edges. The simulated GPU is made small, so that a block
computes several tiles."""

import pytest
import torch
import torch.nn.functional as F
from simulated import simulator

from tests.support.comparisons import (
    assert_as_accurate_as_tf32,
    assert_rounded_once,
    assert_same_bits,
    conv_precision,
    integers,
    relative_error,
)
from tests.support.hopper import hopper_conv
from vggfast import _native
from vggfast.ops._backends import backend_of
from vggfast.ops.conv import conv, conv_dgrad
from vggfast.ops.mask import mask_gather, mask_scatter

pytestmark = pytest.mark.backends("sim", "cuda")
E4M3, BF16 = torch.float8_e4m3fn, torch.bfloat16
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
    "pairs of rows": (2, 80, 14, 14, 72),  # that flat tiles of 224 pixels hold whole
    "narrow": (9, 64, 4, 4, 136),  # the same for all of them
}


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        ours = simulator() or _native.load()
        names = ours.cuda.conv_tiles() if hasattr(ours, "cuda") else ()
        metafunc.parametrize("name", [name for name in names if name not in PORTABLE])


@pytest.fixture
def hopper(backend):
    """The back end's module: the simulator's, or the real one's; skips on other GPUs."""
    if backend.name == "cuda" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("this GPU is not a Hopper")
    return backend_of(torch.empty(0)).module


@pytest.fixture
def tile(hopper):
    """A function that sets the convolutions' tile, and what a simulated GPU is like, until the test ends."""
    simulated = hasattr(hopper, "set_num_sms")

    def use(name: str, seed: int = 0) -> None:
        hopper.cuda.set_conv_tile(name)
        if simulated:
            hopper.set_num_sms(max(2, int(name[-1]) if "split" in name else 0))
            hopper.set_seed(seed)

    yield use
    hopper.cuda.set_conv_tile("auto")
    if simulated:
        hopper.set_num_sms(132)
        hopper.set_clusters({2: 66, 4: 32, 8: 15})
        hopper.set_blocks(2**63 - 1)
        hopper.set_late_warp(-1)
        hopper.set_seed(0)


def tensors(n, cin, h, w, cout):
    return torch.randn(n, cin, h, w), torch.randn(cout, cin, 3, 3) / (3 * cin**0.5), torch.randn(cout)


def check_fprop(x, weight, bias, relu, pool, close=assert_rounded_once):
    y, mask = conv(x, weight, bias, relu, pool, relu or pool)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=weight.shape[2] // 2)
    close(y, mask_gather(exact, mask) if relu or pool else exact)


@pytest.mark.parametrize(
    ("shape", "epilogue"),
    [*(("odd", epilogue) for epilogue in EPILOGUES), ("one pixel", "relu"), ("more rows than a tile has", "relu, pool"),
     ("images end within a tile", "relu"), ("many channels", "relu, pool"), ("pairs of rows", "pool"),
     ("narrow", "relu, pool")],
)  # fmt: skip
def test_every_tile(tile, name, shape, epilogue):
    tile(name, seed=len(name) + len(shape))
    check_fprop(*(t.bfloat16() for t in tensors(*SHAPES[shape])), *EPILOGUES[epilogue])


@pytest.mark.parametrize("shape", ["pairs of rows", "narrow"])
def test_the_first_maximum_wins(tile, name, shape):
    """Ties are many among whole numbers."""
    tile(name)
    n, cin, h, w, cout = SHAPES[shape]
    x, weight = integers(n, cin, h, w, dtype=BF16).clamp(0, 1), integers(cout, cin, 3, 3, dtype=BF16).clamp(0, 1)
    mask = conv(x, weight, None, False, True, True)[1]
    exact = F.conv2d(x.double(), weight.double(), padding=1).bfloat16().double()
    where = torch.arange(h * w).double().reshape(1, 1, h, w).expand_as(exact)
    expected = F.max_pool2d(exact, 2, return_indices=True)[1]
    assert torch.equal(mask_gather(where, mask).long(), expected)


@pytest.mark.parametrize("epilogue", ["relu, pool"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_every_dtype(tile, name, dtype, epilogue):
    tile(name)
    with conv_precision("tf32"):
        close = assert_as_accurate_as_tf32 if dtype == torch.float32 else assert_rounded_once
        check_fprop(*(t.to(dtype) for t in tensors(*ODD)), *EPILOGUES[epilogue], close)


@pytest.mark.parametrize("feed", ["halo-64x112", "im2col-64x64"])
def test_float32_is_rounded_to_tf32_not_cut_off(tile, feed):
    """Sums of whole steps of 2^-10, which float32 holds: the same bits. Ties go to the even step."""
    tile(feed)
    steps = torch.arange(2 * 36 * 9 * 17).reshape(2, 36, 9, 17) * 7 % 23 / 4
    weight = integers(72, 36, 3, 3, dtype=torch.float32)
    exact, cut_off = (
        F.conv2d(1 + of.double() / 1024, weight.double(), padding=1) for of in (steps.round(), steps.floor())
    )
    assert not torch.equal(exact, cut_off)
    with conv_precision("tf32"):
        assert torch.equal(conv(1 + steps / 1024, weight, None, False, False, False)[0].double(), exact)


@pytest.mark.parametrize("epilogue", ["none", "relu, pool"])
def test_dgrad(tile, name, epilogue):
    """Mirrored weights; a gradient that is seen through a mask, and one that comes through the mask of x."""
    tile(name)
    relu, pool = EPILOGUES[epilogue]
    x, weight, bias = (t.bfloat16() for t in tensors(*ODD))
    y, mask = conv(x, weight, bias, relu, pool, relu or pool)
    mask = mask if relu or pool else None
    gy = torch.randn_like(y)
    got = conv_dgrad(gy, mask, weight, 9, 17)
    leaf = x.double().requires_grad_()
    z = F.conv2d(leaf, weight.double(), padding=1)
    exact = mask_gather(z, mask) if relu or pool else z
    assert_rounded_once(got, torch.autograd.grad(exact, leaf, gy.double())[0])
    if epilogue == "none":
        gy[0, :, 3, 4] = torch.nan
        got, x_mask = conv_dgrad(gy, None, weight, 9, 17), torch.randint(0, 256, (2, 1, 9, 17, 9), dtype=torch.uint8)
        masked = conv_dgrad(gy, None, weight, 9, 17, None, x_mask)
        assert_same_bits(masked, mask_scatter(got, x_mask, 9, 17))
        assert masked.isnan().any()
        assert not masked.isnan().all()


def test_orders(tile, name):
    """The same bits, in whatever order threads run and copies land."""
    x, weight, bias = (t.bfloat16() for t in tensors(*SHAPES["many channels"]))
    results = []
    for seed in (3, 4):
        tile(name, seed)
        results.append(conv(x, weight, bias, True, False, False)[0])
    assert_same_bits(*results)


@pytest.mark.parametrize("late", [0, 1, 2, 4, 8])
def test_a_warp_that_comes_last(hopper, tile, late):
    """Of those that load pixels and weights and of either warpgroup that multiplies: the one that leads, and the one
    that follows."""
    if not hasattr(hopper, "set_late_warp"):
        pytest.skip("the simulated GPU alone holds warps back")
    tile("im2col-128x128")
    inputs = [t.bfloat16() for t in tensors(*ODD)]
    expected = conv(*inputs, True, False, False)[0]
    hopper.set_late_warp(late)
    assert_same_bits(conv(*inputs, True, False, False)[0], expected)


@pytest.mark.parametrize("clusters", [4, 5, 6])
def test_no_more_clusters_than_run_at_once(hopper, tile, clusters):
    """Five tiles, on a GPU that has SMs for five clusters of eight blocks."""
    if not hasattr(hopper, "set_clusters"):
        pytest.skip("the simulated GPU alone counts blocks")
    tile("halo-128x128-split8")
    hopper.set_num_sms(41)
    hopper.set_clusters({2: 20, 4: 9, 8: clusters})
    assert hopper.cuda.conv_clusters() == [20, 9, min(5, clusters)]
    hopper.set_blocks(8)  # that run
    hopper.clear_counters()
    x, weight, bias = (t.bfloat16() for t in tensors(5, 464, 4, 4, 8))
    conv(x, weight, bias, True, False, False)
    assert hopper.counters()["conv_fprop_hopper_kernel"]["blocks"] == 8 * min(5, clusters)


@pytest.mark.parametrize("pool", [False, True])
def test_1x1(tile, name, pool):
    tile(name)
    x, weight, bias = (t.bfloat16() for t in tensors(*ODD))
    check_fprop(x, weight[..., 1:2, 1:2], bias, True, pool)


def test_weights_where_they_lie(hopper, tile, name):
    """channels_last weights are not packed."""
    tile(name)
    x, weight, bias = (t.bfloat16() for t in tensors(*ODD))
    packed = conv(x, weight, bias, True, False, False)[0]
    counted = hasattr(hopper, "counters")
    if counted:
        hopper.clear_counters()
    in_place = conv(x, weight.contiguous(memory_format=torch.channels_last), bias, True, False, False)[0]
    if counted:
        assert set(hopper.counters()) == {"conv_fprop_hopper_kernel"}
    assert_same_bits(packed, in_place)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize(("dtype", "out_dtype"), [(E4M3, E4M3), (BF16, E4M3), (E4M3, BF16)], ids=str)
def test_scaled(tile, name, dtype, out_dtype, pool):
    """Quantised values; outputs that are too large become the largest finite one."""
    tile(name)
    x, weight, bias = tensors(2, 80, 9, 17, 144)
    x, weight = (t.to(dtype).contiguous(memory_format=torch.channels_last) for t in (x, 8 * weight))
    h, w = (4, 8) if pool else (9, 17)
    y = torch.empty(2, 144, h, w, dtype=out_dtype).contiguous(memory_format=torch.channels_last)
    scale = 40.0
    backend_of(x).run("conv_fprop_scaled", x, weight, bias, scale, True, pool, y)
    exact = F.relu(scale * F.conv2d(x.double(), weight.double(), padding=1) + bias.double()[:, None, None])
    exact = F.max_pool2d(exact, 2) if pool else exact
    if out_dtype == BF16:
        return assert_rounded_once(y, exact)
    assert exact.max() > 448
    rounded = exact.clamp(max=448).float().to(E4M3)
    assert (y.double() - rounded.double()).abs().max() <= 32  # a step of the largest
    # bf16's sums: all but ties of float32's. e4m3's keep 13 bits, four of which are e4m3's own.
    least = 0.98 if dtype == E4M3 else 0.999
    assert (y.view(torch.uint8) == rounded.view(torch.uint8)).double().mean() > least


@pytest.mark.parametrize("feed", ["im2col-128x128", "halo-128x112"])
def test_sums_of_e4m3(tile, feed):
    """To the bit. They are long sums of one sign, which lose the most."""
    tile(feed)
    x, weight = torch.rand(1, 256, 5, 6), torch.rand(128, 256, 3, 3)
    x, weight = (t.to(E4M3).contiguous(memory_format=torch.channels_last) for t in (x, weight))
    y = torch.empty(1, 128, 5, 6, dtype=BF16).contiguous(memory_format=torch.channels_last)
    backend_of(x).run("conv_fprop_scaled", x, weight, None, 1.0, False, False, y)
    expected = hopper_conv(x, weight, by_columns=feed.startswith("halo"))
    assert_same_bits(y, expected.bfloat16())
    assert relative_error(expected, F.conv2d(x.double(), weight.double(), padding=1)) > 0.01


def test_scaled_errors(hopper):
    x, weight = torch.zeros(1, 16, 4, 4, dtype=E4M3), torch.zeros(16, 16, 3, 3, dtype=E4M3)
    nhwc = torch.channels_last
    x, weight, y = (t.contiguous(memory_format=nhwc) for t in (x, weight, torch.zeros_like(x)))

    def run(x, weight, y):
        backend_of(x).run("conv_fprop_scaled", x, weight, None, 1.0, True, False, y)

    run(x, weight, y)
    with pytest.raises(ValueError, match=r"weight must be dense NHWC \(channels_last\), got strides"):
        run(x, weight.contiguous(), y)
    with pytest.raises(ValueError, match="x must be float8_e4m3fn or bfloat16, got float16"):
        run(x.half(), weight, y)
    with pytest.raises(ValueError, match="x or y must be float8_e4m3fn, got bfloat16 for both"):
        run(x.bfloat16(), weight.bfloat16(), y.bfloat16())
    with pytest.raises(ValueError, match="weight must have a multiple of 16 output channels, got 8"):
        run(x, weight[:8], y[:, :8].contiguous(memory_format=nhwc))
    with pytest.raises(ValueError, match="x must have a multiple of 16 channels, got 8"):
        run(x[:, :8].contiguous(memory_format=nhwc), weight[:, :8].contiguous(memory_format=nhwc), y)


def test_nan_and_infinity_stay_in_their_windows(tile, name):
    tile(name)
    x, weight, bias = (t.bfloat16() for t in tensors(1, 64, 12, 20, 64))
    x[0, 3, 5, 9], x[0, 7, 0, 19] = float("nan"), float("inf")
    y = conv(x, weight, bias, True, False, False)[0]
    expected = F.relu(F.conv2d(x.double(), weight.double(), bias.double(), padding=1))
    assert torch.equal(y.isnan(), expected.isnan())
    finite = expected.isfinite()
    assert relative_error(y[finite], expected[finite]) < 2**-8
