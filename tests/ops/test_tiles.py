"""bfloat16 on tile registers: convolutions and their gradients; what else is computed in float32, and under autocast.
test_reference.py compares each convolution with float64; test_linear.py has linear layers."""

import functools

import pytest
import torch
import torch.nn.functional as F

from tests.ops.test_reference import conv_as_ours_selects
from tests.support.comparisons import assert_as_accurate_as_torch, assert_same_bits, in_format, relative_error, results
from vggfast import VGG, _native, ops
from vggfast.ops import _backends
from vggfast.ops.conv import conv, conv_dgrad, conv_wgrad
from vggfast.ops.fc import linear_dgrad, linear_op, linear_wgrad

BF16 = torch.bfloat16
EPILOGUES = pytest.mark.parametrize(
    "epilogue", [{}, {"relu": True}, {"relu": True, "pool": True}], ids=["plain", "relu", "relu-pool"]
)


@pytest.fixture
def calls(monkeypatch):
    """(kernel, dtype of its first tensor) of each call of the back end."""
    seen, run = [], _backends.Backend.run

    def recorded(self, name, *args, **options):
        if name != "conv_packing":  # which asks how weights would be packed
            seen.append((name, args[0].dtype))
        return run(self, name, *args, **options)

    monkeypatch.setattr(_backends.Backend, "run", recorded)
    return seen


def tensors(*shapes, dtype=BF16):
    return [torch.randn(shape).to(dtype) for shape in shapes]


def inputs(dtype=BF16):
    return tensors((2, 5, 9, 8), (37, 5, 3, 3), (37,), dtype=dtype)


def test_what_reaches_the_kernels(tiles, calls):
    x, weight, bias = (t.requires_grad_() for t in inputs())
    y = ops.local_response_norm(ops.conv3x3(x, weight, bias, relu=True, pool=True))
    assert y.dtype == BF16
    y.sum().backward()
    assert calls == [
        ("conv_fprop", BF16),
        ("lrn_fprop", torch.float32),
        ("lrn_dgrad", torch.float32),
        ("conv_dgrad", BF16),
        ("conv_wgrad", BF16),
    ]
    assert {t.grad.dtype for t in (x, weight, bias)} == {BF16}


def test_the_instruction_set_may_change_between_calls(tiles, calls):
    x, weight, bias = inputs()
    before = _native.cpu_isa()
    _native.set_cpu_isa("portable")
    try:
        assert_same_bits(ops.conv3x3(x, weight, bias), ops.conv3x3(x.float(), weight.float(), bias.float()).to(BF16))
    finally:
        _native.set_cpu_isa(before)
    ops.conv3x3(x, weight, bias)
    ops.conv3x3(*(t.half() for t in (x, weight, bias)))
    assert [dtype for _, dtype in calls] == [torch.float32, torch.float32, BF16, torch.float32]


@pytest.mark.parametrize("kernel", [1, 3])
def test_weights_lie_anyhow(tiles, kernel):
    x, weight, bias = tensors((2, 6, 5, 7), (35, 6, kernel, kernel), (35,))
    op = ops.conv3x3 if kernel == 3 else ops.conv1x1
    expected = results(op, [x, weight, bias])
    scattered = torch.randn(35, 6, kernel, 2 * kernel).to(BF16)
    scattered[..., ::2] = weight
    others = [
        in_format(weight, "channels_last"),
        weight.transpose(0, 1).contiguous().transpose(0, 1),
        scattered[..., ::2],
    ]
    for other in others:
        y = op(x, other, bias)
        assert_same_bits(y, expected[0])
        gy = (torch.arange(y.numel()) * 7 % 11 - 5).reshape(y.shape).to(BF16) / 4  # as in results()
        assert_same_bits(conv_dgrad(gy, None, other, 5, 7), expected[1])


