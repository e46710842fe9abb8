"""Block 1's fused Hopper kernel (csrc/cuda/conv/sm90/block1/kernel.h) on the simulated GPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.support.comparisons import assert_rounded_once, assert_same_bits, plain_torch, relative_error
from vggfast.ops._backends import backend_of
from vggfast.ops.conv import conv

pytestmark = pytest.mark.backends("sim")
NHWC = torch.channels_last
DTYPES = [torch.bfloat16, torch.float16]
# A tile is 8 x 28 pixels; the first convolution sees two more on each side.
SIZES = [(2, 2), (3, 3), (2, 9), (28, 8), (29, 9), (27, 7), (31, 17), (57, 5), (5, 40)]


@pytest.fixture(autouse=True)
def small_gpu(sim):
    """Of two SMs, so that blocks have several tiles and the boxes' ring goes round."""
    sim.set_num_sms(2)
    yield
    sim.set_num_sms(132)
    sim.set_seed(0)
    sim.set_late_warp(-1)
    sim.cuda.set_conv_tile("auto")


def draw(dtype, n, c, h, w):
    """x and the two layers' weights and biases."""
    x, w1, b1 = torch.randn(n, c, h, w), torch.randn(64, c, 3, 3) / (9 * c) ** 0.5, torch.randn(64)
    w2, b2 = torch.randn(64, 64, 3, 3) / 24, torch.randn(64)
    x, w1, b1, w2, b2 = (t.to(dtype) for t in (x, w1, b1, w2, b2))
    return x.contiguous(memory_format=NHWC), w1, b1, w2.contiguous(memory_format=NHWC), b2


