"""The Hopper wgrad on the simulated GPU: 3x3 weight gradients of 16-bit types, and which ones are the portable
kernel's. csrc/tests/sim/test_sim_hopper_wgrad.cpp asks it for longer sums than these."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.func import grad, vmap

from tests.support.comparisons import assert_rounded_once, assert_same_bits
from vggfast import ops
from vggfast.ops import _backends
from vggfast.ops.conv import conv, conv_dgrad, conv_wgrad
from vggfast.ops.mask import mask_scatter

pytestmark = pytest.mark.backends("sim")
HOPPER, PORTABLE = "conv_wgrad_hopper_kernel", "conv_wgrad_kernel"
NARROW = [torch.bfloat16, torch.float16]
KINDS = {"none": 0, "relu": 1, "pool": 2, "relu and pool": 3}  # and the mask's planes
SEEDS = (0, 1000, 2000)


@pytest.fixture(autouse=True)
def _simulator(sim):
    sim.clear_counters()
    yield
    sim.set_seed(0)
    sim.set_num_sms(132)
    sim.cuda.set_conv_tile("auto")


def random_mask(planes: int, n: int, c: int, h: int, w: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, planes, h, w, -(-c // 8)), dtype=torch.uint8)


def exact_wgrad(x, gz, kernel=3):
    """Of the sums' gradient, in float64: gw and gb."""
    cout = gz.shape[1]
    weight = torch.zeros(cout, x.shape[1], kernel, kernel, dtype=torch.float64)
    _, gw, gb = torch.ops.aten.convolution_backward(
        gz.double(), x.double(), weight, [cout], [1, 1], [kernel // 2] * 2, [1, 1], False, [0, 0], 1,
        [False, True, True],
    )  # fmt: skip
    return gw, gb


def ran(sim) -> str:
    """The one wgrad kernel that ran."""
    (name,) = {HOPPER, PORTABLE} & set(sim.counters())
    return name


def check(sim, x, gy, mask=None) -> None:
    """Against float64, and the same bits in every order of threads and copies."""
    gz = gy if mask is None else mask_scatter(gy, mask, *x.shape[2:])
    expected, results = exact_wgrad(x, gz), []
    for seed in SEEDS:
        sim.set_seed(seed)
        sim.clear_counters()
        results.append(conv_wgrad(x, gy, mask, 3, True))
        assert ran(sim) == HOPPER
    for got, want in zip(results[0], expected, strict=True):
        assert_rounded_once(got, want)
    for others in results[1:]:
        for got, other in zip(results[0], others, strict=True):
            assert_same_bits(got, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("size", [(14, 16), (9, 15)], ids=["14 rows", "8 rows"])
def test_every_variant(backend, sim, kind, dtype, size):
    """Steps of 14 and of 8 rows, both types, with and without a mask."""
    h, w = size
    pool = KINDS[kind] > 1
    x = torch.randn(2, 24, h, w).to(dtype)
    gy = torch.randn(2, 40, *(extent // (2 if pool else 1) for extent in size)).to(dtype)
    mask = random_mask(KINDS[kind], *gy.shape) if KINDS[kind] else None
    check(sim, x, gy, mask)


@pytest.mark.parametrize(
    ("n", "cin", "h", "w", "cout"),
    [
        (1, 8, 1, 1, 8),  # an image of one pixel
        (3, 64, 1, 1, 64),
        (1, 8, 2, 1, 72),
        (1, 72, 15, 9, 136),  # a tile and a bit, each way
        (2, 136, 13, 15, 72),
        (9, 64, 14, 14, 64),  # two pixels of four images abreast, and an image over
        (3, 8, 28, 28, 136),
        (8, 8, 3, 13, 8),  # a prime width: one pixel of eight images
        (1, 64, 17, 31, 8),  # and of one image
        (2, 8, 56, 56, 8),  # several runs
        (1, 8, 30, 112, 72),
        (1, 8, 14, 132, 8),
    ],
)
def test_shapes(backend, sim, n, cin, h, w, cout):
    check(sim, torch.randn(n, cin, h, w).bfloat16(), torch.randn(n, cout, h, w).bfloat16())


def test_blocks_of_many_steps(backend, sim):
    """On a small GPU, each block takes several runs."""
    sim.set_num_sms(2)
    x, gy = torch.randn(1, 8, 28, 112).half(), torch.randn(1, 72, 28, 112).half()
    check(sim, x, gy)
    assert sim.counters()[HOPPER]["blocks"] == 2  # one for each tile of gw


def test_without_bias_and_any_strides(backend, sim):
    x, gy = torch.randn(1, 16, 9, 8).bfloat16(), torch.randn(1, 8, 9, 8).bfloat16()
    gw, gb = conv_wgrad(x, gy, None, 3, False)
    assert gb.numel() == 0
    assert_rounded_once(gw, exact_wgrad(x, gy)[0])
    again, _ = conv_wgrad(x.contiguous(memory_format=torch.channels_last), gy, None, 3, False)
    assert_same_bits(gw, again)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("size", [(14, 16), (9, 15)], ids=["whole tiles", "ragged"])
def test_nan_and_inf_pass_through(backend, value, size):
    """From where all taps see them to all that they touch, and to nothing else."""
    x, gy = torch.rand(1, 72, *size).bfloat16() + 1, torch.rand(1, 72, *size).bfloat16() + 1
    x[0, 65, 3, 4], gy[0, 2, 5, 6] = value, value
    gw, gb = conv_wgrad(x, gy, None, 3, True)
    for got, want in zip((gw, gb), exact_wgrad(x, gy), strict=True):
        odd = ~want.isfinite()
        assert torch.equal(~got.isfinite(), odd)
        assert torch.equal(got[odd].double().nan_to_num(1), want[odd].nan_to_num(1))
        assert_rounded_once(got[~odd], want[~odd])


def test_nan_at_an_edge_of_whole_tiles(backend):
    """A tap that sees nothing of an edge's pixel is not touched by it."""
    x, gy = torch.rand(1, 8, 14, 16).bfloat16(), torch.rand(1, 8, 14, 16).bfloat16()
    x[0, 1, 13, 15] = float("nan")
    gw, _ = conv_wgrad(x, gy, None, 3, True)
    assert torch.equal(gw.isnan(), exact_wgrad(x, gy)[0].isnan())


def shifted(t: torch.Tensor) -> torch.Tensor:
    """The same in memory that starts at no multiple of 16."""
    n, c, h, w = t.shape
    room = torch.empty(t.numel() + 1, dtype=t.dtype)[1:]
    return room.view(n, h, w, c).permute(0, 3, 1, 2).copy_(t)


@pytest.mark.parametrize("which", ["cin", "cout", "x", "gy", "1x1", "float32", "float64"])
def test_what_the_portable_kernel_keeps(backend, sim, which):
    dtype = getattr(torch, which) if which.startswith("float") else torch.bfloat16
    kernel = 1 if which == "1x1" else 3
    x = torch.randn(1, 12 if which == "cin" else 16, 8, 8).to(dtype)
    gy = torch.randn(1, 12 if which == "cout" else 16, 8, 8).to(dtype)
    gw, gb = conv_wgrad(shifted(x) if which == "x" else x, shifted(gy) if which == "gy" else gy, None, kernel, True)
    assert ran(sim) == PORTABLE
    for got, want in zip((gw, gb), exact_wgrad(x, gy, kernel), strict=True):
        assert_rounded_once(got, want)


def test_a_mask_need_not_be_aligned(backend, sim):
    """What it leads to is made in the workspace first."""
    x, gy = torch.randn(1, 8, 6, 6).half(), torch.randn(1, 8, 6, 6).half()
    check(sim, x, shifted(gy), random_mask(1, *gy.shape))


@pytest.mark.parametrize("tile", ["large", "tall", "small"])
def test_a_forced_tile_is_the_portable_kernel(backend, sim, tile):
    sim.cuda.set_conv_tile(tile)
    x, gy = torch.randn(1, 8, 8, 8).bfloat16(), torch.randn(1, 8, 8, 8).bfloat16()
    sim.clear_counters()
    assert_rounded_once(conv_wgrad(x, gy, None, 3, True)[0], exact_wgrad(x, gy)[0])
    assert ran(sim) == PORTABLE


# ---- with dgrad ---------------------------------------------------------------------------------------------------


def gradients(monkeypatch, shared, shapes, dtype=torch.bfloat16, relu=True, pool=True):
    """Of x, weight and bias; and, of those and of the output's gradient, the second ones."""
    with monkeypatch.context() as patch:
        if not shared:
            patch.setattr(type(_backends.backend_of(torch.empty(0))), "shares_gradients", lambda *_: False)
        torch.manual_seed(1)
        n, cin, h, w, cout, kernel = shapes
        inputs = [torch.randn(n, cin, h, w), torch.randn(cout, cin, kernel, kernel), torch.randn(cout)]
        inputs = [t.to(dtype).requires_grad_() for t in inputs]
        y, _ = conv(*inputs, relu, pool, True)
        gy = torch.randn_like(y).requires_grad_()
        first = torch.autograd.grad(y, inputs, gy, create_graph=True)
        return first, torch.autograd.grad([t.square().sum() for t in first], [*inputs[:2], gy])


@pytest.mark.parametrize("kind", list(KINDS)[1:])
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_one_scatter_serves_both_gradients(backend, sim, monkeypatch, dtype, kind):
    """To the bit as if each made its own, and so are the second derivatives."""
    shapes, planes = (2, 24, 9, 10, 32, 3), KINDS[kind]
    found = {}
    for shared in (True, False):
        first, second = gradients(monkeypatch, shared, shapes, dtype, planes != 2, planes >= 2)
        found[shared] = [*first, *second]
    for ours, others in zip(found[True], found[False], strict=True):
        assert_same_bits(ours, others)


@pytest.mark.parametrize(
    ("shapes", "dtype", "scatters"),
    [
        ((2, 16, 9, 10, 16, 3), torch.bfloat16, 1),
        ((2, 3, 9, 10, 16, 3), torch.bfloat16, 0),  # the first layer's kernels read through the mask
        ((2, 24, 9, 10, 8, 3), torch.bfloat16, 1),  # wgrad's own: dgrad is the portable kernel's
        ((2, 16, 9, 10, 16, 1), torch.bfloat16, 1),  # dgrad's own: wgrad is the portable kernel's
        ((2, 20, 9, 10, 16, 3), torch.bfloat16, 0),
        ((0, 16, 9, 10, 16, 3), torch.bfloat16, 0),
        ((2, 16, 9, 10, 16, 3), torch.float32, 0),
    ],
)
def test_scatters_of_a_backward(backend, sim, shapes, dtype, scatters):
    n, cin, h, w, cout, kernel = shapes
    x, weight = torch.randn(n, cin, h, w).to(dtype), torch.randn(cout, cin, kernel, kernel).to(dtype)
    y, _ = conv(x.requires_grad_(), weight.requires_grad_(), None, True, False, True)
    sim.clear_counters()
    y.backward(torch.randn_like(y))
    assert sim.counters().get("mask_scatter_kernel", {"launches": 0})["launches"] == scatters


def test_one_gradient_alone_is_left_as_it_is(backend, sim):
    x, weight = torch.randn(1, 16, 6, 6).bfloat16(), torch.randn(16, 16, 3, 3).bfloat16().requires_grad_()
    y, mask = conv(x, weight, None, True, True, True)
    gy = torch.randn_like(y)
    (gw,) = torch.autograd.grad(y, weight, gy)
    assert_same_bits(gw, conv_wgrad(x, gy, mask, 3, False)[0])
    x.requires_grad_()
    y, mask = conv(x, weight.detach(), None, True, True, True)
    assert_same_bits(torch.autograd.grad(y, x, gy)[0], conv_dgrad(gy, mask, weight.detach(), 6, 6))


@pytest.mark.parametrize("how", ["compiled", "compiled for any size", "per example"])
def test_one_scatter_under_the_rest_of_torch(backend, how):
    x, weight = torch.randn(2, 16, 6, 7).bfloat16(), torch.randn(16, 16, 3, 3).bfloat16()

    def loss(x, weight):
        return ops.conv3x3(x, weight, relu=True, pool=True).square().sum()

    plain = grad(loss, (0, 1))
    if how == "per example":
        found = vmap(plain, (0, None))(x[:, None], weight)
        each = [plain(one[None], weight) for one in x]
        expected = [torch.stack(parts) for parts in zip(*each, strict=True)]
    else:
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        compiled = torch.compile(loss, fullgraph=True, dynamic="any" in how, backend="aot_eager")
        compiled(*leaves).backward()
        found, expected = [t.grad for t in leaves], plain(x, weight)
    for ours, others in zip(found, expected, strict=True):
        assert_same_bits(ours, others)


def test_devices_that_nothing_runs_on(backend):
    """Meta tensors, and fake ones of a GPU that is not there."""
    x = torch.empty(1, 16, 6, 6, device="meta", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.empty(16, 16, 3, 3, device="meta", dtype=torch.bfloat16, requires_grad=True)
    y, _ = conv(x, weight, None, True, True, True)
    gx, gw = torch.autograd.grad(y, [x, weight], torch.empty_like(y))
    assert (gx.shape, gw.shape) == (x.shape, weight.shape)
    if not torch.cuda.is_available():
        with FakeTensorMode():
            x, weight = (torch.empty(16, 16, 3, 3, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        assert not _backends.shares_gradients(x, weight)
