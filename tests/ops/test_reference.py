"""Every op, forward and backward, on every back end, against vggfast.ops.reference in higher precision."""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.backends import ALGORITHMS, EXACT
from tests.support.comparisons import (
    assert_as_accurate_as_bf16x3,
    assert_as_accurate_as_tf32,
    assert_as_accurate_as_torch,
    assert_as_accurate_as_winograd,
    assert_rounded_once,
    assert_same_bits,
    in_format,
    integers,
    relative_error,
    results,
)
from vggfast import ops
from vggfast.ops import reference
from vggfast.ops.conv import conv, conv_dgrad
from vggfast.ops.mask import mask_gather

pytestmark = pytest.mark.usefixtures("one_thread")
FORMATS = ("contiguous_format", "channels_last")
# n, cin, cout, h, w: single elements, no vector's width, one more than a vector or a block, no images at all.
CONV_SHAPES = [
    (2, 3, 5, 6, 6),
    (1, 1, 1, 2, 2),
    (2, 8, 16, 5, 7),
    (1, 17, 33, 9, 4),
    (3, 31, 70, 7, 3),
    (1, 64, 130, 3, 5),
    (0, 3, 4, 5, 5),
    (2, 16, 257, 2, 3),
]
EPILOGUES = [{"relu": relu, "pool": pool} for relu in (False, True) for pool in (False, True)]


def name_of(options) -> str:
    return "-".join(f"{key}={value}" for key, value in options.items()) or "plain"


def conv_as_ours_selects(inputs, relu=False, pool=False):
    """The reference for float64 copies of these inputs, but that ReLU and pool pass on what ours pass on: of elements
    that differ by less than a rounding error, any will do."""
    _, mask = conv(*inputs, relu, pool, relu or pool)

    def op(x, weight, bias=None):
        z = F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)
        return mask_gather(z, mask) if relu or pool else z

    return op


NARROW = (torch.bfloat16, torch.float16)
RULES = {"tf32": assert_as_accurate_as_tf32, "bf16x3": assert_as_accurate_as_bf16x3}


def compare(name, inputs, algorithm="direct", **options):
    """Ours in the inputs' dtype against the reference in float64, with torch's own error as the measure."""
    dtype = inputs[0].dtype
    if dtype in NARROW or (algorithm not in EXACT and dtype == torch.float32):
        rule = RULES.get(algorithm, assert_as_accurate_as_winograd)
        selects = name.startswith("conv")
        op = conv_as_ours_selects([*inputs, None][:3], **options) if selects else getattr(reference, name)
        exact = results(op, [None if t is None else t.double() for t in inputs], **({} if selects else options))
        for ours, expected in zip(results(getattr(ops, name), inputs, **options), exact, strict=True):
            (assert_rounded_once if dtype in NARROW else rule)(ours, expected)
        return
    ours = results(getattr(ops, name), inputs, **options)
    theirs = results(getattr(reference, name), inputs, **options)
    exact = results(getattr(reference, name), [None if t is None else t.double() for t in inputs], **options)
    for triple in zip(ours, theirs, exact, strict=True):
        assert_as_accurate_as_torch(*triple)


def draw(shape, dtype, memory_format):
    """float64 has nothing to be compared with in torch, so its numbers are such that nothing is rounded."""
    t = integers(*shape, dtype=dtype) if dtype == torch.float64 else torch.randn(shape).to(dtype)
    return in_format(t, memory_format)


def each_algorithm(*names):
    """float32 by each of these, and the dtypes that have one."""
    pairs = [*((torch.float32, name) for name in names), *((dtype, "auto") for dtype in (torch.float64, *NARROW))]
    return pytest.mark.parametrize(("dtype", "algorithm"), pairs, indirect=["algorithm"], ids=str)


