"""Linear layers over few rows, in float32 and in bfloat16 on tiles: against float64, in any number of threads, to
second order, and when torch's own run."""

import pytest
import torch
import torch.nn.functional as F

import vggfast
from tests.support.comparisons import assert_as_accurate_as_torch, assert_rounded_once, assert_same_bits, results
from vggfast import ops
from vggfast.nn import Linear
from vggfast.ops import fc
from vggfast.ops._backends import Backend

SHAPES = [(1, 5, 7), (2, 1061, 3), (3, 33, 100), (8, 1024, 16), (9, 2100, 35), (16, 16, 97)]


TILE_SHAPES = [(1, 5, 7), (1, 100, 33), (2, 1061, 3), (15, 33, 100), (33, 96, 16), (64, 70, 65)]
BF16 = torch.bfloat16


@pytest.fixture
def always(monkeypatch):
    """Our kernels for weights of any size."""
    monkeypatch.setattr(fc, "LEAST_WEIGHTS", 0)


@pytest.fixture
def calls(monkeypatch):
    """The names of our kernels, as they are called."""
    names, run = [], Backend.run

    def watched(self, name, *args, **options):
        if name.startswith("linear"):
            names.append(name)
        return run(self, name, *args, **options)

    monkeypatch.setattr(Backend, "run", watched)
    return names


def arguments(rows, inputs, outputs):
    return torch.randn(rows, inputs), torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs)


def against_float64(inputs, set_threads):
    """Ours and float64's results, the first compared with the second, beside torch's, by 1 to 3 threads."""
    exact = results(F.linear, [t.double() for t in inputs])
    torchs = results(F.linear, inputs)
    first = None
    for threads in (1, 2, 3):
        set_threads(threads)
        ours = results(ops.linear, inputs)
        first = first or ours
        for got, once, torch_has, expected in zip(ours, first, torchs, exact, strict=True):
            assert_same_bits(got, once)
            assert_as_accurate_as_torch(got, torch_has, expected)
    return first, exact


@pytest.mark.backends("cpu")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(backend, always, shape, set_threads):
    against_float64(arguments(*shape), set_threads)


@pytest.mark.parametrize("shape", TILE_SHAPES, ids=str)
def test_bfloat16_on_tiles(tiles, always, calls, shape, set_threads):
    first, exact = against_float64([t.to(BF16) for t in arguments(*shape)], set_threads)
    for got, expected in zip(first[:3], exact[:3], strict=True):  # the bias' gradient is torch's sum
        assert_rounded_once(got, expected)
    assert calls == ["linear_fprop", "linear_dgrad", "linear_wgrad"] * 3


@pytest.mark.parametrize("rows", [0, 65], ids=["no rows", "many rows"])
def test_bfloat16_where_torchs_own_runs(tiles, always, calls, rows):
    x, weight, bias = (t.to(BF16) for t in arguments(rows, 40, 9))
    assert_same_bits(ops.linear(x, weight, bias), torch.addmm(bias, x, weight.t()))
    assert not calls


def test_bfloat16_without_tiles_is_computed_in_float32(no_tiles, always, calls):
    inputs = [t.to(BF16) for t in arguments(3, 40, 9)]
    assert_same_bits(ops.linear(*inputs), ops.linear(*(t.float() for t in inputs)).to(BF16))
    assert calls == ["linear_fprop"] * 2


def test_modules_under_autocast(tiles, always, calls):
    layer, x = Linear(70, 40), torch.randn(5, 70)
    with torch.autocast("cpu", BF16):
        y = layer(x)
    y.float().sin().sum().backward()
    assert calls == ["linear_fprop", "linear_wgrad"]
    assert y.dtype == BF16
    assert_same_bits(y.detach(), ops.linear(x.to(BF16), layer.weight.detach().to(BF16), layer.bias.detach().to(BF16)))
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_float32_is_never_rounded(tiles, always, calls, precision):
    """Its time would not be less: the weights are read once in any case."""
    inputs, before = arguments(3, 40, 9), torch.get_float32_matmul_precision()
    expected = ops.linear(*inputs)
    torch.set_float32_matmul_precision(precision)
    try:
        assert_same_bits(ops.linear(*inputs), expected)
    finally:
        torch.set_float32_matmul_precision(before)
    exact = F.linear(*(t.double() for t in inputs))
    assert_as_accurate_as_torch(expected, F.linear(*inputs), exact)