def block1(x, w1, b1, w2, b2):
    y = torch.full((x.shape[0], 64, x.shape[2] // 2, x.shape[3] // 2), 7.0, dtype=x.dtype)
    y = y.contiguous(memory_format=NHWC)
    backend_of(x).run("conv_block1", x, w1, b1, w2, b2, y)
    return y


def unfused(x, w1, b1, w2, b2):
    return conv(conv(x, w1, b1, True, False, False)[0], w2, b2, True, True, False)[0]


def exact(x, w1, b1, w2, b2):
    """In float64, of what the first layer makes, rounded to the dtype: the unfused layer's, which may round another
    way where a float32's sum is a tie."""
    a = conv(x, w1, b1, True, False, False)[0]
    assert_rounded_once(a, F.relu(F.conv2d(x.double(), w1.double(), None if b1 is None else b1.double(), padding=1)))
    y = F.conv2d(a.double(), w2.double(), None if b2 is None else b2.double(), padding=1)
    return F.max_pool2d(F.relu(y), 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c", [1, 2, 3, 4])
def test_channels(backend, sim, dtype, c):
    """Several tiles of a block, odd sizes, two images."""
    inputs = draw(dtype, 2, c, 33, 19)
    sim.clear_counters()
    y = block1(*inputs)
    assert set(sim.counters()) == {"conv_block1_kernel"}
    assert sim.counters()["conv_block1_kernel"]["blocks"] == 2
    assert_rounded_once(y, exact(*inputs))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_edges(backend, sim, size):
    """Sizes below, at and beyond a tile's, where all that is outside the image is zero for the second layer too."""
    sim.set_seed(sum(size))
    inputs = draw(torch.bfloat16, 1, 3, *size)
    inputs[2].add_(2)  # relu(bias) of a pixel outside would be seen
    assert_rounded_once(block1(*inputs), exact(*inputs))


def test_many_images(backend, sim):
    """More tiles than the boxes' ring and both consumers have turns."""
    inputs = draw(torch.float16, 23, 3, 6, 6)
    assert_rounded_once(block1(*inputs), exact(*inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_as_two_launches(backend, sim, dtype):
    """Sums are added up in the order of the tile that is fed by rows."""
    inputs = draw(dtype, 1, 3, 30, 18)
    fused = block1(*inputs)
    a = conv(inputs[0], inputs[1], inputs[2], True, False, False)[0]
    sim.cuda.set_conv_tile("halo-64x224-stationary")
    assert_same_bits(fused, conv(a, inputs[3], inputs[4], True, True, False)[0])


def test_orders(backend, sim):
    """The same bits, in whatever order threads run and copies land, and on any number of SMs."""
    inputs = draw(torch.bfloat16, 2, 3, 30, 12)
    results = []
    for seed, num_sms in ((1, 2), (2, 1), (3, 3), (4, 132)):
        sim.set_seed(seed)
        sim.set_num_sms(num_sms)
        results.append(block1(*inputs))
    for other in results[1:]:
        assert_same_bits(results[0], other)


@pytest.mark.parametrize("late", range(12))
def test_a_warp_that_comes_last(backend, sim, late):
    """Of the producers' four warps and the consumers' eight: everybody waits for it."""
    inputs = draw(torch.bfloat16, 1, 3, 4, 60)
    expected = block1(*inputs)
    sim.set_late_warp(late)
    assert_same_bits(block1(*inputs), expected)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0)], ids=str)
def test_strides_of_the_first_weights(backend, order):
    x, w1, *rest = draw(torch.bfloat16, 1, 3, 9, 10)
    back = [order.index(axis) for axis in range(4)]
    assert_same_bits(block1(x, w1.permute(order).contiguous().permute(back), *rest), block1(x, w1, *rest))


def test_x_at_any_address(backend):
    """Of single values: TMA does not read x."""
    x, *rest = draw(torch.bfloat16, 1, 3, 9, 10)
    moved = torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(1, 9, 10, 3).permute(0, 3, 1, 2).copy_(x)
    assert moved.data_ptr() % 4 == 2
    assert_same_bits(block1(moved, *rest), block1(x, *rest))


@pytest.mark.parametrize("missing", [(2,), (4,), (2, 4)], ids=str)
def test_without_biases(backend, missing):
    inputs = [None if i in missing else t for i, t in enumerate(draw(torch.bfloat16, 1, 3, 8, 8))]
    assert_rounded_once(block1(*inputs), exact(*inputs))


def test_what_is_not_finite_stays_in_its_windows(backend):
    """NaN and infinities of x, in the corners of the image and of tiles, and in the first layer's weights and bias."""
    x, w1, b1, w2, b2 = draw(torch.bfloat16, 1, 3, 31, 19)
    x[0, 0, 0, 0] = x[0, 1, 30, 18] = float("nan")
    x[0, 2, 27, 8] = float("inf")
    got, expected = block1(x, w1, b1, w2, b2), unfused(x, w1, b1, w2, b2)
    assert expected.isnan().any()
    assert not expected.isnan().all()
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(), expected.nan_to_num())
    x, w1, b1, w2, b2 = draw(torch.bfloat16, 1, 3, 3, 3)
    w2.zero_()
    w2[0, 5, 0, 0] = w2[1, 6, 2, 2] = 1  # which the zeros around the image reach
    w1[5, 0, 1, 1], b1[6] = float("nan"), float("inf")
    b2[:] = 3
    got, expected = block1(x, w1, b1, w2, b2), unfused(x, w1, b1, w2, b2)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(), expected.nan_to_num())


def test_no_images(backend, sim):
    sim.clear_counters()
    assert block1(*draw(torch.bfloat16, 0, 3, 8, 8)).shape == (0, 64, 4, 4)
    assert block1(*draw(torch.bfloat16, 1, 3, 1, 8)).shape == (1, 64, 0, 4)
    assert not sim.counters()


