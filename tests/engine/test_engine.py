"""Engine against the module in float64: networks, heads, sizes, precisions, slices, taps, instruction sets, layouts."""

import copy

import pytest
import torch
from torch import nn

import vggfast
from tests.support.comparisons import assert_as_accurate_as_torch, in_format, plain_torch, relative_error
from vggfast import VGG, Engine
from vggfast.models import CONFIGURATIONS

pytestmark = pytest.mark.usefixtures("one_thread")

# The options of an engine, and the relative error that each allows.
KINDS = {
    "fp32": ({}, 1e-5),
    "bf16 weights": ({"weights": "bf16"}, 1e-2),
    "bf16": ({"dtype": "bf16"}, 2e-2),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def trained(model):
    """As after training: statistics, scales and biases of their own; dropout and batch norm at rest."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias, 0, 0.1)
    return model.eval()


def small(config="A", **arguments) -> VGG:
    return trained(VGG(config, **{"width": 0.25, "hidden": 64, "num_classes": 10, **arguments}))


def exactly(model, x):
    """What the module computes in float64, on torch's own layers where it is a trunk."""
    twin = plain_torch(model) if isinstance(model, nn.Sequential) else copy.deepcopy(model)
    with torch.no_grad():
        return twin.double()(x.double())


def assert_right(model, *sizes, kind="fp32", **options):
    given, bound = KINDS[kind]
    engine = Engine(model, **given, **options)
    for size in sizes:
        x = torch.randn(size)
        expected = exactly(model, x)
        y = engine(x)
        assert y.dtype == torch.float32
        assert relative_error(y, expected) < bound, size
    return engine


# ---- networks -----------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("config", CONFIGURATIONS)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_networks(config, batch_norm, kind):
    assert_right(small(config, batch_norm=batch_norm), (2, 3, 64, 64), (1, 3, 97, 45), kind=kind)


@kinds
@pytest.mark.parametrize("head", ["linear", "conv"])
@pytest.mark.parametrize("pool_size", [1, 2, 3, 7])
def test_heads(head, pool_size, kind):
    native = 32 * pool_size
    sizes = [(2, 3, native, native), (3, 3, native + 33, native + 70), (1, 3, native + 5, native + 200)]
    assert_right(small(head=head, pool_size=pool_size, batch_norm=True), *sizes, kind=kind)


@kinds
@pytest.mark.parametrize("size", [(1, 3, 32, 32), (2, 3, 33, 95), (3, 3, 224, 224), (1, 3, 190, 501)], ids=str)
def test_without_a_head(kind, size):
    model = small("D", head="none")
    y = assert_right(model, size, kind=kind)(torch.randn(size))
    assert y.shape == (size[0], 128, size[2] // 32, size[3] // 32)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 2, 4, 17])
def test_channels_of_the_input(channels):
    assert_right(small(in_channels=channels), (2, channels, 40, 50))


@pytest.mark.parametrize("width", [1 / 64, 0.1, 0.3])
def test_odd_widths(width):
    assert_right(small("E", width=width, hidden=33, num_classes=1), (2, 3, 61, 47))


@pytest.mark.parametrize("pools", [[0], [1], [4], [0, 1, 2, 3, 4]], ids=str)
@kinds
def test_ceil_mode(pools, kind):
    model = small("A", head="none")
    every = [module for module in model.features if isinstance(module, nn.MaxPool2d)]
    for i in pools:
        every[i].ceil_mode = True
    assert_right(model.features, (2, 3, 97, 75), (1, 3, 64, 33), (3, 3, 63, 63), kind=kind)


def test_the_smallest_images():
    assert_right(small(), (1, 3, 32, 32), (3, 3, 32, 45))
    model = small(head="none").features[:2]
    assert_right(model, (1, 3, 1, 1), (2, 3, 1, 7), (2, 3, 5, 1), (2, 3, 2, 2))


def test_layers_that_do_nothing_may_be_anywhere():
    layers = [nn.Identity(), nn.Conv2d(3, 9, 3, padding="same"), nn.Dropout(), nn.ReLU(), nn.Dropout(), nn.MaxPool2d(2)]
    assert_right(nn.Sequential(*layers, nn.Identity(), nn.Conv2d(9, 4, 1, bias=False)).eval(), (2, 3, 9, 8))


def test_a_classifier_of_one_layer_or_none():
    model = small(pool_size=2)
    model.classifier = nn.Linear(512, 3)
    assert_right(model, (2, 3, 64, 70))
    model.classifier = nn.Identity()
    assert assert_right(model, (2, 3, 64, 70))(torch.randn(3, 3, 64, 64)).shape == (3, 512)


@kinds
def test_relu_where_nothing_fuses_it(kind):
    model = small(pool_size=2)
    model.classifier = nn.Sequential(nn.ReLU(), nn.Linear(512, 9), nn.ReLU(), nn.ReLU())
    nn.init.constant_(model.classifier[1].bias, 0.5)
    assert_right(model, (2, 3, 64, 70), (1, 3, 32, 32), kind=kind)


def test_one_module_in_several_places():
    relu, pool = nn.ReLU(), nn.MaxPool2d(2)
    layers = [nn.Conv2d(3, 9, 3, padding=1), relu, pool, nn.Conv2d(9, 9, 3, padding=1), relu, pool]
    assert_right(nn.Sequential(*layers), (2, 3, 12, 10))


def test_batch_norm_without_scales_and_after_a_convolution_without_bias():
    layers = [nn.Conv2d(3, 9, 3, padding=1, bias=False), nn.BatchNorm2d(9, affine=False), nn.ReLU()]
    assert_right(trained_statistics(nn.Sequential(*layers)), (2, 3, 9, 8))


def trained_statistics(model):
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


# ---- parts of a network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["A-LRN", "C"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_slice(config, dtype):
    features = small(config, head="none", width=0.125).features
    for cut in range(1, len(features) + 1):
        assert_right(features[:cut], (2, 3, 41, 38), kind=dtype)
    for cut in range(1, len(features)):
        part = features[cut:]
        convolutions = [module for module in part if isinstance(module, nn.Conv2d)]
        assert_right(part, (2, convolutions[0].in_channels if convolutions else 5, 35, 46), kind=dtype)


@pytest.mark.parametrize("layers", [
    [nn.ReLU()], [nn.LocalResponseNorm(5)], [nn.LocalResponseNorm(4, 0.1)], [nn.MaxPool2d(2)],
    [nn.MaxPool2d(2, ceil_mode=True)], [nn.Identity(), nn.ReLU(), nn.MaxPool2d(2), nn.LocalResponseNorm(3)],
])  # fmt: skip
def test_a_network_without_a_convolution_takes_any_channels(layers):
    model = nn.Sequential(*layers)
    engine = Engine(model)
    for channels in (3, 8, 1, 3, 17, 2):
        for memory_format in ("contiguous_format", "channels_last"):
            x = in_format(torch.randn(2, channels, 6, 8), memory_format)
            assert relative_error(engine(x), model(x)) < 1e-6
    with pytest.raises(ValueError, match="C, H and W of at least 1"):
        engine(torch.randn(2, 0, 6, 8))
    assert engine(torch.randn(0, 3, 6, 8)).shape[:2] == (0, 3)


def named(features) -> dict[str, int]:
    """The number of layers up to each name."""
    names, stage, index = {}, 1, 0
    for i, module in enumerate(features, 1):
        if isinstance(module, nn.MaxPool2d):
            names[f"pool{stage}"] = i
            stage, index = stage + 1, 0
            continue
        index += isinstance(module, nn.Conv2d)
        kind = {nn.ReLU: "relu", nn.BatchNorm2d: "conv"}.get(type(module), "norm")
        names[f"{'conv' if isinstance(module, nn.Conv2d) else kind}{stage}_{index}"] = i
    return names


@pytest.mark.parametrize(("config", "batch_norm"), [("A", False), ("A-LRN", False), ("C", False), ("B", True)])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_taps(config, batch_norm, kind):
    """Each alone, all together, and some in an order of the caller's; a batch norm is its convolution's last word."""
    model = small(config, width=0.125, batch_norm=batch_norm)
    options, bound = KINDS[kind]
    engine, names = Engine(model, **options), named(model.features)
    assert list(engine.taps) == list(names)
    x = torch.randn(2, 3, 49, 62)
    expected = {name: exactly(model.features[:count], x) for name, count in names.items()}
    some = ["relu3_1", "conv1_1", "pool5", "relu1_1", "conv3_1"]
    for taps in ([*names], some, ("pool2", "pool2"), *([name] for name in names)):
        got = engine.features(x, taps)
        assert list(got) == list(dict.fromkeys(taps))
        for name, y in got.items():
            assert relative_error(y, expected[name]) < bound, (name, taps)
            assert y.is_contiguous(memory_format=torch.channels_last)
            assert y.data_ptr() not in {other.data_ptr() for key, other in got.items() if key != name}
    assert relative_error(engine.features(x), expected["pool5"]) < bound


def test_taps_leave_the_rest_alone():
    """What a tap un-fuses, and what it leaves out, changes no bit of the other outputs."""
    engine = Engine(small("D", width=0.125))
    x = torch.randn(2, 3, 70, 66)
    whole, features = engine(x), engine.features(x)
    together = engine.features(x, engine.taps)
    for tap in engine.taps:
        assert relative_error(engine.features(x, [tap])[tap], together[tap]) < 1e-5
    assert relative_error(together["pool5"], features) < 1e-5
    assert torch.equal(engine(x), whole)


# ---- torchvision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn", "vgg16"])
def test_torchvision(torchvision, name):
    model = getattr(torchvision.models, name)(init_weights=False)
    model.classifier = nn.Sequential(nn.Linear(512 * 49, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 10))
    assert_right(trained(model), (1, 3, 224, 224), (2, 3, 97, 130))
    assert_right(model.features[:9], (2, 3, 60, 60))


def test_torchvision_with_its_own_head(torchvision):
    model = trained(torchvision.models.vgg11(num_classes=10, init_weights=False))
    engine, x = Engine(model, weights="bf16"), torch.randn(2, 3, 64, 64)
    assert relative_error(engine(x), exactly(model, x)) < 1e-2
    half = sum(2 * layer.weight.numel() for layer in model.classifier if isinstance(layer, nn.Linear))
    packed = sum(4 * p.numel() * 64 / 9 for p in model.features.parameters())  # as F(6 x 6) has them, the largest
    assert half < engine.bytes < half + packed + (64 << 20)


# ---- algorithms and instruction sets ------------------------------------------------------------------------------


@pytest.mark.backends("cpu")
@pytest.mark.parametrize("config", ["A-LRN", "C"])
@kinds
def test_instruction_sets(backend, algorithm, config, kind):
    assert_right(small(config, width=0.125), (3, 3, 61, 74), kind=kind)


@pytest.mark.backends("cpu")
@pytest.mark.parametrize("config", CONFIGURATIONS)
def test_exact(backend, exact, config):
    """Every convolution is a plain sum: the rule is the one for kernels without a transform."""
    model = small(config, width=0.125, head="none")
    x = torch.randn(2, 3, 66, 75)
    with torch.no_grad():
        theirs = plain_torch(model.features)(x)
    assert_as_accurate_as_torch(Engine(model)(x), theirs, exactly(model.features, x))


@pytest.mark.backends("cpu")
@pytest.mark.parametrize("config", ["A", "A-LRN", "C", "D"])
@pytest.mark.parametrize("head", ["linear", "none"])
def test_bf16(backend, config, head):
    """As accurate as torch in bfloat16, every layer."""
    model = small(config, width=0.25, head=head)
    x = torch.randn(2, 3, 66, 75)
    with torch.no_grad():
        theirs = copy.deepcopy(model).bfloat16()(x.bfloat16()).float()
    engine = Engine(model, dtype="bf16")
    assert relative_error(engine(x), exactly(model, x)) <= 2 * relative_error(theirs, exactly(model, x))
    if "amx" in backend.name:
        assert set(engine._network._core.algorithms()) == {"tiles"}


def test_exact_holds_from_the_engines_making_on():
    model, x = small(width=0.125), torch.randn(2, 3, 66, 75)
    engine = Engine(model)
    first = engine(x)
    vggfast.set_exact(True)
    try:
        assert torch.equal(engine(x), first)
        direct = Engine(model)
    finally:
        vggfast.set_exact(False)
    assert not torch.equal(direct(x), first)
    assert relative_error(direct(x), exactly(model, x)) <= relative_error(first, exactly(model, x))


@kinds
def test_not_finite(exact, kind):
    """Inf and NaN go where the module takes them, and a ReLU keeps NaN."""
    model = small("A", width=0.125, head="none").features[:6]
    x = torch.randn(3, 3, 24, 24)
    x[0, 0, 3, 4], x[1, 1, 20, 20] = float("nan"), float("inf")
    y, expected = Engine(model, **KINDS[kind][0])(x), exactly(model, x)
    if kind == "bf16":  # by Winograd even so
        assert torch.equal(y.isnan().any(1).any(1).any(1), torch.tensor([True, True, False]))
    else:
        assert torch.equal(y.isnan(), expected.isnan())


# ---- the memory format of images ----------------------------------------------------------------------------------

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: in_format(x, "channels_last"),
    "sliced": lambda x: torch.cat([x, x], 1).repeat(1, 1, 2, 2)[:, :3, : x.shape[2], : x.shape[3]],
    "every other": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "from bytes": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
}


@kinds
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_strides(layout, kind):
    engine, x = Engine(small(width=0.125), **KINDS[kind][0]), torch.randn(3, 3, 45, 62)
    y, before = layout(x), x.clone()
    assert torch.equal(y, x)
    assert torch.equal(engine(y), engine(x))
    assert torch.equal(y, before)


def test_expanded_images():
    engine, x = Engine(small(width=0.125)), torch.randn(1, 1, 40, 1)
    assert torch.equal(engine(x.expand(4, 3, 40, 50)), engine(x.expand(4, 3, 40, 50).contiguous()))


def test_a_lazily_negated_image():
    engine, x = Engine(small(width=0.125)), torch.randn(1, 3, 40, 50, dtype=torch.complex64)
    assert x.conj().imag.is_neg()
    assert torch.equal(engine(x.conj().imag), engine(-x.imag))
