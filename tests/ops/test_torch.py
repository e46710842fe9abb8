"""The ops under the rest of torch: opcheck, compile, export, func, autocast, fx."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.func import grad, jacrev, vmap

import vggfast
from vggfast import ops
from vggfast.ops import reference
from vggfast.ops._backends import runs_on
from vggfast.ops.conv import conv, conv_dgrad, conv_wgrad
from vggfast.ops.fc import linear_dgrad, linear_op, linear_wgrad
from vggfast.ops.images import prepare_op
from vggfast.ops.lrn import lrn, lrn_dgrad
from vggfast.ops.mask import mask_gather, mask_scatter
from vggfast.ops.norm import batch_norm_dgrad, batch_norm_op
from vggfast.ops.pool import max_pool
from vggfast.ops.scores import mean_posteriors_dgrad, mean_posteriors_op, sum_pool_scores

pytestmark = pytest.mark.usefixtures("one_thread")
close = torch.testing.assert_close


def doubles(*shape, requires_grad=False) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=requires_grad)


# ---- opcheck ------------------------------------------------------------------------------------------------------

LRN = (5, 1e-4, 0.75, 2.0)


def mask_of(relu, pool, channels=9, h=5, w=4) -> torch.Tensor:
    return conv(torch.randn(2, 3, h, w), torch.randn(channels, 3, 3, 3), None, relu, pool, True)[1]


def samples():
    """(op, arguments) for every op; `t` makes a tensor, with gradient or without."""

    def calls(t):
        image, last = t(2, 3, 5, 4), t(2, 3, 5, 4, memory_format="channels_last")
        for x in (image, last):
            for relu, pool in ((False, False), (True, False), (False, True), (True, True)):
                yield conv, (x, t(9, 3, 3, 3), t(9), relu, pool, relu or pool)
            yield conv, (x, t(4, 3, 1, 1), None, True, False, True, None, mask_of(True, False, 3), True)
            yield max_pool, (x, False, True)
            yield max_pool, (x, True, True)
            yield batch_norm_op, (x, t(3), t(3), None, None, 1e-5, True, True, True)
            yield batch_norm_dgrad, (t(2, 3, 5, 4), None, x, t(3), *[torch.ones(3)] * 2, 1e-5, True, True)
            yield sum_pool_scores, (x, True)
            yield mean_posteriors_op, (x, 2)
            yield mean_posteriors_dgrad, (t(1, 3), x, 2)
            yield lrn, (x, *LRN)
            yield lrn_dgrad, (t(2, 3, 5, 4), x, *LRN)
            yield conv_dgrad, (x, mask_of(True, False, 3), t(3, 6, 1, 1), 5, 4)
            yield conv_dgrad, (x, mask_of(True, True, 3, 10, 9), t(3, 6, 3, 3), 10, 9)
            yield conv_dgrad, (x, None, t(3, 6, 3, 3), 5, 4, None, mask_of(True, False, 6))
            yield conv_wgrad, (x, t(2, 7, 5, 4), mask_of(True, False, 7), 1, False)
            yield conv_wgrad, (x, t(2, 7, 2, 2), mask_of(False, True, 7), 3, True)
            yield conv_wgrad, (x, t(2, 7, 5, 4), None, 3, True, None, mask_of(True, False, 3))
        yield linear_op, (t(2, 5), t(4, 5), t(4))
        yield linear_dgrad, (t(2, 4), t(4, 5))
        yield linear_wgrad, (t(2, 5), t(2, 4))
        pictures = torch.randint(0, 256, (2, 5, 6, 3), dtype=torch.uint8)
        corners, flips = torch.ones(2, 2, dtype=torch.int32), torch.ones(2, dtype=torch.uint8)
        yield prepare_op, (pictures, corners, flips, torch.randn(2, 3), 4, 3, [1.0] * 3, [2.0] * 3, torch.float32)
        yield mask_gather, (t(2, 9, 5, 4), mask_of(True, True))
        yield mask_scatter, (t(2, 9, 5, 4), mask_of(True, False), 5, 4)
        yield mask_scatter, (t(2, 9, 2, 2), mask_of(False, True), 5, 4)

    for requires_grad in (False, True):

        def t(*shape, memory_format="contiguous_format", requires_grad=requires_grad):
            made = torch.randn(shape).contiguous(memory_format=getattr(torch, memory_format))
            return made.requires_grad_(requires_grad)

        for op, args in calls(t):
            yield pytest.param(op, args, id=f"{op.name()}-{'grad' if requires_grad else 'plain'}")


@pytest.mark.parametrize(("op", "args"), list(samples()))
def test_opcheck(op, args):
    torch.library.opcheck(op, args)


def test_opcheck_knows_every_op():
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("vggfast::")}
    assert registered == {sample.values[0].name() for sample in samples()}


# ---- compile and export -------------------------------------------------------------------------------------------


def everything(module, norm=True):
    """Every public op in one function of an image, two weights and a bias; batch norm's gradients cancel in float32."""

    def f(x, weight, pointwise, bias):
        y = module.local_response_norm(module.conv3x3(x, weight, bias, relu=True, pool=True), alpha=0.5)
        y = module.batch_norm(y, None, None, bias, -bias, True, relu=True) if norm else y
        y = module.max_pool2x2(module.conv1x1(y, pointwise, relu=True), ceil_mode=True)
        return module.linear(module.sum_pool(y), pointwise[:, :6, 0, 0])

    return f