def test_large_gradient(calls):
    """One that is written past the caches."""
    x, weight, bias = arguments(5, 2048, 1400)
    exact = results(F.linear, [t.double() for t in (x, weight, bias)])
    for got, torch_has, expected in zip(
        results(ops.linear, [x, weight, bias]), results(F.linear, [x, weight, bias]), exact, strict=True
    ):
        assert_as_accurate_as_torch(got, torch_has, expected)
    assert sorted(set(calls)) == ["linear_dgrad", "linear_fprop", "linear_wgrad"]


@pytest.mark.parametrize(
    ("change", "ours"),
    [
        (lambda x, w, b: (x, w, b), True),
        (lambda x, w, b: (x, w, None), True),
        (lambda x, w, b: (x.t().contiguous().t(), w, b), True),
        (lambda x, w, b: (x.repeat(6, 1), w, b), False),
        (lambda x, w, b: (x, w[:100], b[:100]), False),
        (lambda x, w, b: (x, w.t().contiguous().t(), b), False),
        (lambda x, w, b: (x[:0], w, b), False),
        (lambda x, w, b: (x.double(), w.double(), b.double()), False),
    ],
    ids=["plain", "no bias", "strided x", "many rows", "small weight", "strided weight", "no rows", "float64"],
)
def test_when_torchs_own_runs(calls, change, ours):
    inputs = change(*arguments(3, 2048, 1100))
    exact = F.linear(*(None if t is None else t.double() for t in inputs))
    assert_as_accurate_as_torch(ops.linear(*inputs), F.linear(*inputs), exact)
    assert bool(calls) == ours


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_second_order(tiles, always, dtype):
    def second(linear, inputs):
        inputs = [t.detach().requires_grad_() for t in inputs]
        first = torch.autograd.grad(linear(*inputs).sin().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.pow(3).sum() for g in first), inputs)

    inputs = [t.to(dtype) for t in arguments(3, 40, 9)]
    exact = second(F.linear, [t.double() for t in inputs])
    for got, torch_has, expected in zip(second(ops.linear, inputs), second(F.linear, inputs), exact, strict=True):
        assert_as_accurate_as_torch(got, torch_has, expected)


def test_gradcheck():
    inputs = [t.double().requires_grad_() for t in arguments(3, 5, 4)]
    assert torch.autograd.gradcheck(ops.linear, inputs)
    assert torch.autograd.gradgradcheck(ops.linear, inputs)


def test_vmap(always):
    x, weight, bias = torch.randn(4, 3, 6), torch.randn(4, 5, 6), torch.randn(5)
    for dims, args in (((0, None, None), (x, weight[0], bias)), ((0, 0, None), (x, weight, bias))):
        torch.testing.assert_close(torch.vmap(ops.linear, dims)(*args), torch.vmap(F.linear, dims)(*args))
        grads = [
            torch.vmap(torch.func.grad(lambda *a, f=f: f(*a).sin().sum(), (0, 1)), dims)(*args)
            for f in (ops.linear, F.linear)
        ]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)], ids=str)
def test_module_takes_what_torchs_does(shape):
    ours, torchs = Linear(7, 5), torch.nn.Linear(7, 5)
    ours.load_state_dict(torchs.state_dict())
    x = torch.randn(shape)
    torch.testing.assert_close(ours(x), torchs(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
    torch.testing.assert_close(ours.double()(x.double()), torchs.double()(x.double()))


def test_head_is_ours(calls):
    model = vggfast.VGG("A", num_classes=10, width=0.25, hidden=512)
    model(torch.randn(1, 3, 32, 32)).sum().backward()
    assert sorted(set(calls)) == ["linear_dgrad", "linear_fprop", "linear_wgrad"]


@pytest.fixture
def head(monkeypatch):
    """A layer that our kernels would take."""
    monkeypatch.setattr(fc, "LEAST_WEIGHTS", 0)
    return Linear(6, 4)


def test_a_parametrisation_computes_the_weight_once(head):
    class Counted(torch.nn.Module):
        times = 0

        def forward(self, weight):
            self.times += 1
            return weight * 2

    torch.nn.utils.parametrize.register_parametrization(head, "weight", counted := Counted())
    counted.times = 0
    head(torch.randn(2, 6))
    assert counted.times == 1


def test_transforms_meet_torchs_own(head, calls):
    def f(x):
        return head(x).sin().sum()

    x = torch.randn(2, 6)
    expected = torch.autograd.functional.hessian(f, x)
    assert expected.abs().max() > 0.01
    calls.clear()
    torch.testing.assert_close(torch.func.hessian(f)(x), expected)
    assert not calls
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(head))
    torch.testing.assert_close(traced(x), head(x))
    graph = torch.export.export(torch.nn.Sequential(head), (x,)).graph
    assert torch.ops.aten.linear.default in {node.target for node in graph.nodes}