def test_refusals(backend):
    x, w1, b1, w2, b2 = draw(torch.bfloat16, 1, 3, 4, 4)
    y = block1(x, w1, b1, w2, b2)

    def refuses(text, x=x, w1=w1, b1=b1, w2=w2, b2=b2, y=y):
        with pytest.raises(ValueError, match=text):
            backend_of(x).run("conv_block1", x, w1, b1, w2, b2, y)

    refuses(r"x must be dense NHWC \(channels_last\), got strides", x=x.contiguous())
    refuses("x must be bfloat16 or float16, got float32", x=x.float())
    refuses("x must have 1 to 4 channels, got 5", x=x[:, :1].repeat(1, 5, 1, 1).contiguous(memory_format=NHWC))
    refuses(r"w1 must have shape \(64, 3, 3, 3\), got \(64, 2, 3, 3\)", w1=w1[:, :2])
    refuses("w1 must be bfloat16, got float16", w1=w1.half())
    refuses(r"b1 must have shape \(64\), got \(63\)", b1=b1[:63])
    refuses("b1 is not contiguous", b1=b1.repeat(2)[::2])
    refuses(r"w2 must be dense NHWC \(channels_last\), got strides", w2=w2.contiguous())
    refuses(r"w2 must have shape \(64, 64, 3, 3\), got \(32, 64, 3, 3\)", w2=w2[:32])
    refuses("b2 must be bfloat16, got float32", b2=b2.float())
    refuses(r"y must have shape \(1, 64, 2, 2\), got \(1, 64, 1, 2\)", y=y[:, :, :1])
    flat = torch.zeros(4 * 64 + 1, dtype=y.dtype)[1:].view(1, 2, 2, 64).permute(0, 3, 1, 2)
    refuses("y must begin at a multiple of 16 bytes, got address", y=flat)


def test_who_has_it(sim):
    assert sim.cuda.has_conv_block1()
    sim.cuda.set_conv_tile("small")
    assert not sim.cuda.has_conv_block1()


# ---- the engine -----------------------------------------------------------------------------------------------------


def layers(first=64, ceil_mode=False, channels=3):
    block = [nn.Conv2d(channels, first, 3, padding=1), nn.ReLU(), nn.Conv2d(first, 64, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*block, nn.MaxPool2d(2, ceil_mode=ceil_mode), nn.Conv2d(64, 16, 3, padding=1), nn.ReLU())


def launched(sim, run):
    sim.clear_counters()
    run()
    return "conv_block1_kernel" in sim.counters()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_engine_takes_it(build, sim, precision, channels):
    model = layers(channels=channels)
    made = build(model, dtype=precision)
    for size in ((2, channels, 33, 40), (1, channels, 2, 2)):
        x = torch.randn(size)
        sim.clear_counters()
        y = made(x)
        assert set(sim.counters()) == {"conv_block1_kernel", "conv_fprop_hopper_kernel"}
        assert relative_error(y, plain_torch(model).double()(x.double())) < 1e-2


def test_when_the_engine_takes_it(build, sim):
    """Where nobody wants what it leaves out, and what it computes is what the layers say."""
    x = torch.randn(1, 3, 9, 11)
    made = build(layers(), dtype="bf16")
    assert launched(sim, lambda: made.features(x, ["pool1"]))
    assert launched(sim, lambda: made.features(x, ["pool1", "relu2_1"]))
    for name in ("conv1_1", "relu1_1", "conv1_2", "relu1_2"):
        assert not launched(sim, lambda name=name: made.features(x, [name, "relu2_1"])), name
    for model, options in (
        (layers(), {"dtype": "fp32"}),
        (layers(), {"dtype": "tf32"}),
        (layers(ceil_mode=True), {"dtype": "bf16"}),
        (layers(first=32), {"dtype": "bf16"}),
        (layers(channels=5), {"dtype": "bf16"}),
        (nn.Sequential(*layers()[:4]), {"dtype": "bf16"}),
    ):
        images = torch.randn(1, model[0].in_channels, 9, 11)
        assert not launched(sim, lambda model=model, options=options, x=images: build(model, **options)(x)), options
    sim.cuda.set_conv_tile("small")
    assert not launched(sim, lambda: build(layers(), dtype="bf16")(x))