def arguments(n=2, h=11, w=9, requires_grad=True):
    shapes = [(n, 3, h, w), (10, 3, 3, 3), (6, 10, 1, 1), (10,)]
    return [doubles(*shape, requires_grad=requires_grad) for shape in shapes]


def gradients(f, args):
    return torch.autograd.grad(f(*args).pow(2).sum(), args)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile(compiler, dynamic, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # one from before an op was edited would be found
    torch._dynamo.reset()
    compiled = torch.compile(everything(ops), fullgraph=True, dynamic=dynamic, backend=compiler)
    for size in ((2, 11, 9), (3, 16, 14), (2, 7, 20)):
        args = arguments(*size)
        close(gradients(compiled, args), gradients(everything(reference), args))
        with torch.no_grad():
            close(compiled(*args), everything(reference)(*args))


def test_compile_with_dynamic_shapes_makes_one_graph():
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(everything(ops), fullgraph=True, dynamic=True, backend=counter)
    for size in ((2, 11, 9), (3, 16, 14), (5, 21, 30)):
        compiled(*arguments(*size))
    assert counter.frame_count == 1


@pytest.mark.parametrize("make", [
    lambda: vggfast.VGG("A-LRN", width=0.1, num_classes=5),
    lambda: vggfast.VGG("A", width=0.1, head="none", batch_norm=True),
    lambda: nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), vggfast.nn.Linear(48, 2**16)),  # on our kernels
])  # fmt: skip
def test_compile_of_networks_makes_one_graph(make):
    torch._dynamo.reset()
    model, x = make().eval(), torch.randn(2, 3, 32, 32)
    close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        _, *parameters = arguments()
        self.parameters_ = nn.ParameterList(parameters)

    def forward(self, x):
        return everything(ops)(x, *self.parameters_)


def test_export():
    module, x = Everything(), doubles(2, 3, 11, 9)
    sizes = {0: torch.export.Dim("n", min=2), 2: torch.export.Dim("h", min=8), 3: torch.export.Dim("w", min=8)}
    program = torch.export.export(module, (x,), dynamic_shapes=(sizes,))
    for shape in ((2, 3, 11, 9), (4, 3, 16, 21)):
        x = doubles(*shape)
        close(program.module()(x), module(x))
    assert any(node.target is conv for node in program.graph.nodes)


def test_symbolic_trace_records_the_ops():
    traced = torch.fx.symbolic_trace(Everything())
    called = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    for name in ("conv3x3", "conv1x1", "max_pool2x2", "local_response_norm", "sum_pool"):
        assert getattr(ops, name) in called
    x = doubles(2, 3, 11, 9)
    close(traced(x), everything(reference)(x, *traced.parameters_.parameters()))


# ---- torch.func ---------------------------------------------------------------------------------------------------

UNARY = {
    "max_pool2x2": lambda module, x: module.max_pool2x2(x, ceil_mode=True),
    "local_response_norm": lambda module, x: module.local_response_norm(x, alpha=0.5),
    "sum_pool": lambda module, x: module.sum_pool(x),
    "conv3x3": lambda module, x: module.conv3x3(x, WEIGHT, relu=True, pool=True),
    "conv3x3-pool": lambda module, x: module.conv3x3(x, WEIGHT, pool=True),
    "conv1x1": lambda module, x: module.conv1x1(x, WEIGHT[:, :, :1, :1], relu=True),
}
WEIGHT = torch.linspace(-1, 1, 7 * 3 * 3 * 3).double().cos().reshape(7, 3, 3, 3)
over_unary = pytest.mark.parametrize("op", UNARY.values(), ids=UNARY)


