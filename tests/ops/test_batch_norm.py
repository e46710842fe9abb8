"""Batch norm with ReLU and pool behind it: values, gradients of every order, running statistics, and what is kept."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from tests.ops.test_autograd import saved_by
from tests.support.comparisons import (
    assert_as_accurate_as_torch,
    assert_same_bits,
    in_format,
    relative_error,
    results,
)
from vggfast import _native, ops
from vggfast.ops import _backends, reference
from vggfast.ops.mask import mask_gather
from vggfast.ops.norm import batch_norm_dgrad, batch_norm_op

pytestmark = pytest.mark.usefixtures("one_thread")
EPILOGUES = [{"relu": relu, "pool": pool} for relu in (False, True) for pool in (False, True)]
each_epilogue = pytest.mark.parametrize(
    "epilogue", EPILOGUES, ids=lambda e: f"{'relu' * e['relu']}+{'pool' * e['pool']}"
)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "given"])
# A single channel, no vector's width, one more than a vector, odd extents, several blocks of pixels, a part.
SHAPES = [(2, 1, 2, 3), (3, 5, 6, 7), (2, 17, 9, 4), (1, 64, 70, 3), (2, 16, 5, 67), (5, 33, 16, 16), (0, 3, 4, 4)]


def draw(shape, dtype=torch.float32, memory_format="channels_last"):
    """x, weight, bias, running mean and variance. Some weights are negative: a pool must come after them."""
    c = shape[1]
    x = in_format(torch.randn(shape, dtype=dtype) * 2 + torch.randn(c, dtype=dtype)[:, None, None], memory_format)
    return (
        x,
        torch.randn(c, dtype=dtype),
        torch.randn(c, dtype=dtype),
        torch.randn(c, dtype=dtype),
        torch.rand(c, dtype=dtype) + 0.5,
    )


def call(module, running, training, **options):
    """The op as a function of x, weight and bias."""

    def op(x, weight=None, bias=None):
        mean, var = (None, None) if training else (t.to(x.dtype) for t in running)
        return module.batch_norm(x, mean, var, weight, bias, training, **options)

    return op


def as_ours_selects(x, weight, bias, running, training, relu, pool):
    """The reference, but that ReLU and pool pass on what ours pass on: of values that differ by less than a rounding
    error, any will do."""
    given = (None, None) if training else running
    mask = batch_norm_op(x, weight, bias, *given, 1e-5, relu, pool, True)[1]

    def op(x, weight=None, bias=None):
        y = call(reference, running, training)(x, weight, bias)
        return mask_gather(y, mask) if relu or pool else y

    return op


@pytest.mark.parametrize(
    ("dtype", "memory_format", "affine"),
    [
        (torch.float32, "channels_last", True),
        (torch.float32, "channels_last", False),
        (torch.float32, "contiguous_format", True),
        (torch.float64, "channels_last", True),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@each_epilogue
@each_mode
def test_values_and_gradients(backend, training, epilogue, shape, dtype, memory_format, affine):
    x, weight, bias, *running = draw(shape, dtype, memory_format)
    inputs = [x, weight, bias] if affine else [x]
    weight, bias = (weight, bias) if affine else (None, None)
    ours = results(call(ops, running, training, **epilogue), inputs)
    assert ours[0].is_contiguous(memory_format=getattr(torch, memory_format))
    exact = as_ours_selects(x, weight, bias, running, training, **epilogue)
    exact = results(exact, [t.double() for t in inputs])
    theirs = results(call(reference, running, training, **epilogue), inputs)
    for got, torchs, want in zip(ours, theirs, exact, strict=True):
        if dtype == torch.float64:
            assert relative_error(got, want) < 1e-13 * (1 + want.numel())
        else:
            assert_as_accurate_as_torch(got, torchs, want)


@pytest.mark.parametrize("shape", [(4, 17, 40, 41), (64, 5, 9, 9)], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("outlier", [0.0, 1e4])
def test_moments(backend, shape, offset, outlier):
    """Far from 0, and where the first pixel of each block is far from the others."""
    x = in_format(torch.randn(shape) + offset, "channels_last")
    x.permute(0, 2, 3, 1).reshape(-1, shape[1])[::16] += outlier
    mean, var = batch_norm_op(x, None, None, None, None, 1e-5, False, False, False)[2:]
    exact_var, exact_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    assert ((mean - exact_mean).abs() <= 1e-6 * (exact_var.sqrt() + exact_mean.abs())).all()
    assert relative_error(var, exact_var) < 5e-6


@each_epilogue
@each_mode
def test_any_number_of_threads_gives_the_same_bits(set_threads, training, epilogue):
    x, weight, bias, *running = draw((3, 65, 37, 30))
    found = []
    for threads in (1, 2, 3):
        set_threads(threads)
        found.append(results(call(ops, running, training, **epilogue), [x, weight, bias]))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert_same_bits(a, b)


@pytest.mark.backends("cpu")
@pytest.mark.parametrize("pool", [False, True])
def test_outputs_larger_than_caches(backend, pool, monkeypatch):
    """They are written past the caches: as many small ones are."""
    monkeypatch.setattr(_native, "_POOLED_BYTES", 1)  # aligned to a vector
    x, weight, bias, *running = draw((4, 64, 230, 210))
    whole = results(call(ops, running, False, relu=True, pool=pool), [x, weight, bias])[:2]
    gy = [torch.arange(whole[0].numel()).reshape(whole[0].shape)[i : i + 1] * 7 % 11 for i in range(4)]
    for i in range(4):
        part = x[i : i + 1].requires_grad_()
        y = call(ops, running, False, relu=True, pool=pool)(part, weight, bias)
        assert torch.equal(y, whole[0][i : i + 1])
        (gx,) = torch.autograd.grad(y, part, (gy[i] - 5).to(y.dtype) / 4)
        assert torch.equal(gx, whole[1][i : i + 1])


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
@each_epilogue
@each_mode
def test_what_is_not_finite_stays_in_its_channel(backend, training, epilogue, special):
    x, weight, bias, *running = draw((2, 19, 6, 6))
    x[1, 7, 2, 3] = special
    ours, theirs = (results(call(m, running, training, **epilogue), [x, weight, bias]) for m in (ops, reference))
    assert torch.equal(ours[0].isnan(), theirs[0].isnan())
    others = [c for c in range(19) if c != 7]
    for got, want in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(got[:, others], want[:, others])


# ---- derivatives --------------------------------------------------------------------------------------------------


def doubles(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@each_epilogue
@each_mode
@pytest.mark.parametrize("affine", [True, False])
def test_first_and_second_derivatives(training, epilogue, affine):
    running = torch.randn(3).double(), torch.rand(3).double() + 0.5
    inputs = [doubles(2, 3, 3, 4), *([doubles(3), doubles(3)] if affine else [])]
    op = call(ops, running, training, **epilogue)
    assert gradcheck(op, inputs)
    assert gradgradcheck(op, inputs)


@each_mode
def test_third_derivative(training):
    """torch's own takes the batch's mean and variance for constants from the third order on."""

    def plain(x):
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True) if training else (1.0, 0.0)
        return F.max_pool2d(F.relu((x - mean) / (var + 1e-5) ** 0.5), 2)

    def third(op):
        x = torch.linspace(0, 20, 96).double().sin().reshape(2, 3, 4, 4).requires_grad_()
        y = op(x)
        for _ in range(3):
            (y,) = torch.autograd.grad(y.sin().pow(3).sum(), x, create_graph=True)
        return y

    running = torch.zeros(3).double(), torch.ones(3).double()
    torch.testing.assert_close(third(call(ops, running, training, relu=True, pool=True)), third(plain))


@each_mode
@pytest.mark.parametrize("needs", [n for n in itertools.product([False, True], repeat=3) if any(n)], ids=str)
def test_only_what_is_asked_for(training, needs):
    inputs = [t.double().requires_grad_(need) for t, need in zip(draw((2, 5, 6, 6))[:3], needs, strict=True)]
    running = torch.zeros(5).double(), torch.ones(5).double()
    leaves = [t for t in inputs if t.requires_grad]
    ours, theirs = (
        torch.autograd.grad(call(m, running, training, relu=True, pool=True)(*inputs).pow(2).sum(), leaves)
        for m in (ops, reference)
    )
    torch.testing.assert_close(ours, theirs)


@each_epilogue
def test_of_maps_only_the_input_is_kept(epilogue):
    x, weight, bias, *_ = (t.requires_grad_() for t in draw((2, 16, 8, 6)))
    saved = saved_by(ops.batch_norm, x, None, None, weight, bias, True, **epilogue)
    bits = [t for t in saved if t.dtype == torch.uint8]
    assert [t.data_ptr() for t in saved if t.numel() == x.numel()] == [x.data_ptr()]
    assert sum(t.numel() for t in saved if t is not x and t.dtype != torch.uint8) <= x.numel() + 3 * 16
    outputs = x.numel() // (4 if epilogue["pool"] else 1)
    assert 8 * sum(t.numel() for t in bits) == (epilogue["relu"] + 2 * epilogue["pool"]) * outputs


def test_no_gradient_goes_where_no_mask_was_kept():
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="save must be True where a gradient is to flow through ReLU or pool, got"):
        batch_norm_op(x, None, None, None, None, 1e-5, True, False, False)


# ---- statistics and dtypes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0])
def test_running_statistics(backend, momentum):
    x, weight, bias, *running = draw((3, 7, 5, 6))
    theirs = [t.clone() for t in running]
    for _ in range(3):
        ops.batch_norm(x, *running, weight, bias, True, momentum)
        reference.batch_norm(x, *theirs, weight, bias, True, momentum)
    for ours, want in zip(running, theirs, strict=True):
        torch.testing.assert_close(ours, want)


def test_no_image_leaves_running_statistics_alone():
    running = [torch.ones(3), torch.ones(3)]
    y = ops.batch_norm(torch.ones(0, 3, 4, 4), *running, None, None, True, relu=True, pool=True)
    assert y.shape == (0, 3, 2, 2)
    assert all(torch.equal(t, torch.ones(3)) for t in running)


@pytest.mark.backends("cpu")
@pytest.mark.parametrize("channels", ["narrow", "float32"])
@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16], ids=str)
@each_epilogue
@each_mode
def test_narrow_tensors_are_computed_in_float32(backend, training, epilogue, storage, channels):
    narrow = [t.to(storage) for t in draw((3, 20, 9, 8))]
    wide = [t.float() for t in narrow]
    given = narrow if channels == "narrow" else [narrow[0], *wide[1:]]

    def op(x, weight, bias):
        return ops.batch_norm(x, *((None, None) if training else given[3:]), weight, bias, training, **epilogue)

    ours = results(op, given[:3])
    want = results(call(ops, wide[3:], training, **epilogue), wide[:3])
    for got, expected, dtype in zip(ours, want, [t.dtype for t in (given[0], *given[:3])], strict=True):
        assert_same_bits(got, expected.to(dtype))


def test_only_float16_is_copied(monkeypatch):
    seen, run = [], _backends.Backend.run

    def recorded(self, name, x, *args, **options):
        seen.append(x.dtype)
        run(self, name, x, *args, **options)

    monkeypatch.setattr(_backends.Backend, "run", recorded)
    x, weight, bias, *_ = draw((2, 5, 6, 6))
    for dtype in (torch.bfloat16, torch.float16):
        ops.batch_norm(x.to(dtype).requires_grad_(), None, None, weight, bias, True).sum().backward()
    assert seen == [torch.bfloat16] * 2 + [torch.float32] * 2


def test_a_bias_alone_of_narrow_maps_keeps_its_gradient():
    x, _, bias, *_ = draw((16, 2, 32, 32))
    x, bias = x.to(torch.bfloat16), bias.requires_grad_()
    gy = torch.randn(x.shape).to(torch.bfloat16)
    (gb,) = torch.autograd.grad(ops.batch_norm(x, None, None, None, bias, True), bias, gy)
    torch.testing.assert_close(gb, gy.double().sum((0, 2, 3)).float())


@each_mode
def test_second_derivative_of_narrow_maps(training):
    x, weight, bias, *running = draw((3, 5, 6, 6))
    x = x.to(torch.bfloat16)

    def second(x, weight):
        leaves = [x.requires_grad_(), weight.detach().requires_grad_()]
        statistics = (None, None) if training else running
        y = ops.batch_norm(leaves[0], *statistics, leaves[1], bias, training, relu=True)
        first = torch.autograd.grad(y.float().pow(3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.float().pow(2).sum() for g in first), leaves)

    ours, want = second(x.detach(), weight), second(x.detach().float(), weight)
    assert [g.dtype for g in ours] == [torch.bfloat16, torch.float32]
    for got, expected in zip(ours, want, strict=True):
        assert relative_error(got, expected) < 0.03  # a first derivative was rounded to 8 bits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_autocast_computes_in_float32(dtype, no_tiles):
    args = [t.to(dtype).requires_grad_() for t in draw((3, 5, 6, 7))[:3]]
    x, weight, bias = args
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.batch_norm(x, None, None, weight, bias, True, relu=True)
    expected = reference.batch_norm(x.float(), None, None, weight.float(), bias.float(), True, relu=True)
    assert y.dtype == torch.float32
    gy = torch.randn(y.shape)
    ours, theirs = (torch.autograd.grad(out, args, gy) for out in (y, expected))
    for got, wanted in zip((y, *ours), (expected, *theirs), strict=True):
        torch.testing.assert_close(got, wanted)


def test_vmap_normalises_each_example():
    x, weight, bias, *_ = draw((3, 5, 6, 6))
    xs = torch.stack([x, 2 * x + 1])
    batched = torch.func.vmap(lambda x: ops.batch_norm(x, None, None, weight, bias, True, relu=True, pool=True))(xs)
    for got, each in zip(batched, xs, strict=True):
        assert torch.equal(got, ops.batch_norm(each, None, None, weight, bias, True, relu=True, pool=True))


def test_func_grad():
    x, weight, bias, *_ = (t.double() for t in draw((3, 5, 6, 6)))

    def loss(module):
        return lambda w: module.batch_norm(x, None, None, w, bias, True, relu=True).pow(2).sum()

    torch.testing.assert_close(torch.func.grad(loss(ops))(weight), torch.func.grad(loss(reference))(weight))


@pytest.mark.parametrize("masked", [False, True])
def test_opcheck_of_given_statistics(masked):
    x, weight, bias, mean, var = draw((2, 3, 5, 4))
    x.requires_grad_()
    torch.library.opcheck(batch_norm_op, (x, weight, None, mean, var, 1e-5, masked, masked, masked))
    mask = batch_norm_op(x, weight, bias, mean, var, 1e-5, True, True, True)[1] if masked else None
    gy = torch.randn(2, 3, 2, 2) if masked else torch.randn(2, 3, 5, 4)
    torch.library.opcheck(batch_norm_dgrad, (gy, mask, x, weight, mean, var, 1e-5, False, not masked))


def test_dgrad_by_itself():
    x, weight, _, mean, var = (t.double() for t in draw((2, 3, 4, 5)))
    gy = torch.randn_like(x)
    gx, gw, gb = batch_norm_dgrad(gy, None, x, weight, mean, var, 1e-5, False, True)
    r = (var + 1e-5).rsqrt()[:, None, None]
    torch.testing.assert_close(gx, gy * r * weight[:, None, None])
    torch.testing.assert_close(gb, gy.sum((0, 2, 3)))
    torch.testing.assert_close(gw, (gy * (x - mean[:, None, None]) * r).sum((0, 2, 3)))


BAD = {
    "one value": (lambda x, c: ops.batch_norm(x[:1, :, :1, :1], None, None, training=True), ValueError,
                  r"x must have more than one value a channel in training, got shape \(1, 3, 1, 1\)"),
    "no statistics": (lambda x, c: ops.batch_norm(x), ValueError,
                      "running_mean must be given where training is False, got None"),
    "statistics' shape": (lambda x, c: ops.batch_norm(x, c, torch.ones(4)), ValueError,
                          r"running_var must have shape \(3,\), x's channels, got \(4,\)"),
    "weight's shape": (lambda x, c: ops.batch_norm(x, c, c, torch.ones(3, 1)), ValueError,
                       r"weight must have shape \(3,\), x's channels, got \(3, 1\)"),
    "weight's dtype": (lambda x, c: ops.batch_norm(x, c, c, c.double()), TypeError,
                       "weight must have the dtype of x, torch.float32, got torch.float64"),
    "rank": (lambda x, c: ops.batch_norm(x[0], c, c), ValueError, r"x must have 4 axes \(N, C, H, W\), got shape"),
    "pool of a row": (lambda x, c: ops.batch_norm(x[:, :, :1], c, c, pool=True), ValueError,
                      r"x must have H and W of at least 2 with pool, got shape \(2, 3, 1, 5\)"),
    "eps": (lambda x, c: ops.batch_norm(x, c, c, eps="1"), TypeError, "eps must be a number, got str '1'"),
    "mean alone": (lambda x, c: batch_norm_op(x, None, None, c, None, 1e-5, False, False, False), ValueError,
                   "mean and var must be given together or not at all, got mean"),
    "gradient's shape": (lambda x, c: batch_norm_dgrad(x[:1], None, x, None, c, c, 1e-5, True, True), ValueError,
                         r"gy must have shape \(2, 3, 4, 5\), got \(1, 3, 4, 5\)"),
}  # fmt: skip


@pytest.mark.parametrize(("run", "error", "text"), BAD.values(), ids=BAD)
def test_errors(run, error, text):
    with pytest.raises(error, match=text):
        run(torch.ones(2, 3, 4, 5), torch.ones(3))


def test_reference_is_torchs():
    x, weight, bias, mean, var = draw((2, 3, 6, 6))
    y = F.max_pool2d(F.relu(F.batch_norm(x, mean, var, weight, bias)), 2)
    assert torch.equal(reference.batch_norm(x, mean, var, weight, bias, relu=True, pool=True), y)
