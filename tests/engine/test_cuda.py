"""What Engine does on CUDA, against the model in float64: on a real GPU, and on the simulated one and on torch's ops,
where a graph is replayed by running what it would hold. tests/cuda/test_engine.py has what only a real GPU can show."""

import pytest
import torch
from torch import nn

from tests.engine.test_engine import LAYOUTS, named, small, trained_statistics
from tests.support.backends import SimulatedNetwork
from tests.support.comparisons import conv_precision, in_format, plain_torch, relative_error
from vggfast.engine.cuda import PLANS_KEPT, PRECISIONS
from vggfast.engine.steps import Steps
from vggfast.models import CONFIGURATIONS

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.backends("sim", "torch", "cuda")]
kernels = pytest.mark.backends("sim", "cuda")  # where dtypes have kernels of their own

# Relative errors that whole networks allow.
BOUNDS = {"fp32": 1e-5, "tf32": 5e-3, "fp16": 5e-3, "bf16": 3e-2}
precisions = pytest.mark.parametrize("precision", BOUNDS)
THIN = {"width": 1 / 16, "hidden": 16}


def exactly(model, x):
    """What the module computes in float64, on torch's own layers."""
    with torch.no_grad():
        if isinstance(model, nn.Sequential):
            return plain_torch(model).double()(x.double())
        y = exactly(model.features, x)
        if not hasattr(model, "classifier"):
            return y
        if isinstance(model.classifier[0] if isinstance(model.classifier, nn.Sequential) else None, nn.Conv2d):
            return plain_torch(model.classifier).double()(y).mean((2, 3))
        return plain_torch(nn.Sequential(model.avgpool, nn.Flatten(), model.classifier)).double()(y)


def assert_right(build, model, *sizes, precision="fp32"):
    made = build(model, dtype=precision)
    for size in sizes:
        x = torch.randn(size)
        y = made(x)
        assert y.dtype == torch.float32
        assert relative_error(y, exactly(model, x)) < BOUNDS[precision], size
    return made


# ---- networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGURATIONS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_networks(build, config, batch_norm):
    assert_right(build, small(config, batch_norm=batch_norm, **THIN), (2, 3, 32, 32), (1, 3, 35, 70))


@kernels
@precisions
@pytest.mark.parametrize("config", ["A-LRN", "C"])
def test_precisions(build, config, precision):
    model = small(config, width=0.125, hidden=16)
    assert_right(build, model, (2, 3, 40, 33), precision=precision)


@pytest.mark.parametrize("head", ["linear", "conv"])
@pytest.mark.parametrize("pool_size", [1, 2, 3])
def test_heads(build, head, pool_size):
    """At their own size, where rows are a view of the map, and at others."""
    native = 32 * pool_size
    model = small(head=head, pool_size=pool_size, **THIN)
    assert_right(build, model, (2, 3, native, native), (2, 3, native + 33, native + 70))


def test_without_a_head(build):
    made = assert_right(build, small("D", head="none", **THIN), (2, 3, 33, 70))
    y = made(torch.randn(2, 3, 64, 33))
    assert y.shape == (2, 32, 2, 1)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("pools", [[0], [4], [0, 1, 2, 3, 4]], ids=str)
def test_ceil_mode(build, pools):
    model = small("A", head="none", **THIN)
    every = [module for module in model.features if isinstance(module, nn.MaxPool2d)]
    for i in pools:
        every[i].ceil_mode = True
    assert_right(build, model.features, (2, 3, 47, 35), (1, 3, 33, 33))


@pytest.mark.parametrize("channels", [1, 4, 17])
def test_channels_of_the_input(build, channels):
    assert_right(build, small(in_channels=channels, **THIN), (2, channels, 33, 40))


def test_odd_widths(build):
    assert_right(build, small(width=0.1, hidden=33, num_classes=1, pool_size=2), (2, 3, 61, 47))


def test_the_smallest_images(build):
    model = small(head="none", **THIN).features[:2]
    assert_right(build, model, (1, 3, 1, 1), (2, 3, 1, 7), (2, 3, 5, 1))