@each_algorithm(*ALGORITHMS)
@pytest.mark.parametrize("memory_format", FORMATS)
class TestConv3x3:
    @pytest.mark.parametrize("shape", CONV_SHAPES, ids=str)
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("epilogue", EPILOGUES, ids=name_of)
    def test_shapes(self, backend, dtype, algorithm, memory_format, shape, bias, epilogue):
        n, cin, cout, h, w = shape
        x, weight = draw((n, cin, h, w), dtype, memory_format), draw((cout, cin, 3, 3), dtype, memory_format)
        compare("conv3x3", [x, weight, draw((cout, 1, 1, 1), dtype, memory_format).flatten() if bias else None],
                algorithm, **epilogue)  # fmt: skip

    @pytest.mark.parametrize("shape", [(1, 3, 4, 1, 1), (2, 5, 7, 1, 6), (1, 9, 8, 7, 1)], ids=str)
    @pytest.mark.parametrize("relu", [False, True])
    def test_one_row_or_column(self, backend, dtype, algorithm, memory_format, shape, relu):
        n, cin, cout, h, w = shape
        compare("conv3x3", [draw((n, cin, h, w), dtype, memory_format), draw((cout, cin, 3, 3), dtype, memory_format)],
                algorithm, relu=relu)  # fmt: skip


@each_algorithm("auto", "direct", "tf32")
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [*CONV_SHAPES, (2, 5, 6, 1, 1), (1, 3, 4, 1, 9)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_conv1x1(backend, dtype, algorithm, memory_format, shape, bias, relu):
    n, cin, cout, h, w = shape
    x, weight = draw((n, cin, h, w), dtype, memory_format), draw((cout, cin, 1, 1), dtype, memory_format)
    compare("conv1x1", [x, weight, draw((cout, 1, 1, 1), dtype, memory_format).flatten() if bias else None],
            "tf32" if algorithm == "tf32" else "direct", relu=relu)  # fmt: skip


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *NARROW], ids=str)
class TestPools:
    @pytest.mark.parametrize(
        "shape", [(2, 3, 6, 8), (1, 17, 5, 7), (0, 4, 4, 4), (3, 1, 2, 9), (1, 70, 3, 3), (2, 64, 5, 4)], ids=str
    )
    @pytest.mark.parametrize("ceil_mode", [False, True])
    def test_max_pool2x2(self, backend, dtype, memory_format, shape, ceil_mode):
        x = draw(shape, dtype, memory_format)
        ours, theirs = (results(m.max_pool2x2, [x], ceil_mode=ceil_mode) for m in (ops, reference))
        for a, b in zip(ours, theirs, strict=True):
            assert_same_bits(a, b)

    @pytest.mark.parametrize("shape", [(2, 10, 1, 1), (3, 1, 5, 7), (1, 130, 9, 4), (0, 4, 2, 2), (2, 64, 5, 4)],
                             ids=str)  # fmt: skip
    @pytest.mark.parametrize("reduce", ["mean", "sum"])
    def test_sum_pool(self, backend, dtype, memory_format, shape, reduce):
        compare("sum_pool", [draw(shape, dtype, memory_format)], reduce=reduce)

    @pytest.mark.parametrize("shape", [(4, 10, 1, 1), (2, 1, 5, 7), (6, 130, 3, 4), (2, 1000, 2, 2)], ids=str)
    @pytest.mark.parametrize("views", [1, 2])
    def test_mean_posteriors(self, backend, dtype, memory_format, shape, views):
        x = in_format(torch.randn(shape).to(dtype), memory_format)
        ours = results(ops.mean_posteriors, [x], views=views)
        exact = results(reference.mean_posteriors, [x.double()], views=views)
        for got, expected in zip(ours, exact, strict=True):
            limit = torch.finfo(dtype).eps * (1 if dtype in NARROW else 16)
            assert relative_error(got, expected) < limit


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 3, 1, 6), (2, 5, 7, 1), (2, 40, 13, 11), (0, 4, 4, 4)], ids=str)
def test_max_pool2x2_forward(backend, shape, memory_format):
    x = in_format(torch.randn(shape), memory_format)
    assert_same_bits(ops.max_pool2x2(x, ceil_mode=True), reference.max_pool2x2(x, ceil_mode=True))
    if min(shape[2:]) > 1:
        assert_same_bits(ops.max_pool2x2(x), reference.max_pool2x2(x))


# ---- LRN, and what random float64 numbers give --------------------------------------------------------------------


def window_sums(t, before, after):
    """Over axis 1, `before` channels back and `after` on."""
    padded = np.pad(t, ((0, 0), (before, after), (0, 0), (0, 0)))
    return sum(padded[:, i : i + t.shape[1]] for i in range(before + after + 1))