def same(transform, op, *args):
    """`transform` of our op does what it does with torch's."""
    close(transform(lambda *a: op(ops, *a))(*args), transform(lambda *a: op(reference, *a))(*args))


@over_unary
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_vmap(op, dim):
    same(lambda f: vmap(f, in_dims=dim), op, doubles(4, 2, 3, 5, 6).movedim(0, dim))


@over_unary
def test_nested_vmap(op):
    same(lambda f: vmap(vmap(f, in_dims=1), in_dims=-1), op, doubles(2, 5, 3, 5, 4, 3))


@over_unary
def test_grad_and_vmap_of_grad(op):
    def loss_gradient(f):
        return grad(lambda x: f(x).pow(3).sum())

    same(loss_gradient, op, doubles(2, 3, 5, 6))
    same(lambda f: vmap(loss_gradient(f)), op, doubles(4, 2, 3, 5, 6))
    same(lambda f: grad(lambda x: loss_gradient(f)(x).pow(2).sum()), op, doubles(2, 3, 5, 6))


@over_unary
def test_jacrev(op):
    same(jacrev, op, doubles(1, 3, 4, 3))


@over_unary
def test_backward_through_vmap(op):
    x = doubles(4, 2, 3, 5, 6, requires_grad=True)

    def backward(f):
        return lambda x: torch.autograd.grad(vmap(f)(x).pow(2).sum(), x)

    same(backward, op, x)


CONV_DIMS = [(0, None, None), (None, 0, None), (0, 0, 0), (None, None, 0), (2, 1, 0), (-1, None, None), (None, -1, 1)]


def conv_arguments(in_dims, requires_grad=False):
    """One set of convolution arguments, with an axis of 4 examples where in_dims has a number."""
    shapes = [(2, 3, 5, 6), (7, 3, 3, 3), (7,)]
    return [
        (doubles(*shape) if dim is None else doubles(4, *shape).movedim(0, dim)).detach().requires_grad_(requires_grad)
        for shape, dim in zip(shapes, in_dims, strict=True)
    ]


def fused_conv(module, x, weight, bias):
    return module.conv3x3(x, weight, bias, relu=True, pool=True)


@pytest.mark.parametrize("in_dims", CONV_DIMS, ids=str)
def test_vmap_of_conv(in_dims):
    same(lambda f: vmap(f, in_dims), fused_conv, *conv_arguments(in_dims))


@pytest.mark.parametrize("in_dims", CONV_DIMS, ids=str)
def test_backward_through_vmap_of_conv(in_dims):
    def backward(f):
        return lambda *args: torch.autograd.grad(vmap(f, in_dims)(*args).pow(2).sum(), args)

    same(backward, fused_conv, *conv_arguments(in_dims, requires_grad=True))


@pytest.mark.parametrize("in_dims", CONV_DIMS, ids=str)
def test_vmap_of_grad_of_conv(in_dims):
    def per_example(f):
        return vmap(grad(lambda *args: f(*args).pow(2).sum(), argnums=(0, 1, 2)), in_dims)

    same(per_example, fused_conv, *conv_arguments(in_dims))


def test_backward_to_parameters_around_vmap():
    """The examples need no gradient, the parameters that vmap does not see do."""
    x, weight, bias = conv_arguments((0, None, None))

    def backward(f):
        def run(weight, bias):
            return torch.autograd.grad(vmap(lambda x: f(x, weight, bias))(x).pow(2).sum(), (weight, bias))

        return run

    same(backward, fused_conv, weight.requires_grad_(), bias.requires_grad_())


def test_backward_to_parameters_around_grad():
    """Gradient penalty: the inner grad sees x alone, the outer backward goes to the weight."""
    x, weight, bias = conv_arguments((0, None, None))

    def backward(f):
        def run(weight):
            inner = vmap(grad(lambda x: f(x, weight, bias).pow(2).sum()))(x)
            return torch.autograd.grad(inner.pow(2).sum(), weight)

        return run

    same(backward, fused_conv, weight.requires_grad_())