def test_a_classifier_of_one_layer_or_none(build):
    """Without an FC layer, the rows that come out have torch's order."""
    model = small(pool_size=2, **THIN)
    model.classifier = nn.Linear(128, 3)
    assert_right(build, model, (2, 3, 64, 70))
    model.classifier = nn.Identity()
    assert assert_right(build, model, (2, 3, 64, 70), (2, 3, 64, 64))(torch.randn(3, 3, 64, 64)).shape == (3, 128)


def test_relu_where_nothing_fuses_it(build):
    model = small(pool_size=2, **THIN)
    model.classifier = nn.Sequential(nn.ReLU(), nn.Linear(128, 9), nn.ReLU(), nn.ReLU())
    nn.init.constant_(model.classifier[1].bias, 0.5)
    assert_right(build, model, (2, 3, 64, 70), (2, 3, 64, 64))


def test_layers_without_biases_and_norms_without_scales(build):
    layers = [nn.Conv2d(3, 9, 3, padding=1, bias=False), nn.BatchNorm2d(9, affine=False), nn.ReLU(),
              nn.Conv2d(9, 4, 1, bias=False), nn.Dropout(), nn.LocalResponseNorm(3)]  # fmt: skip
    assert_right(build, trained_statistics(nn.Sequential(*layers)), (2, 3, 9, 8))
    model = small(pool_size=1, **THIN)
    model.classifier = nn.Sequential(nn.Linear(32, 7, bias=False), nn.ReLU(), nn.Linear(7, 3, bias=False))
    assert_right(build, model, (2, 3, 33, 40))


def test_models_of_sixteen_bits(build):
    model, x = small(batch_norm=True, **THIN), torch.randn(2, 3, 33, 40)
    half = small(batch_norm=True, **THIN).half()
    half.load_state_dict(model.state_dict())
    assert relative_error(build(half)(x), exactly(half, x)) < BOUNDS["fp32"]  # batch norm is folded in float64


@kernels
def test_the_engines_own_switch_for_tf32(build):
    """torch's has no say, neither over convolutions nor over FC layers, and is left as it was."""
    model, x = small(**THIN), torch.randn(2, 3, 33, 40)
    expected = exactly(model, x)
    for theirs in ("tf32", "ieee"):
        with conv_precision(theirs):
            exact, rounded = (relative_error(build(model, dtype=dtype)(x), expected) for dtype in ("fp32", "tf32"))
            assert torch.backends.cudnn.conv.fp32_precision == theirs
        assert exact < 1e-5 < rounded < BOUNDS["tf32"]


# ---- parts of a network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["A-LRN", "C"])
def test_every_slice(build, config):
    features = small(config, head="none", **THIN).features
    for cut in range(1, len(features), 2):
        assert_right(build, features[:cut], (2, 3, 33, 35))
        part = features[cut:]
        convolutions = [module for module in part if isinstance(module, nn.Conv2d)]
        if convolutions:
            assert_right(build, part, (1, convolutions[0].in_channels, 33, 34))


@pytest.mark.parametrize(("config", "batch_norm"), [("A-LRN", False), ("C", False), ("B", True)])
def test_taps(build, config, batch_norm):
    """Each alone, all together, and some in an order of the caller's."""
    model = small(config, batch_norm=batch_norm, **THIN)
    made, names = build(model), named(model.features)
    assert list(made.taps) == list(names)
    x = torch.randn(2, 3, 33, 35)
    expected = {name: exactly(model.features[:count], x) for name, count in names.items()}
    some = ["relu3_1", "conv1_1", "pool5", "relu1_1", "conv3_1"]
    for taps in ([*names], some, ("pool2", "pool2"), *([name] for name in [*names][::3])):
        got = made.features(x, taps)
        assert list(got) == list(dict.fromkeys(taps))
        for name, y in got.items():
            assert y.dtype == torch.float32
            assert relative_error(y, expected[name]) < 1e-5, (name, taps)
            assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(made.features(x), expected["pool5"]) < 1e-5