def lrn_in_long_double(x, gy, size, alpha, beta, k):
    x, gy = (t.cpu().double().numpy().astype(np.longdouble) for t in (x, gy))
    before, after, a = size // 2, (size - 1) // 2, np.longdouble(alpha) / size
    s = k + a * window_sums(x * x, before, after)
    t = window_sums(gy * x * s ** (-beta - 1), after, before)
    return x * s**-beta, gy * s**-beta - 2 * a * beta * x * t


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *NARROW], ids=str)
@pytest.mark.parametrize("shape", [(2, 7, 5, 3), (3, 1, 8, 9), (2, 70, 3, 4), (0, 5, 2, 2), (2, 64, 3, 5)], ids=str)
@pytest.mark.parametrize(
    ("size", "alpha", "beta", "k"),
    [(5, 1e-4, 0.75, 2.0), (5, 2.0, 0.75, 1.0), (4, 0.5, 0.5, 1.0), (1, 1.0, 1.0, 1.0), (2, 3.0, 1.3, 0.5),
     (9, 1.0, 0.75, 2.0), (40, 1.0, 0.25, 1.0)],
)  # fmt: skip
def test_local_response_norm(backend, dtype, memory_format, shape, size, alpha, beta, k):
    x = in_format(torch.randn(shape).to(dtype), memory_format)
    options = {"size": size, "alpha": alpha, "beta": beta, "k": k}
    gy = (torch.arange(x.numel()) * 7 % 11 - 5).reshape(shape).to(dtype) / 4  # as in results()
    exact = lrn_in_long_double(x, gy, **options)
    ours = results(ops.local_response_norm, [x], **options)
    theirs = ours if dtype in NARROW else results(reference.local_response_norm, [x], **options)
    for got, torchs, expected in zip(ours, theirs, exact, strict=True):
        assert_rounded_once(got, expected) if dtype in NARROW else assert_as_accurate_as_torch(got, torchs, expected)


def conv_in_long_double(x, weight, gy):
    """y, gx, gw of a convolution, tap by tap."""
    x, weight, gy = (t.cpu().numpy().astype(np.longdouble) for t in (x, weight, gy))
    h, w, kernel = x.shape[2], x.shape[3], weight.shape[2]
    pad = kernel // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    y, gx, gw = np.zeros_like(gy), np.zeros_like(x), np.zeros_like(weight)
    for r in range(kernel):
        for s in range(kernel):
            place = (slice(None), slice(None), slice(r, r + h), slice(s, s + w))
            y += np.einsum("nchw,oc->nohw", x[place], weight[:, :, r, s])
            gx[place] += np.einsum("nohw,oc->nchw", gy, weight[:, :, r, s])
            gw[:, :, r, s] = np.einsum("nohw,nchw->oc", gy, x[place])
    return y, gx[:, :, pad : pad + h, pad : pad + w], gw


@pytest.mark.parametrize("name", ["conv3x3", "conv1x1"])
def test_conv_in_float64(backend, name):
    kernel = int(name[4])
    x, weight = torch.randn(2, 19, 9, 11).double(), torch.randn(23, 19, kernel, kernel).double()
    x, weight = x * 1.1, weight * 1.1  # so that all 53 bits are in use
    ours, theirs = (results(getattr(m, name), [x, weight]) for m in (ops, reference))
    gy = (torch.arange(ours[0].numel()).double() * 7 % 11 - 5).reshape(ours[0].shape) / 4
    for triple in zip(ours, theirs, conv_in_long_double(x, weight, gy), strict=True):
        assert_as_accurate_as_torch(*triple)


@pytest.mark.backends("cpu", "sim", "cuda")
@pytest.mark.parametrize("shape", [(1, 512, 420, 7, 9), (2, 130, 256, 6, 5)], ids=str)
def test_long_sums(backend, algorithm, shape):
    n, cin, cout, h, w = shape
    compare("conv3x3", [torch.randn(n, cin, h, w), torch.randn(cout, cin, 3, 3), torch.randn(cout)], algorithm)


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=name_of)
@pytest.mark.parametrize("cin", [3, 20])
def test_conv3x3_of_a_large_map(backend, algorithm, cin, epilogue):
    """Many chunks of rows and many tasks, long sums in wgrad; RGB, which has a kernel of its own."""
    inputs = [torch.randn(2, cin, 61, 43), torch.randn(24, cin, 3, 3), torch.randn(24)]
    compare("conv3x3", inputs, algorithm, **epilogue)


