"""Engine(dtype="fp8"): which layers take e4m3, their scales, its error, and what is refused. Networks are thin here:
16 channels are enough for e4m3, where it takes 128 before it pays on a GPU."""

import gc
import math
import weakref

import pytest
import torch
from torch import nn

from tests.engine.test_cuda import BOUNDS, exactly
from tests.engine.test_engine import named, small
from tests.support.comparisons import relative_error
from tests.support.hopper import emulated
from vggfast.engine import calibrate, e4m3
from vggfast.engine.plan import E4M3, make_plan
from vggfast.graph.layers import Conv, Lrn, MaxPool, Relu, ScaledConv
from vggfast.models import CONFIGURATIONS
from vggfast.ops._backends import backend_of

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.backends("sim", "cuda")]
# Of one value rounded to e4m3: at most half a step of 2^-3, and in the mean as if all errors up to that were as likely.
ROUNDING = 2**-4 / 3**0.5


@pytest.fixture
def fp8(build, backend, monkeypatch):
    """Builds an engine of "fp8"; the thin networks' layers take e4m3."""
    if backend.name == "cuda" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the GPU is not of compute capability 9.0")
    monkeypatch.setattr(e4m3, "LEAST_CHANNELS", 16)
    return lambda model, calibration, **options: build(model, dtype="fp8", calibration=calibration, **options)


@pytest.fixture
def halo(backend):
    """Convolutions are by a tile that goes through the taps column by column."""
    ops = backend_of(torch.empty(0)).ops
    ops.set_conv_tile("halo-64x112")
    yield
    ops.set_conv_tile("auto")


def network(config="A", **arguments):
    """With weights that carry the images through to the end, rather than biases."""
    model = small(config, **{"width": 0.25, "hidden": 32, "pool_size": 1, **arguments})
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return model


def formats(layers, channels=3):
    """Of each step's output, without taps: "e" for e4m3, "b" for bfloat16. A step reads what the one before wrote."""
    plan = make_plan(layers, (1, channels, 64, 64), (len(layers) - 1,), torch.bfloat16, lambda step: 0)
    return "".join("e" if step.target.dtype == E4M3 else "b" for step in plan.steps)


def bound(convolutions):
    """Of so many that read or write e4m3, whose weight and input are rounded: independent errors, which add up as
    squares do, beside those of bfloat16."""
    return ROUNDING * math.sqrt(2 * convolutions) + BOUNDS["bf16"]


# ---- which layers -------------------------------------------------------------------------------------------------


class Ones:
    """In place of the network of float32: every layer puts out ones."""

    def add(self, layer):
        pass

    def run(self, x, expected):
        return [torch.ones(1)] * len(expected)


def planned(layers):
    """The formats of a network of these layers."""
    calibration = e4m3.E4m3(Ones(), torch.empty(1, 3, 64, 64))
    for layer in layers:
        calibration.add(layer)
    return formats(calibration.quantise(layers, [""] * len(layers)))


def conv(cin, cout, kernel=3):
    return Conv(torch.ones(()).expand(cout, cin, kernel, kernel), None)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("A", "beeeeeeb"),
        ("A-LRN", "bbbeeeeeeb"),
        ("B", "bbeeeeeeeb"),
        ("C", "bbeeeebbeebbeebb"),
        ("D", "bbeeeeeeeeeeb"),
        ("E", "bbeeeeeeeeeeeeeb"),
    ],
)
def test_the_papers_networks(config, expected):
    """From conv2_1's output on, but for a pool after a 1x1 convolution, and for the last output."""
    layers, channels = [], 3
    for item in CONFIGURATIONS[config]:
        if item == "M":
            layers.append(MaxPool(False))
        elif item == "LRN":
            layers.append(Lrn(5, 1e-4, 0.75, 2.0))
        else:
            cout, kernel = (item, 3) if isinstance(item, int) else (channels, 1)
            layers += [conv(channels, cout, kernel), Relu()]
            channels = cout
    assert planned(layers) == expected