# ---- what is kept -------------------------------------------------------------------------------------------------


@kernels
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_snapshot_of_the_weights(build, precision):
    """Those that lie as the engine needs them already are copied as well."""
    model = small(batch_norm=True, pool_size=2, **THIN).to(memory_format=torch.channels_last)
    del model.features[1]  # a convolution without a norm
    x = torch.randn(1, 3, 64, 70)
    made = build(model, dtype=precision)
    first = made(x)
    with torch.no_grad():
        for t in model.state_dict().values():
            t.fill_(7)
    assert torch.equal(made(x), first)


def test_results_are_the_callers(build):
    made, x = build(small(**THIN)), torch.randn(2, 3, 40, 40)
    first, map_ = made(x), made.features(x)
    kept, kept_map, before = first.clone(), map_.clone(), x.clone()
    made(torch.randn(2, 3, 40, 40))
    made.features(torch.randn(2, 3, 40, 40), made.taps)
    assert torch.equal(first, kept)
    assert torch.equal(map_, kept_map)
    first.zero_()
    map_.add_(1)
    assert torch.equal(made(x), kept)
    assert torch.equal(x, before)
    assert not first.requires_grad


def test_more_shapes_than_plans_are_kept(build):
    """All come again, in other orders, with taps and without, and each is as at first."""
    model = small("A-LRN", **THIN).features[:9]
    made = build(model)
    images = [torch.randn(1 + i % 3, 3, 16 + i, 30 - i) for i in range(PLANS_KEPT - 5)]
    first = [(made(x), made.features(x, ["relu1_1", "pool2"])) for x in images]
    for x, (y, _) in zip(images, first, strict=True):
        assert relative_error(y, exactly(model, x)) < 1e-5
    for i in [*range(len(images)), *reversed(range(len(images))), *torch.randperm(len(images)).tolist()]:
        y, taps = first[i]
        assert torch.equal(made(images[i]), y)
        again = made.features(images[i], ["relu1_1", "pool2"])
        assert all(torch.equal(again[name], taps[name]) for name in taps)
        assert len(made._network._plans) == PLANS_KEPT


def test_bytes(build):
    """The arena grows to what the largest shape needs, and results from before are as good afterwards."""
    model, x = small(**THIN), torch.randn(2, 3, 64, 64)
    made = build(model)
    weights = sum(4 * p.numel() for p in model.parameters()) + made._network._steps.bytes
    assert made.bytes == weights
    y = made(x)
    held = made.bytes
    assert held > weights
    for other in (x[..., :40], x[:1]):
        made(other)
        assert torch.equal(made(x), y)
        assert made.bytes == held
    twice = made(torch.cat([x, x]))
    grown = made.bytes
    assert grown > held
    assert relative_error(twice[2:], y) < 1e-5
    assert torch.equal(made(x), y)
    inputs = [kept.captured.bound.input for kept in made._network._plans.values() if kept.captured]
    assert {t.untyped_storage().data_ptr() for t in inputs} == {made._network._arena._memory.data_ptr()}
    made.features(x, made.taps)
    assert torch.equal(made(torch.cat([x, x])), twice)


@pytest.mark.backends("sim")
@pytest.mark.parametrize("precision", BOUNDS)
def test_no_call_packs_weights(build, sim, precision):
    """What kernels do not read where it lies was packed as the engine was made."""
    made = build(small("C", width=0.25, hidden=16), dtype=precision)
    assert made._network._steps.bytes > 0
    sim.clear_counters()
    made(torch.randn(1, 3, 33, 32))
    assert "pack_weights_kernel" not in sim.counters()
    assert "conv_fprop_kernel" in sim.counters()  # which reads packed weights: of 1x1 with a pool on Hopper, too