@pytest.mark.parametrize(("relu", "pool"), [(False, False), (True, False), (False, True), (True, True)])
def test_second_order(backend, algorithm, relu, pool):
    """A gradient penalty: dgrad and wgrad through their masks, and their own derivatives."""
    inputs = [torch.randn(2, 5, 9, 8), torch.randn(17, 5, 3, 3), torch.randn(17)]

    def second(op, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in inputs]
        first = torch.autograd.grad(op(*leaves).pow(2).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), leaves)

    ours = second(functools.partial(ops.conv3x3, relu=relu, pool=pool), torch.float32)
    exact = second(conv_as_ours_selects(inputs, relu, pool), torch.float64)
    for a, b in zip(ours, exact, strict=True):
        assert relative_error(a, b) < (1e-6 if algorithm in EXACT else 1e-2 if algorithm == "tf32" else 1e-5)


# ---- ties, NaN, infinities, zeros ---------------------------------------------------------------------------------

CASES = [
    ("conv3x3", [(2, 5, 9, 8), (6, 5, 3, 3), (6,)], {}),
    ("conv3x3", [(2, 5, 9, 8), (6, 5, 3, 3), (6,)], {"relu": True}),
    ("conv3x3", [(2, 5, 9, 8), (6, 5, 3, 3), (6,)], {"pool": True}),
    ("conv3x3", [(2, 5, 9, 8), (6, 5, 3, 3), (6,)], {"relu": True, "pool": True}),
    ("conv3x3", [(2, 8, 9, 8), (16, 8, 3, 3), (16,)], {"relu": True, "pool": True}),
    ("conv1x1", [(2, 5, 9, 8), (6, 5, 1, 1), (6,)], {"relu": True}),
    ("max_pool2x2", [(2, 20, 9, 8)], {"ceil_mode": True}),
    ("max_pool2x2", [(2, 20, 9, 8)], {"ceil_mode": False}),
    ("local_response_norm", [(2, 24, 3, 4)], {}),
    ("sum_pool", [(2, 24, 3, 4)], {"reduce": "mean"}),
]
over_cases = pytest.mark.parametrize(
    ("name", "shapes", "options"), CASES, ids=[f"{name}-{name_of(options)}" for name, _, options in CASES]
)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", ["conv3x3", "max_pool2x2"])
def test_the_first_maximum_takes_the_gradient(backend, exact, name, memory_format):
    """Three values only, so that nearly every window is tied, and a ReLU cuts at exactly 0."""
    x = in_format(torch.randint(-1, 2, (2, 24, 9, 10)).float(), memory_format)
    inputs, options = [x], {}
    if name == "conv3x3":
        weight = torch.zeros(24, 24, 3, 3)
        weight[torch.arange(24), torch.arange(24), 1, 1] = 1  # the identity
        inputs, options = [x, weight], {"relu": True, "pool": True}
    ours, theirs = (results(getattr(m, name), inputs, **options) for m in (ops, reference))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


@over_cases
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_pass_through(backend, exact, name, shapes, options, value):
    inputs = [torch.randn(shape) for shape in shapes]
    x = inputs[0]
    x[0, 1, 2, 1] = x[0, 1, 2, 2] = x[-1, 3, 0, 0] = x[-1, 4, -1, -1] = value
    ours, theirs = (results(getattr(m, name), inputs, **options) for m in (ops, reference))
    assert not ours[0].isfinite().all() or value == -float("inf")
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


def test_several_nans_in_a_window(backend):
    x = torch.randn(1, 40, 8, 8)
    x[torch.rand(x.shape) < 0.4] = float("nan")
    ours, theirs = (results(m.max_pool2x2, [x]) for m in (ops, reference))
    for a, b in zip(ours, theirs, strict=True):
        assert_same_bits(a, b)