ROWS = {
    "channels of 16 each": ([conv(16, 144), conv(144, 152)], "eb"),
    "too few": ([conv(16, 112), conv(112, 128)], "bb"),
    "no whole 16s": ([conv(16, 136), conv(136, 128)], "bb"),
    "no whole 8s after": ([conv(16, 128), conv(128, 12)], "bb"),
    "no whole 8s before": ([conv(12, 128), conv(128, 128)], "bb"),
    "1x1": ([conv(128, 128, 1), Relu(), conv(128, 128, 1), conv(128, 128)], "eeb"),
    "1x1 and pool": ([conv(128, 128), conv(128, 128, 1), Relu(), MaxPool(False), conv(128, 128)], "ebbb"),
    "3x3 and pool": ([conv(128, 128), conv(128, 128), MaxPool(False), conv(128, 128)], "eeb"),
    "pool of ceil_mode": ([conv(128, 128), conv(128, 128), MaxPool(True), conv(128, 128)], "ebbb"),
    "two ReLUs": ([conv(128, 128), Relu(), Relu(), conv(128, 128)], "bbb"),
}


@pytest.mark.parametrize(("layers", "expected"), ROWS.values(), ids=ROWS)
def test_layers_in_a_row(layers, expected):
    first = conv(3, layers[0].weight.shape[1])
    assert planned([first, *layers]) == "b" + expected


def test_networks_as_wide_as_a_gpu_wants(fp8, monkeypatch):
    monkeypatch.setattr(e4m3, "LEAST_CHANNELS", 128)
    model, x = network(width=0.5, head="none"), torch.randn(1, 3, 33, 40)  # 32, 64, 128, 128, 256 ... channels
    engine = fp8(model, x)
    assert formats(engine._network._layers) == "bbeeeeeb"
    assert BOUNDS["bf16"] < relative_error(engine(x), exactly(model, x)) < bound(6)


# ---- what networks compute ----------------------------------------------------------------------------------------

NETWORKS = {"A": (7, ((2, 3, 32, 32), (1, 3, 47, 35))), "C": (12, ((1, 3, 33, 38),)), "D": (12, ((1, 3, 37, 32),)),
            "A-LRN": (7, ((1, 3, 32, 41),))}  # fmt: skip


@pytest.mark.parametrize(("config", "batch_norm"), [*((config, False) for config in NETWORKS), ("A", True)])
def test_networks(fp8, config, batch_norm):
    """Odd sizes, others than that of the images for calibration; logits and the trunk's map."""
    count, sizes = NETWORKS[config]
    model = network(config, batch_norm=batch_norm)
    engine = fp8(model, torch.randn(2, 3, 40, 33))
    for size in sizes:
        x = torch.randn(size)
        y = engine(x)
        assert y.dtype == torch.float32
        error = relative_error(y, exactly(model, x))
        assert BOUNDS["bf16"] / 3 < error < bound(count), size
        assert relative_error(engine.features(x), exactly(model.features, x)) < bound(count)


@pytest.mark.parametrize(("config", "letters"), [("A", "beeeeeeb"), ("C", "beeeeebbeebbeebb")])
@torch.no_grad()
def test_scales(fp8, halo, config, letters):
    """Value for value what e4m3 with these scales gives, but for outputs halfway between two of its values, which the
    roundings of scale and bias may round the other way. The images are twice as bright as those for calibration: many
    values are cut."""
    model = network(config, head="none")
    calibration, x = torch.randn(2, 3, 32, 32), 2 * torch.randn(1, 3, 37, 40)
    engine = fp8(model, calibration)
    assert formats(engine._network._layers) == letters
    y = engine(x)
    assert relative_error(y, emulated(model.features, calibration, x, letters)) < 1e-2
    others = emulated(model.features, 1.02 * calibration, x, letters)  # other scales are told apart
    assert relative_error(y, others) > 3e-2


@pytest.mark.parametrize("config", ["A", "C"])
def test_taps(fp8, build, config):
    """Where every layer is an output, none leaves as e4m3, and all is as in bfloat16."""
    model = network(config, head="none")
    names, x = named(model.features), torch.randn(1, 3, 33, 35)
    engine = fp8(model, x)
    plain = build(model, dtype="bf16").features(x, list(names))
    for name, y in engine.features(x, list(names)).items():
        assert torch.equal(y, plain[name]), name
    for taps in (["relu3_1"], ["conv2_1", "pool3", "relu5_1"], ["pool4", "pool5"]):
        for name, y in engine.features(x, taps).items():
            error = relative_error(y, exactly(model.features[: names[name]], x))
            assert BOUNDS["bf16"] / 10 < error < bound(12), (name, taps)