@pytest.mark.parametrize(
    ("op", "shapes", "options"),
    [
        (lambda gy, weight: conv_dgrad(gy, None, weight, 4, 5), [(2, 3, 4, 5), (3, 6, 3, 3)], ()),
        (lambda x, gy: conv_wgrad(x, gy, None, 3, True), [(2, 3, 4, 5), (2, 6, 4, 5)], ()),
        (lrn_dgrad, [(2, 3, 4, 5), (2, 3, 4, 5)], LRN),
    ],
)
@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (1, -1)], ids=str)
def test_vmap_of_a_derivative_is_a_loop(op, shapes, options, in_dims):
    a, b = (
        doubles(*shape) if dim is None else doubles(4, *shape).movedim(0, dim)
        for shape, dim in zip(shapes, in_dims, strict=True)
    )
    rows = [
        op(a if in_dims[0] is None else a.select(in_dims[0], i), b if in_dims[1] is None else b.select(in_dims[1], i),
           *options)
        for i in range(4)
    ]  # fmt: skip
    looped = torch.stack(rows) if torch.is_tensor(rows[0]) else tuple(map(torch.stack, zip(*rows, strict=True)))
    close(vmap(lambda a, b: op(a, b, *options), in_dims)(a, b), looped)


@pytest.mark.parametrize(("relu", "pool"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("in_dims", [(0, 0, None), (0, None, 0), (None, 0, 0), (1, 2, None), (0, 0, 0)], ids=str)
def test_vmap_of_derivatives_with_masks(relu, pool, in_dims):
    size = (2, 9, 2, 2) if pool else (2, 9, 5, 4)
    gy, mask = torch.randn(4, *size), torch.stack([mask_of(relu, pool) for _ in range(4)])
    x, weight = torch.randn(4, 2, 6, 5, 4), torch.randn(4, 9, 6, 3, 3)

    def looped(op, *args):
        rows = [op(*(a[0 if dim is None else i] for a, dim in zip(args, in_dims, strict=True))) for i in range(4)]
        return torch.stack(rows)

    def mapped(op, *args):
        moved = [a[0] if dim is None else a.movedim(0, dim) for a, dim in zip(args, in_dims, strict=True)]
        return vmap(op, in_dims)(*moved)

    def dgrad(gy, mask, weight):
        return conv_dgrad(gy, mask, weight, 5, 4, None, None if pool else mask[:, :1, ..., :1])

    def wgrad(gy, mask, x):
        return conv_wgrad(x, gy, mask, 3, True)[0]

    close(mapped(dgrad, gy, mask, weight), looped(dgrad, gy, mask, weight))
    close(mapped(wgrad, gy, mask, x), looped(wgrad, gy, mask, x))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_derivatives_with_masks(dynamic):
    torch._dynamo.reset()

    def both(gy, mask, weight, x):
        gx = conv_dgrad(gy, mask, weight, *x.shape[2:])
        return gx, *conv_wgrad(x, gy, mask, 3, True)

    compiled = torch.compile(both, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for h, w in ((5, 4), (8, 7)):
        args = [doubles(2, 9, h // 2, w // 2), mask_of(True, True, 9, h, w), doubles(9, 6, 3, 3)]
        args.append(doubles(2, 6, h, w))
        close(compiled(*args), both(*args))


def test_compiled_vmap_of_grad():
    torch._dynamo.reset()
    args = conv_arguments((0, None, None))

    def per_example(f):
        return vmap(grad(lambda *a: f(*a).pow(2).sum(), argnums=1), (0, None, None))

    same(lambda f: torch.compile(per_example(f), fullgraph=True, backend="aot_eager"), fused_conv, *args)


# ---- autocast -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_autocast_gives_float32(dtype, no_tiles):
    args = [t.to(dtype).detach().requires_grad_() for t in arguments()]
    with torch.autocast("cpu", torch.bfloat16):
        y = everything(ops, norm=False)(*args)
    expected = everything(reference, norm=False)(*(t.float() for t in args))
    assert y.dtype == torch.float32
    close(y, expected)
    ours, theirs = (torch.autograd.grad(out.pow(2).sum(), args) for out in (y, expected))
    assert all(g.dtype == dtype for g in ours)
    close(ours, theirs)


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((8, 0), "80-real, 90a-real, 90-virtual", True),
        ((8, 9), "80-real, 90a-real, 90-virtual", True),
        ((9, 0), "80-real, 90a-real, 90-virtual", True),
        ((12, 0), "80-real, 90a-real, 90-virtual", True),
        ((8, 6), "90a-real, 90-virtual", False),
        ((10, 0), "90a-real", False),
        ((8, 0), "86-real", False),
    ],
)
def test_what_a_build_runs_on(capability, architectures, expected):
    assert runs_on(capability, architectures) == expected