def test_threads_change_no_bit(tiles, set_threads):
    args, first = tensors((3, 40, 33, 21), (70, 40, 3, 3), (70,)), None
    for threads in (1, 2, 3):
        set_threads(threads)
        now = results(ops.conv3x3, args, relu=True, pool=True)
        first = first or now
        for a, b in zip(now, first, strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@EPILOGUES
def test_non_finite_values_pass_through(tiles, epilogue, value):
    whole = [torch.randint(-3, 4, t.shape).to(BF16) for t in inputs()]  # their sums are exact
    x = whole[0]
    x[0, 1, 2, 1] = x[0, 1, 2, 2] = x[-1, 3, 0, 0] = x[-1, 4, -1, -1] = value
    ours = results(ops.conv3x3, whole, **epilogue)
    exact = results(conv_as_ours_selects(whole, **epilogue), [t.double() for t in whole])
    for got, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(got, expected.to(BF16), equal_nan=True, rtol=0, atol=0)


def test_no_images(tiles):
    x, weight, bias = (t.requires_grad_() for t in tensors((0, 3, 5, 5), (4, 3, 3, 3), (4,)))
    y = ops.conv3x3(x, weight, bias, relu=True)
    y.sum().backward()
    assert y.shape == (0, 4, 5, 5)
    assert x.grad.shape == x.shape
    assert not weight.grad.any()


# ---- derivatives, and the rest of torch --------------------------------------------------------------------------


@EPILOGUES
@pytest.mark.parametrize("cin", [3, 40])
def test_as_accurate_as_torchs_autocast(tiles, cin, epilogue):
    leaves = tensors((2, cin, 12, 10), (48, cin, 3, 3), (48,), dtype=torch.float32)
    theirs_of = conv_as_ours_selects([t.to(BF16) for t in leaves], **epilogue)

    def compute(op, cast):
        def run(*args):
            with torch.autocast("cpu", BF16, enabled=cast):
                return op(*args).float()

        return run

    ours = results(compute(functools.partial(ops.conv3x3, **epilogue), True), leaves)
    theirs = results(compute(theirs_of, True), leaves)
    exact = results(compute(theirs_of, False), [t.double() for t in leaves])
    for got, torchs, expected in zip(ours, theirs, exact, strict=True):
        assert relative_error(got, expected) <= 2 * relative_error(torchs, expected) + torch.finfo(BF16).eps


@pytest.mark.parametrize("kernel", [1, 3])
def test_second_order(tiles, kernel):
    args = tensors((2, 5, 9, 8), (17, 5, kernel, kernel), (17,))

    def second(op, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in args]
        first = torch.autograd.grad(op(*leaves).pow(2).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in first), leaves)

    plain = functools.partial(F.conv2d, padding=kernel // 2)
    ours = second(ops.conv3x3 if kernel == 3 else ops.conv1x1, BF16)
    for triple in zip(ours, second(plain, BF16), second(plain, torch.float64), strict=True):
        assert_as_accurate_as_torch(*triple)


def samples():
    x, mask = torch.randn(2, 3, 5, 4).to(BF16), torch.randint(0, 256, (2, 3, 2, 2, 1), dtype=torch.uint8)
    x.requires_grad_()
    yield conv, (x, *tensors((9, 3, 3, 3), (9,)), True, True, True)
    yield conv, (in_format(x, "channels_last"), *tensors((4, 3, 1, 1)), None, True, False, True)
    yield conv_dgrad, (x, None, *tensors((3, 6, 3, 3)), 5, 4)
    yield conv_dgrad, (*tensors((2, 7, 2, 2)), mask, *tensors((7, 3, 1, 1)), 5, 4)
    yield conv_wgrad, (x, *tensors((2, 7, 5, 4)), None, 3, True)
    yield linear_op, tuple(tensors((2, 5), (4, 5), (4,)))
    yield linear_dgrad, tuple(tensors((2, 4), (4, 5)))
    yield linear_wgrad, tuple(tensors((2, 5), (2, 4)))


@pytest.mark.parametrize("sample", range(len(list(samples()))))
def test_opcheck(tiles, sample):
    torch.library.opcheck(*list(samples())[sample])


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("cast", [False, True])
def test_compile(tiles, dynamic, cast):
    torch._dynamo.reset()

    def f(x, weight, bias):
        with torch.autocast("cpu", BF16, enabled=cast):
            y = ops.conv3x3(x, weight, bias, relu=True, pool=True)
            return ops.max_pool2x2(ops.local_response_norm(y), ceil_mode=True)

    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for _ in range(2):
        args = inputs(torch.float32 if cast else BF16)
        for a, b in zip(results(compiled, args), results(f, args), strict=True):
            assert a.dtype == b.dtype
            assert_same_bits(a, b)


@pytest.mark.parametrize("dims", [(0, None, None), (0, 0, 0)], ids=str)
def test_vmap(tiles, dims):
    args = [torch.stack([t, 2 * t]) if dim == 0 else t for t, dim in zip(inputs(), dims, strict=True)]

    def gradients(x, weight, bias):
        return torch.func.grad(lambda *a: ops.conv3x3(*a, relu=True).sum(), (0, 1, 2))(x, weight, bias)

    mapped = torch.vmap(gradients, dims)(*args)
    for i in range(2):
        alone = gradients(*(t if dim is None else t[i] for t, dim in zip(args, dims, strict=True)))
        for a, b in zip(mapped, alone, strict=True):
            assert_same_bits(a[i], b)


# ---- autocast -------------------------------------------------------------------------------------------------------


def test_autocast(tiles, calls):
    x, weight, bias = (t.requires_grad_() for t in inputs(torch.float32))
    with torch.autocast("cpu", BF16):
        z = ops.conv3x3(x, weight, bias, relu=True)
        y = ops.max_pool2x2(z)
        rows = ops.sum_pool(ops.local_response_norm(y))
        assert ops.linear(rows, torch.randn(3, 37)).dtype == BF16
        assert ops.conv1x1(x.double(), torch.randn(4, 5, 1, 1).double()).dtype == torch.float64
    assert calls[0] == ("conv_fprop", BF16)
    assert [t.dtype for t in (z, y, rows)] == [BF16] * 3
    cast = [t.detach().to(BF16).requires_grad_() for t in (x, weight, bias)]
    assert_same_bits(z, ops.conv3x3(*cast, relu=True))
    rows.sum().backward()
    ops.sum_pool(ops.local_response_norm(ops.max_pool2x2(ops.conv3x3(*cast, relu=True)))).sum().backward()
    for t, expected in zip((x, weight, bias), cast, strict=True):
        assert_same_bits(t.grad, expected.grad.float())


def test_autocast_to_float16_gives_float32(tiles):
    with torch.autocast("cpu", torch.float16):
        assert ops.conv3x3(*inputs(torch.float32)).dtype == torch.float32


def test_autocast_without_tiles_gives_float32(no_tiles):
    args = inputs()
    with torch.autocast("cpu", BF16):
        y, pooled = ops.conv3x3(*args), ops.max_pool2x2(args[0])
    assert pooled.dtype == torch.float32
    assert_same_bits(y, ops.conv3x3(*(t.float() for t in args)))


def test_a_network_trains(tiles, calls):
    torch.manual_seed(0)
    model = VGG("A-LRN", num_classes=5, width=0.125, hidden=16, pool_size=1, dropout=0)
    x, target = torch.randn(2, 3, 32, 32), torch.tensor([0, 3])

    def step(cast):
        model.zero_grad()
        with torch.autocast("cpu", BF16, enabled=cast):
            loss = F.cross_entropy(model(x), target)
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters())]

    expected = step(False)
    calls.clear()
    for got, want in zip(step(True), expected, strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() < 0.25 * want.norm()
    assert {dtype for name, dtype in calls if name.startswith("conv_")} == {BF16}


# ---- float32 that may be rounded ------------------------------------------------------------------------------------


@pytest.fixture
def rounding():
    """Sets torch's switch for convolutions of float32 on the CPU, until the test ends."""
    before = torch.backends.mkldnn.conv.fp32_precision
    yield lambda name: setattr(torch.backends.mkldnn.conv, "fp32_precision", name)
    torch.backends.mkldnn.conv.fp32_precision = before


def test_float32_is_rounded_where_torch_allows_it(tiles, rounding, calls):
    args = inputs(torch.float32)
    for precision in ("none", "ieee"):
        rounding(precision)
        ops.conv3x3(*args)
    assert {dtype for _, dtype in calls} == {torch.float32}
    rounding("bf16")
    calls.clear()
    y, gx, gw, gb = results(ops.conv3x3, args, relu=True, pool=True)
    assert calls == [("conv_fprop", BF16), ("conv_dgrad", BF16), ("conv_wgrad", BF16)]
    narrow = results(ops.conv3x3, [t.to(BF16) for t in args], relu=True, pool=True)
    assert_same_bits(y, narrow[0].float())
    assert_same_bits(gx, narrow[1].float())
    assert {t.dtype for t in (y, gx, gw, gb)} == {torch.float32}
    for sums, rounded in zip((gw, gb), narrow[2:], strict=True):  # gradients of weights keep their sums in float32
        assert_same_bits(sums.to(BF16), rounded)
    assert (gw != gw.to(BF16).float()).any()
    calls.clear()
    ops.max_pool2x2(args[0])
    ops.conv3x3(*(t.double() for t in args))
    assert [dtype for _, dtype in calls] == [torch.float32, torch.float64]


def test_float32_stays_without_tiles(no_tiles, rounding, calls):
    rounding("bf16")
    ops.conv3x3(*inputs(torch.float32))
    assert calls == [("conv_fprop", torch.float32)]