def test_slices_and_layers_without_biases(fp8):
    layers = [nn.Conv2d(32, 48, 3, padding=1, bias=False), nn.Conv2d(48, 32, 1, bias=False), nn.ReLU(),
              nn.Conv2d(32, 24, 3, padding=1), nn.MaxPool2d(2, ceil_mode=True),
              nn.Conv2d(24, 8, 3, padding=1)]  # fmt: skip
    model, x = nn.Sequential(*layers), torch.randn(2, 32, 9, 7)
    for part, letters in ((model, "eebbb"), (model[:4], "eeb"), (model[:2], "eb"), (model[:1], "b")):
        engine = fp8(part, x)
        assert formats(engine._network._layers, 32) == letters
        assert relative_error(engine(x), exactly(part, x)) < bound(3)


def test_outputs_without_a_relu(fp8):
    """The largest may be below 0."""
    model, x = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))), torch.randn(1, 16, 9, 7)
    nn.init.constant_(model[0].bias, -5)
    engine = fp8(model, x)
    assert formats(engine._network._layers, 16) == "eb"
    assert relative_error(engine(x), exactly(model, x)) < bound(1)


def test_too_few_channels_are_as_in_bfloat16(fp8, build, monkeypatch):
    monkeypatch.setattr(e4m3, "LEAST_CHANNELS", 129)
    model, x = network(), torch.randn(1, 3, 33, 40)
    engine = fp8(model, x)
    assert torch.equal(engine(x), build(model, dtype="bf16")(x))
    assert engine.bytes > 0


# ---- calibration --------------------------------------------------------------------------------------------------


def trunk():
    """Three convolutions, the second and the third of e4m3."""
    return network(head="none").features[3:10]  # after pool1: 16 channels to 32, pool, 64, 64


def scales(engine):
    return [layer.leaving.scale for layer in engine._network._layers if isinstance(layer, ScaledConv) and layer.leaving]


def test_the_largest_of_all_images_counts(fp8, monkeypatch):
    """Wherever it is among them, and however many are taken at a time."""
    model = trunk()
    images = torch.randn(5, 16, 12, 12)
    images[3] *= 3
    alone, together = fp8(model, images[3:4]), fp8(model, images)
    monkeypatch.setattr(calibrate, "IMAGES_AT_A_TIME", 2)
    batches = fp8(model, images)
    assert len(scales(alone)) == 2
    assert scales(together) == pytest.approx(scales(alone), rel=1e-5)
    assert scales(batches) == pytest.approx(scales(alone), rel=1e-5)
    assert batches.error.output == pytest.approx(together.error.output, rel=1e-2)
    assert max(scales(fp8(model, images[:3]))) < 0.6 * max(scales(alone))


def test_error(fp8, monkeypatch):
    """Against float64, over images of several batches; it is of the images that were given, in any format."""
    monkeypatch.setattr(calibrate, "IMAGES_AT_A_TIME", 2)
    model, images = network(num_classes=3), torch.randn(3, 3, 33, 32)
    engine = fp8(model, images)
    expected, got = exactly(model, images), engine(images)
    assert engine.error.output == pytest.approx(relative_error(got, expected), rel=1e-2)
    assert engine.error.top1 == (got.argmax(1) == expected.argmax(1)).double().mean().item()
    assert list(engine.error.layers) == ["pool1", "pool2", "relu3_1", "pool3", "relu4_1", "pool4", "relu5_1", "pool5"]
    last = relative_error(engine.features(images), exactly(model.features, images))
    assert engine.error.layers["pool5"] == pytest.approx(last, rel=1e-2)
    assert engine.error.layers["pool1"] < 2**-8 < ROUNDING / 2 < engine.error.layers["pool2"] < ROUNDING
    again = fp8(model, images.requires_grad_().to(memory_format=torch.channels_last))
    assert again.error == engine.error
    narrow = fp8(model, images.detach().bfloat16())
    assert narrow.error.output < bound(7)


def test_top1_counts_images(fp8):
    """Logits that lie apart agree; those that e4m3 makes equal need not."""
    model, images = network(num_classes=2), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        model.classifier[-1].weight.zero_()
        model.classifier[-1].bias.copy_(torch.tensor([0.0, 1.0]))
    assert fp8(model, images).error.top1 == 1
    with torch.no_grad():  # apart by less than bfloat16 can tell
        model.classifier[-1].bias.copy_(torch.tensor([1.0, 1.0 + 2**-12]))
    assert fp8(model, images).error.top1 == 0


def test_without_a_head_or_e4m3(fp8, build):
    assert build(network(), dtype="bf16").error is None
    assert fp8(trunk(), torch.randn(1, 16, 9, 9)).error.top1 is None


