"""Tensors that lie in memory as few do, and such as no kernel can read: the reference's value, or an error that names
the argument. tests/fuzz/native.py draws more of both."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, vmap

import vggfast
from tests.fuzz.tensors import ODD, SAME
from tests.support.comparisons import assert_same_bits
from vggfast import _native, ops
from vggfast.ops import reference

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(*shape) -> torch.Tensor:
    """Whole numbers, whose sums are exact in any order."""
    return torch.randint(-3, 4, shape).float()


CALLS = {
    "conv3x3": (ops.conv3x3, {"x": draw(2, 3, 4, 5), "weight": draw(5, 3, 3, 3), "bias": draw(5)}, {"relu": True}),
    "conv1x1": (ops.conv1x1, {"x": draw(2, 3, 4, 5), "weight": draw(5, 3, 1, 1), "bias": draw(5)}, {}),
    "max_pool2x2": (ops.max_pool2x2, {"x": draw(2, 3, 4, 5)}, {"ceil_mode": True}),
    "local_response_norm": (ops.local_response_norm, {"x": draw(2, 3, 4, 5)}, {}),
    "sum_pool": (ops.sum_pool, {"x": draw(2, 3, 4, 5)}, {"reduce": "sum"}),
    "mean_posteriors": (ops.mean_posteriors, {"maps": draw(2, 3, 4, 5)}, {"views": 2}),
    "linear": (ops.linear, {"x": draw(3, 4), "weight": draw(5, 4), "bias": draw(5)}, {}),
    "prepare_images": (
        ops.prepare_images,
        {"images": torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8), "corners": torch.zeros(2, 2).int(),
         "flips": torch.ones(2, dtype=torch.uint8), "shifts": draw(2, 3)},
        {"size": 3},
    ),
}  # fmt: skip
ARGUMENTS = [(name, argument) for name, (_, tensors, _) in CALLS.items() for argument in tensors]


@pytest.mark.backends("cpu", "sim", "torch")
@pytest.mark.parametrize("form", SAME)
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_every_layout_has_the_references_value(backend, name, argument, form):
    op, tensors, options = CALLS[name]
    made = tensors | {argument: SAME[form](random.Random(0), tensors[argument]).detach()}
    plain = {key: t.as_subclass(torch.Tensor).resolve_neg().clone() for key, t in made.items()}
    torch.testing.assert_close(op(**made, **options), getattr(reference, name)(**plain, **options))


# What an argument may not be: the form, the error, and what its text says beside the argument.
REFUSED = {
    "coo": (TypeError, r"must be a strided tensor, got torch\.sparse_coo"),
    "bsr": (TypeError, r"must be a strided tensor, got torch\.sparse_bsr"),
    "nested": (TypeError, "must be a strided tensor, got nested"),
    "jagged": (TypeError, "must be a strided tensor, got nested"),
    "freed": (ValueError, r"must have \d+ bytes of memory for shape .*, got 0: freed"),
    "cut": (ValueError, r"must have \d+ bytes of memory for shape .*, got \d+: freed"),
    "conj": ((TypeError, ValueError), r"must .* got torch\.complex64"),
    "numpy": (TypeError, r"must be a tensor, got numpy.ndarray of shape \("),
    "list": (TypeError, "must be a tensor, got list"),
    "text": (TypeError, "must be a tensor, got str 'x'"),
    "number": (TypeError, "must be a tensor, got 3"),
    "lazy": (ValueError, "must be initialised, got UninitializedParameter"),
}


@pytest.mark.backends("cpu", "sim", "torch")
@pytest.mark.parametrize("form", REFUSED)
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_what_no_kernel_reads_is_named(backend, name, argument, form):
    op, tensors, options = CALLS[name]
    error, text = REFUSED[form]
    made = ODD[form](random.Random(0), tensors[argument])
    with pytest.raises(error, match=f"{argument} {text}"):
        op(**tensors | {argument: made}, **options)


@pytest.mark.parametrize("form", [*REFUSED, "mkldnn", "fake"])
@pytest.mark.parametrize(
    "module",
    [
        vggfast.Engine(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())),
        vggfast.nn.Conv3x3(3, 4),
        vggfast.nn.FusedSequential(vggfast.nn.Conv3x3(3, 4), nn.ReLU()),
    ],
    ids=["Engine", "Conv3x3", "FusedSequential"],
)
def test_modules_and_engines_say_the_same(module, form):
    made = ODD[form](random.Random(0), draw(2, 3, 4, 5))
    with pytest.raises((TypeError, ValueError), match=r"^(x|weight) must "):
        module(made)


def test_a_layer_that_never_ran():
    for layer in (vggfast.nn.Conv3x3(3, 4), vggfast.nn.Linear(5, 4)):
        layer.weight = nn.UninitializedParameter()
        with pytest.raises(ValueError, match="weight must be initialised"):
            vggfast.nn.FusedSequential(layer)(draw(2, 3, 4, 5))


# The derivatives' ops, which nobody but autograd calls, and the ops behind the functions.
DIRECT = {
    "conv": (draw(2, 3, 4, 5), draw(5, 3, 3, 3), draw(5), True, False, True),
    "conv_dgrad": (draw(2, 5, 4, 5), None, draw(5, 3, 3, 3), 4, 5),
    "conv_wgrad": (draw(2, 3, 4, 5), draw(2, 5, 4, 5), None, 3, True),
    "max_pool": (draw(2, 3, 4, 5), False, False),
    "mask_gather": (draw(2, 3, 4, 5), torch.zeros(2, 1, 4, 5, 1).byte()),
    "mask_scatter": (draw(2, 3, 4, 5), torch.zeros(2, 1, 4, 5, 1).byte(), 4, 5),
    "lrn_dgrad": (draw(2, 3, 4, 5), draw(2, 3, 4, 5), 5, 1.0, 0.75, 2.0),
    "mean_posteriors_dgrad": (draw(2, 3), draw(2, 3, 4, 5), 1),
    "linear_dgrad": (draw(3, 5), draw(5, 4)),
    "linear_wgrad": (draw(3, 4), draw(3, 5)),
}


@pytest.mark.parametrize("form", ["none", "nested", "jagged", "freed", "cut", "coo"])
@pytest.mark.parametrize("name", DIRECT)
def test_ops_called_directly(name, form):
    op, args = getattr(torch.ops.vggfast, name), list(DIRECT[name])
    for i, argument in enumerate(op.default._schema.arguments):
        if str(argument.type) == "Tensor":
            made = ODD[form](random.Random(0), args[i])
            with pytest.raises((TypeError, ValueError), match=f"{argument.name} must "):
                op(*args[:i], made, *args[i + 1 :])


@pytest.mark.parametrize("form", ["freed", "cut"])
def test_an_engine_names_the_parameter_that_was_freed(form):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    model[0].weight.data = ODD[form](random.Random(0), model[0].weight.data)
    with pytest.raises(ValueError, match=r"model.0 must have 432 bytes of memory"):
        vggfast.Engine(model)


def test_a_gradient_that_was_freed():
    x = draw(1, 3, 4, 4).requires_grad_()
    y = ops.max_pool2x2(x)
    with pytest.raises(ValueError, match="y must have 48 bytes of memory"):
        y.backward(ODD["freed"](random.Random(0), torch.ones_like(y)))


@pytest.mark.parametrize("power", [20, 31, 40])
@pytest.mark.parametrize("op", ["max_pool2x2", "local_response_norm", "sum_pool"])
def test_more_than_there_is_memory_for(op, power):
    x = torch.zeros(()).expand(1, 2**power, 2**20, 2)
    with pytest.raises(MemoryError, match=rf"a tensor of shape \(1, {2**power}.* and torch.float32 needs \d+ bytes"):
        getattr(ops, op)(x)


@pytest.mark.parametrize(("shape", "error", "text"), [
    ((1, 3, 2**20, 2**20), MemoryError, r"shape \(1, 4, 1048576, 1048576\) and torch.float32 needs 17592186044416"),
    ((2**40, 3, 2**20, 2), ValueError, r"x must be of fewer than 2\^56 values, got \(1099511627776, 3, 1048576, 2\)"),
    ((1, 2**62, 1, 1), ValueError, r"x must be of fewer than 2\^56 values"),
])  # fmt: skip
def test_more_than_an_engine_has_memory_for(shape, error, text):
    engine = vggfast.Engine(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)))
    with pytest.raises(error, match=text):
        engine(torch.zeros(()).expand(shape))


def test_arena_larger_than_memory():
    """The result would fit, and what is computed before it does not."""
    engine = vggfast.Engine(nn.Sequential(nn.Conv2d(1, 2048, 1), nn.Conv2d(2048, 1, 1)))
    with pytest.raises(MemoryError, match=r"x of shape \(1, 1, 65536, 16384\) .* no memory for \d+ bytes"):
        engine(torch.zeros(()).expand(1, 1, 65536, 16384)[:, :, :, :])


@pytest.mark.parametrize("threads", [1025, 2**31 - 1])
def test_threads_of_torch_by_mistake(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with pytest.raises(ValueError, match=f"OMP_NUM_THREADS must be at most 1024, got {threads}"):
        ops.max_pool2x2(draw(1, 3, 4, 4))


@pytest.mark.parametrize(("threads", "error", "text"), [
    (1025, ValueError, "threads must be at most 1024, got 1025"),
    (2**31, ValueError, "threads must be at most 1024, got 2147483648"),
    (2**70, ValueError, "threads must be at most 1024, got"),
    (0, ValueError, "threads must be at least 1, got 0"),
    (-(2**31), ValueError, "threads must be at least 1, got -2147483648"),
    (1.5, TypeError, "threads must be a whole number, got 1.5"),
    ("2", TypeError, "threads must be a whole number, got str '2'"),
    (True, TypeError, "threads must be a whole number, got True"),
])  # fmt: skip
def test_threads_of_an_engine(threads, error, text):
    with pytest.raises(error, match=text):
        vggfast.Engine(nn.Sequential(nn.ReLU()), threads=threads)


@pytest.mark.parametrize("transform", [vmap, lambda f: grad(lambda x: f(x).sum())], ids=["vmap", "grad"])
def test_engines_within_transforms(transform):
    engine = vggfast.Engine(nn.Sequential(nn.ReLU()))
    with pytest.raises((TypeError, ValueError), match=r"^x (must|requires)"):
        transform(engine)(draw(2, 2, 3, 4, 4) if transform is vmap else draw(2, 3, 4, 4))


def test_an_engine_drops_no_tangent():
    engine, x = vggfast.Engine(nn.Sequential(nn.ReLU())), draw(1, 3, 4, 4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        with pytest.raises(ValueError, match="x requires a gradient"):
            engine(dual)


@pytest.mark.parametrize(("change", "text"), [
    ({"size": 2**70}, "size must be at most"), ({"size": 1.5}, "size must be a whole number, got 1.5"),
    ({"size": None}, "size must be a whole number, got None"), ({"alpha": "1"}, "alpha must be a number, got str '1'"),
    ({"beta": None}, "beta must be a number, got None"), ({"k": [1]}, "k must be a number, got list"),
])  # fmt: skip
def test_numbers_of_lrn(change, text):
    with pytest.raises((TypeError, ValueError), match=text):
        ops.local_response_norm(draw(1, 3, 4, 4), **change)


def test_a_window_wider_than_any_tensor():
    x = draw(1, 3, 4, 4).double().requires_grad_()
    y = ops.local_response_norm(x, 2**40)
    torch.testing.assert_close(y, (x / (2 + 1e-4 / 2**40 * x.pow(2).sum(1, keepdim=True)) ** 0.75))
    (gx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert torch.autograd.grad(gx.sum(), x)[0].isfinite().all()


def test_no_images_of_more_pixels_than_strides_count():
    with pytest.raises(ValueError, match="has strides of more than 2"):
        ops.max_pool2x2(torch.empty(0, 1, 1, 1).expand(0, 2**40, 2**40, 2))


def test_no_images_of_many_classes():
    assert ops.mean_posteriors(torch.empty(0, 2**40, 1, 1)).shape == (0, 2**40)


# ---- crop_images ---------------------------------------------------------------------------------------------------

PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def room(*shape) -> torch.Tensor:
    return torch.empty(shape).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(("out", "text"), [
    (torch._neg_view(room(1, 3, 4, 4)), "out must not be a negated view"),
    (torch.zeros(()).expand(1, 3, 4, 4), "out must be channels_last"),
    (room(1, 3, 4, 4).requires_grad_(), "out requires a gradient"),
    (room(1, 3, 4, 4).to("meta"), "out must be .* on cpu, got .* on meta"),
])  # fmt: skip
def test_out_that_would_lose_what_is_written(out, text):
    with pytest.raises(ValueError, match=text):
        ops.crop_images([PICTURE], 4, out=out)


def test_writing_to_out_is_seen_by_autograd():
    out, w = room(1, 3, 4, 4).zero_(), torch.ones(1, requires_grad=True)
    y = (out * w).sum()
    ops.crop_images([PICTURE], 4, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_crops_at_any_address():
    held = torch.frombuffer(bytearray(4 * 48 + 8), dtype=torch.float32, offset=3, count=48)
    out = held.as_strided((1, 3, 4, 4), (48, 1, 12, 3))
    assert_same_bits(ops.crop_images([PICTURE], 4, out=out), ops.crop_images([PICTURE], 4))


def test_vmap_of_prepare_images():
    images = torch.randint(0, 256, (2, 3, 4, 4, 3), dtype=torch.uint8)
    mapped = vmap(lambda each: ops.prepare_images(each, 3, mean=(1, 2, 3)))(images)
    assert_same_bits(mapped[1], ops.prepare_images(images[1], 3, mean=(1, 2, 3)))


@pytest.mark.parametrize(("change", "text"), [
    ({"mean": 1.0}, "mean must be 3 numbers, got 1.0"), ({"mean": (1, None, 2)}, "mean must be 3 numbers"),
    ({"std": (1, 0, 1)}, "std must have no 0, got"), ({"std": (1, float("nan"), 1)}, "std must be numbers under"),
    ({"size": (1, 2, 3)}, "size must be one number or two"), ({"size": "large"}, "size must be"),
])  # fmt: skip
@pytest.mark.parametrize("op", [lambda **o: ops.prepare_images(torch.zeros(1, 4, 4, 3).byte(), **o),
                                lambda **o: ops.crop_images([PICTURE], **o)], ids=["prepare", "crop"])  # fmt: skip
def test_numbers_of_images(op, change, text):
    with pytest.raises((TypeError, ValueError), match=text):
        op(**{"size": 3} | change)


# ---- the compiled module's own functions --------------------------------------------------------------------------


def test_bindings_name_the_argument():
    core = _native.load()
    x = _native.view(draw(1, 3, 4, 4).to(memory_format=torch.channels_last), "x")
    context = core.Context(1)
    cases = [
        (lambda: core.cpu.sum_pool(None, True, x, context), TypeError, "x must be a TensorView, got None"),
        (lambda: core.cpu.sum_pool(x, True, x, 3), TypeError, "context must be a Context, got 3"),
        (lambda: core.cpu.sum_pool(x, True), TypeError, "y is missing"),
        (lambda: core.cpu.sum_pool(x, True, x, context, 5), TypeError, "at most 4 arguments, got 5"),
        (lambda: core.TensorView(0, 0, [2, 3], [3], "float32", "cpu"), ValueError, r"strides must be as many as the 2"),
        (lambda: core.TensorView(0, 0, [-1], [1], "float32", "cpu"), ValueError, "extents of at least 0"),
        (lambda: core.TensorView(0, 0, [2**40] * 3, [0] * 3, "float32", "cpu"), ValueError, "fewer than 2.56 values"),
        (lambda: core.CachedBuffer(-1), TypeError, "bytes must be a whole number from 0 on, got -1"),
        (lambda: core.CachedBuffer(2**60), MemoryError, "no memory for 1152921504606846976 bytes"),
        (lambda: core.Context(2**20), ValueError, "threads must be at most 1024, got 1048576"),
        (lambda: core.plan.fuse([], [0]), ValueError, "outputs must be one or more numbers of the 0 layers"),
        (lambda: core.plan.output_shapes([core.plan.Layer("relu")], [1, 2, 3, 4], [1]), ValueError, "outputs must be"),
        (lambda: core.plan.output_shapes([core.plan.Layer("linear")], [1, 0, 3, 4], [0]), ValueError, "must follow"),
    ]
    for call, error, text in cases:
        with pytest.raises(error, match=text):
            call()


def test_bindings_read_no_address_that_is_null():
    core = _native.load()
    shape, strides = [1, 3, 4, 4], [48, 1, 12, 3]
    null = core.TensorView(0, 0, shape, strides, "float32", "cpu")
    with pytest.raises(ValueError, match=r"x must have memory, got none for shape \(1, 3, 4, 4\)"):
        core.cpu.sum_pool(null, True, null, core.Context(1))
    engine = core.Engine(bf16=False, bf16_weights=False, threads=1, batch=1, size=4)
    engine.add_relu()
    with pytest.raises(ValueError, match="x must have memory"):
        engine.run(null, [(0, null)], 1)


@pytest.mark.parametrize("channels", [1, 3, 8, 200])
def test_one_engine_for_any_number_of_channels(channels):
    engine = vggfast.Engine(nn.Sequential(nn.MaxPool2d(2, 2), nn.ReLU()))
    for c in (3, channels, 3):
        x = torch.randn(1, c, 8, 8)
        assert torch.equal(engine(x), F.relu(F.max_pool2d(x, 2)))