def test_negative_zero(backend):
    x = torch.tensor([0.0, -0.0])[torch.randint(0, 2, (2, 9, 6, 6))]
    assert_same_bits(ops.max_pool2x2(x), reference.max_pool2x2(x))
    assert not ops.conv1x1(x, torch.ones(4, 9, 1, 1), -torch.zeros(4), relu=True).signbit().any()


@pytest.mark.parametrize("algorithm", ["auto", "winograd6", "direct"], indirect=True)
@pytest.mark.parametrize("way", ["fprop", "dgrad"])
def test_images_of_a_batch_do_not_meet(algorithm, request, way):
    """Neither NaN nor rounding goes from one to another, whatever their scales."""
    if algorithm != "direct":
        reason = "mosaics: images whose tiles are shared share rounding errors, Inf and NaN"
        request.applymarker(pytest.mark.xfail(reason=reason))
    weight = torch.randn(16, 16, 3, 3)
    if way == "fprop":
        op, reference_op = functools.partial(ops.conv3x3, weight=weight), functools.partial(F.conv2d, padding=1)
    else:
        op = functools.partial(conv_dgrad, mask=None, weight=weight, h=14, w=14)
        reference_op = functools.partial(F.conv_transpose2d, padding=1)
    x = torch.randn(4, 16, 14, 14)
    x[0] *= 1e8
    for ours, exact in zip(op(x), reference_op(x.double(), weight.double()), strict=True):
        assert relative_error(ours, exact) < 1e-5
    x[1] = float("nan")
    assert op(x)[1].isnan().all()
    assert op(x)[[0, 2, 3]].isfinite().all()


# ---- repeatable, and in the user's memory format ------------------------------------------------------------------


def assert_repeatable(set_threads, name, inputs, options):
    first = None
    for threads in (1, 2, 3, 3):
        set_threads(threads)
        now = results(getattr(ops, name), inputs, **options)
        first = first or now
        for a, b in zip(now, first, strict=True):
            assert_same_bits(a, b)


@pytest.mark.backends("cpu", "cuda")
@over_cases
def test_results_do_not_depend_on_the_threads_or_the_run(backend, set_threads, name, shapes, options):
    (_, c, *_), *others = shapes
    inputs = [torch.randn(3, c, 65, 43), *(torch.randn(shape) for shape in others)]
    assert_repeatable(set_threads, name, inputs, options)


@pytest.mark.backends("cpu", "cuda")
@pytest.mark.parametrize("epilogue", EPILOGUES[::3], ids=name_of)
@pytest.mark.parametrize("cin", [3, 5])
@pytest.mark.parametrize("size", [(3, 65, 43), (5, 7, 9)], ids=str)
def test_no_algorithm_depends_on_the_threads_or_the_run(backend, algorithm, set_threads, size, cin, epilogue):
    n, h, w = size
    inputs = [torch.randn(n, cin, h, w), torch.randn(33, cin, 3, 3), torch.randn(33)]
    assert_repeatable(set_threads, "conv3x3", inputs, epilogue)


@pytest.mark.backends("sim")
@over_cases
def test_results_do_not_depend_on_the_order_of_a_gpus_threads(backend, sim, name, shapes, options):
    (_, c, *_), *others = shapes
    inputs = [torch.randn(3, c, 25, 13), *(torch.randn(shape) for shape in others)]
    first = None
    for seed in (1, 2, 3):
        sim.set_seed(seed << 32)
        now = results(getattr(ops, name), inputs, **options)
        first = first or now
        for a, b in zip(now, first, strict=True):
            assert_same_bits(a, b)


@over_cases
@pytest.mark.parametrize("memory_format", FORMATS)
def test_output_keeps_the_memory_format(backend, name, shapes, options, memory_format):
    x, *others = [torch.randn(shape) for shape in shapes]
    y = getattr(ops, name)(in_format(x, memory_format), *others, **options)
    assert y.dim() == 2 or y.is_contiguous(memory_format=getattr(torch, memory_format))


@pytest.mark.parametrize("shape", [(2, 1, 4, 6), (3, 5, 1, 1)], ids=str)
def test_a_tensor_of_both_formats_counts_as_contiguous(backend, shape):
    x = torch.randn(shape)
    assert ops.conv3x3(x, torch.randn(7, shape[1], 3, 3)).is_contiguous()