@pytest.mark.backends("torch")
def test_a_workspace_is_that_of_the_engines_own_gpu(build, monkeypatch):
    """Whichever of several is the current one: only within the lock is it the engine's."""
    within, asked = [False], []

    class Noted(SimulatedNetwork.lock_type):
        def __enter__(self):
            within[0] = True
            return self

        def __exit__(self, *error):
            within[0] = False

    monkeypatch.setattr(SimulatedNetwork, "lock_type", Noted)
    monkeypatch.setattr(Steps, "takes_block1", lambda steps, layers: bool(asked.append(within[0])))
    build(small("A", **THIN)).workspace(1, 32, 32)
    assert asked == [True]


@kernels
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_graphs(build, precision):
    """The same bits, on memory that goes with each call."""
    model = small("A-LRN", head="conv", pool_size=1, **THIN)
    captured, launched = (build(model, dtype=precision, graph=graph) for graph in (True, False))
    held = launched.bytes
    for size in ((2, 3, 33, 70), (1, 3, 64, 32), (2, 3, 33, 70)):
        x = torch.randn(size)
        y = launched(x)
        assert torch.equal(captured(x), y)
        assert y.untyped_storage().nbytes() == y.nbytes
        taps = launched.features(x, ["relu1_1", "norm1_1", "pool3"])
        for name, expected in captured.features(x, list(taps)).items():
            assert torch.equal(taps[name], expected)
        assert launched.bytes == held


# ---- images -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_strides(build, layout):
    made, x = build(small(head="none", **THIN).features[:5]), torch.randn(3, 3, 15, 22)
    assert torch.equal(made(layout(x)), made(x))


def test_expanded_and_negated_images(build):
    made, x = build(small(head="none", **THIN).features[:5]), torch.randn(1, 1, 40, 1)
    assert torch.equal(made(x.expand(4, 3, 40, 50)), made(x.expand(4, 3, 40, 50).contiguous()))
    z = torch.randn(1, 3, 10, 12, dtype=torch.complex64)
    assert torch.equal(made(z.conj().imag), made(-z.imag))


@kernels
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_images_in_the_engines_dtype(build, precision):
    dtype = PRECISIONS[precision].dtype
    made, x = build(small(**THIN), dtype=precision), torch.randn(2, 3, 33, 40).to(dtype)
    assert torch.equal(made(x), made(x.float()))
    assert torch.equal(made(in_format(x, "channels_last")), made(x))


@pytest.mark.parametrize("head", ["linear", "conv", "none"])
def test_no_images(build, head):
    made = build(small(head=head, pool_size=1, **THIN))
    shape = (0, 10) if head != "none" else (0, 32, 1, 2)
    y = made(torch.randn(0, 3, 40, 64))
    assert y.shape == shape
    assert y.dtype == torch.float32
    taps = made.features(torch.randn(0, 3, 40, 64), ["relu1_1", "pool2"])
    assert [tuple(y.shape) for y in taps.values()] == [(0, 4, 40, 64), (0, 8, 10, 16)]


def test_not_finite(build):
    """Inf and NaN go where the module takes them, and a ReLU keeps NaN."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()]
    model, x = nn.Sequential(*layers), torch.randn(3, 3, 13, 14)
    x[0, 0, 3, 4], x[1, 1, 12, 12] = float("nan"), float("inf")
    y, expected = build(model)(x), exactly(model, x)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.isinf(), expected.isinf())


def test_gradients_and_inference_mode(build):
    """An engine made or first called under inference_mode serves calls without it, and the other way round."""
    model, x = small(**THIN), torch.randn(1, 3, 33, 40)
    expected = build(model)(x)
    with torch.inference_mode():
        made = build(model)
        assert torch.equal(made(x), expected)
    assert torch.equal(made(x), expected)
    with torch.inference_mode():
        assert torch.equal(made(x.clone()), expected)
    with torch.no_grad():
        assert not made(x.clone().requires_grad_()).requires_grad
    with torch.autocast(x.device.type, torch.bfloat16):
        assert torch.equal(made(x), expected)
        assert torch.equal(build(model)(x), expected)