def test_nothing_but_zeros(fp8):
    """A scale of 1 stands for tensors that have no largest value."""
    model = trunk()
    for module in model:
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.bias)
    engine = fp8(model, torch.zeros(1, 16, 9, 9))
    assert engine(torch.zeros(1, 16, 9, 9)).abs().max() == 0
    assert engine.error.output == 0
    for module in model:
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            nn.init.constant_(module.bias, 0.25)
    x = torch.randn(1, 16, 9, 9)
    assert (fp8(model, x)(x) == 0.25).all()


def test_what_is_kept(fp8, build):
    """Weights of both formats, none of float32 but biases, and none of the images."""
    model, x = network(), torch.randn(2, 3, 33, 40)
    images = x.clone()
    engine = fp8(model, images)
    there = weakref.ref(images)
    del images
    gc.collect()
    assert there() is None
    convolutions = [module for module in model.features if isinstance(module, nn.Conv2d)]
    narrow = sum(module.weight.numel() for module in convolutions[2:])
    biases = sum(4 * module.bias.numel() for module in convolutions[1:])
    scaled = sum(4 * module.bias.numel() for module in convolutions[1:-1])
    assert engine.bytes == build(model, dtype="bf16").bytes + narrow + biases + scaled
    y = engine(x)
    assert torch.equal(fp8(model, x, graph=False)(x), y)
    with torch.no_grad():
        for t in model.state_dict().values():
            t.fill_(7)
        x.add_(1)
    assert relative_error(engine(x - 1), y) < 1e-2
    assert engine(x[:0]).shape == (0, 10)


def test_inference_mode(fp8):
    model, x = trunk(), torch.randn(1, 16, 9, 9)
    expected = fp8(model, x)(x)
    with torch.inference_mode():
        engine = fp8(model, x.clone())
    assert torch.equal(engine(x), expected)


# ---- what is refused ----------------------------------------------------------------------------------------------


def changed(i, value):
    images = torch.zeros(2, 3, 32, 32)
    images[1, 0, 0, i] = value
    return images


BAD = {
    "none": (None, ValueError, r"calibration must be images \(N, C, H, W\) with dtype 'fp8', got None"),
    "rank": (torch.zeros(3, 32, 32), ValueError,
             r"calibration must have 4 axes \(N, C, H, W\), got shape \(3, 32, 32\)"),
    "float64": (torch.zeros(1, 3, 32, 32).double(), TypeError,
                r"calibration must be torch\.float32 or torch\.bfloat16 on .*, got torch\.float64 on "),
    "meta": (torch.zeros(1, 3, 32, 32, device="meta"), TypeError,
             r"calibration must be .*, got torch\.float32 on meta"),
    "no images": (torch.zeros(0, 3, 32, 32), ValueError,
                  r"calibration must have no empty axis, got shape \(0, 3, 32, 32\)"),
    "channels": (torch.zeros(1, 2, 32, 32), ValueError, "calibration does not fit: x must have 3 channels, got 2"),
    "small": (torch.zeros(1, 3, 32, 31), ValueError,
              "calibration does not fit: x is too small: a max-pool needs at least 2 x 2 pixels, got 2 x 1"),
    "nan": (changed(1, math.nan), ValueError, "calibration must make pool1 put out finite values, got nan"),
    "inf": (changed(31, math.inf), ValueError, "calibration must make pool1 put out finite values, got (inf|nan)"),
}  # fmt: skip


@pytest.mark.parametrize(("images", "error", "text"), BAD.values(), ids=BAD)
def test_images_that_do_not_fit(fp8, backend, images, error, text):
    if images is not None and images.device.type != "meta":
        images = images.to(backend.device)
    with pytest.raises(error, match=text) as caught:
        fp8(network(), images)
    assert "\n" not in str(caught.value)


def test_layers_that_put_out_what_is_not_finite(fp8):
    model = network()
    with torch.no_grad():
        model.features[8].bias[3] = math.inf
    with pytest.raises(ValueError, match="calibration must make pool3 put out finite values, got inf"):
        fp8(model, torch.randn(1, 3, 32, 32))
    model = network()
    with torch.no_grad():
        model.classifier[0].bias[3] = math.nan
    with pytest.raises(ValueError, match="calibration must make the head put out finite values, got nan"):
        fp8(model, torch.randn(1, 3, 32, 32))
