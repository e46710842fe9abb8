"""Engine(dtype="int8") on the CPU: its integers are those of a plain twin, on every instruction set, for any number of
threads, whatever else is asked for."""

import gc

import pytest
import torch
from torch import nn

from tests.engine.test_cuda import exactly
from tests.engine.test_quantise import calibrated, layers_of, network
from tests.support.comparisons import relative_error
from tests.support.quantised import outputs
from vggfast import Engine, _native
from vggfast.engine.cpu import CpuNetwork
from vggfast.engine.options import Options
from vggfast.graph.layers import Quantised

pytestmark = pytest.mark.usefixtures("one_thread")


def chain(*layers):
    """Behind a ReLU on the images, so that every convolution has 8 bits."""
    model = nn.Sequential(nn.ReLU(), *layers)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1)
    return model


def conv(cin, cout, kernel=3):
    return nn.Conv2d(cin, cout, kernel, padding=kernel // 2)


def relu(*layers):
    return [each for layer in layers for each in (layer, nn.ReLU())]


def pool(ceil_mode=False):
    return nn.MaxPool2d(2, ceil_mode=ceil_mode)


CHAINS = {
    "odd channels": lambda: chain(*relu(conv(3, 5), conv(5, 130), conv(130, 7), conv(7, 1))),
    "by Winograd": lambda: chain(*relu(conv(3, 64), conv(64, 96)), pool(), *relu(conv(96, 129))),
    "1x1": lambda: chain(*relu(conv(4, 33, 1), conv(33, 64)), pool(), *relu(conv(64, 9, 1))),
    "pools": lambda: chain(*relu(conv(3, 16)), pool(), *relu(conv(16, 40)), pool(True), *relu(conv(40, 8)), pool()),
    "no ReLU between": lambda: chain(*relu(conv(3, 16)), pool(), conv(16, 8), conv(8, 12), *relu(conv(12, 4))),
    "no bias": lambda: chain(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 1, bias=False)),
}  # fmt: skip
TILES = ("amx", "amx-emulated")
SIZES = [(2, 33, 41), (1, 8, 8), (0, 9, 9), (3, 17, 60)]


def calibration(channels=3):
    return torch.randn(3, channels, 24, 31)


def engine_of(model, images, **options):
    """With the scales that `calibrated` finds, by the same algorithms for float32."""
    return Engine(model, dtype="int8", calibration=images, size=32, **options)


@pytest.fixture(params=["portable", "avx2", "avx512", "avx512_vnni", *TILES])
def isa(request):
    """An instruction set with kernels of 8 bits of its own, in use until the test ends."""
    if request.param not in _native.cpu_isas():
        pytest.skip(f"this machine has no {request.param}")
    before = _native.cpu_isa()
    _native.set_cpu_isa(request.param)
    yield
    _native.set_cpu_isa(before)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("name", CHAINS)
def test_the_same_integers_as_a_plain_twin(name):
    """Every bit of every tap, but for what layers of float32 put out."""
    model = CHAINS[name]()
    images = calibration(model[1].in_channels)
    layers = calibrated(layers_of(model), images)[1]
    exact = all(isinstance(x, Quantised) for x in layers if hasattr(x, "weight"))
    engine = engine_of(model, images)
    if name == "by Winograd":
        other = ["int8 winograd4"] * 2 if _native.cpu_isa() not in TILES else ["int8 tiles"] * 2
        assert engine._network._core.algorithms()[1:] == other
    for n, h, w in SIZES:
        x = torch.randn(n, images.shape[1], h, w)
        found = engine.features(x, engine.taps)
        for y, expected in zip(found.values(), outputs(layers, x), strict=True):
            assert torch.equal(y, expected) if exact else n == 0 or relative_error(y, expected) < 1e-6
        assert torch.equal(engine(x), y)


NETWORKS = [("A", {}), ("A", {"batch_norm": True}), ("C", {}), ("D", {"head": "conv"}), ("E", {"pool_size": 3}),
            ("D", {"head": "none", "width": 0.1})]  # fmt: skip


@pytest.mark.parametrize(("config", "arguments"), NETWORKS, ids=str)
@pytest.mark.parametrize("size", [(2, 3, 99, 101), (1, 3, 130, 96)], ids=str)
def test_networks(config, arguments, size):
    """Behind the first layer, which is of float32, every bit of the logits is the twin's."""
    model, images = network(config, **arguments), torch.randn(2, 3, 96, 99)
    layers = calibrated(layers_of(model), images)[1]
    engine, x = engine_of(model, images), torch.randn(size)
    assert [isinstance(layer, Quantised) for layer in layers if hasattr(layer, "weight")].count(False) == 1
    first = engine.features(x, ["relu1_1"])["relu1_1"]
    *_, expected = [first, *outputs(layers[2:], first)]
    if arguments.get("pool_size") == 3 or arguments.get("head") == "conv":  # averages are summed in another order
        assert relative_error(engine(x), expected) < 1e-2
    else:
        assert torch.equal(engine(x), expected)
    assert 1e-4 < relative_error(engine(x), exactly(model, x)) < 0.1


def test_lrn_stays_float32():
    model, images = network("A-LRN"), calibration()
    engine, x = engine_of(model, images.repeat(1, 1, 2, 2)), torch.randn(2, 3, 40, 33)
    assert 1e-4 < relative_error(engine(x), exactly(model, x)) < 0.1


@pytest.mark.usefixtures("isa")
def test_threads_and_taps_change_no_bit():
    model, images = network("D"), torch.randn(2, 3, 40, 48)
    engines = [engine_of(model, images, threads=threads) for threads in (1, 2, 3)]
    x = torch.randn(3, 3, 37, 45)
    expected = engines[0](x)
    everything = engines[0].features(x, engines[0].taps)
    for engine in engines:
        assert torch.equal(engine(x), expected)
        assert torch.equal(engine(x[1:2]), expected[1:2])
        for taps in (["relu3_1"], ["conv2_2", "pool2", "relu5_3"], ["conv4_1", "relu4_1"]):
            assert all(torch.equal(y, everything[tap]) for tap, y in engine.features(x, taps).items())
        assert torch.equal(engine(x), expected)


def test_instruction_sets_agree():
    model, x = CHAINS["pools"](), torch.randn(2, 3, 45, 38)
    layers = calibrated(layers_of(model), calibration())[1]
    before, found = _native.cpu_isa(), []
    try:
        for isa in _native.cpu_isas():
            _native.set_cpu_isa(isa)
            made = CpuNetwork(x.device, Options("fp32", "fp32", None, 1, 32, True, None))
            for layer in layers:
                made.add(layer)
            found += made.run(x, (len(layers) - 1,))
    finally:
        _native.set_cpu_isa(before)
    assert len(found) > 1
    assert all(torch.equal(y, found[0]) for y in found)


def test_the_error_is_what_it_says():
    model, images = network("A"), torch.randn(5, 3, 32, 40)
    engine = engine_of(model, images)
    expected = exactly(model, images)
    assert engine.error.output == pytest.approx(relative_error(engine(images), expected), rel=1e-3)
    assert engine.error.top1 == (engine(images).argmax(1) == expected.argmax(1)).double().mean().item()
    assert list(engine.error.layers)[:2] == ["pool1", "pool2"]
    tap = engine.features(images, ["pool2"])["pool2"]
    assert engine.error.layers["pool2"] == pytest.approx(
        relative_error(tap, exactly(model.features[:6], images)), rel=1e-3
    )


def test_memory():
    """Weights of 8 bits, and activations of 8 bits between them, of layers that fill the blocks of 64 channels that
    kernels on tiles read."""
    model = network("D", width=1, hidden=512, pool_size=7)
    engine = Engine(model, dtype="int8", calibration=torch.randn(1, 3, 64, 64))
    plain = Engine(model)
    for images in (1, 8, 64):
        assert engine.workspace(images, 224, 224) < 0.45 * plain.workspace(images, 224, 224)
    engine(torch.randn(1, 3, 224, 224))
    plain(torch.randn(1, 3, 224, 224))
    assert engine.bytes < 0.5 * plain.bytes


def test_calibration_gives_its_memory_back():
    core, model = _native.load(), network("A")
    gc.collect()
    core.release_unused()
    before = core.held_bytes()
    engine_of(model, torch.randn(8, 3, 64, 64))
    assert core.held_bytes() <= before


BAD = {
    "no calibration": ({"calibration": None}, "calibration must be images .* with dtype 'int8', got None"),
    "empty": ({"calibration": torch.zeros(0, 3, 32, 32)}, "calibration must have no empty axis"),
    "weights": ({"weights": "int8"}, "weights must be one of 'fp32', 'bf16' on cpu, got 'int8'"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "text"), BAD.values(), ids=BAD)
def test_options_that_do_not_fit(options, text):
    with pytest.raises(ValueError, match=text):
        Engine(network(), **{"dtype": "int8", "calibration": torch.randn(1, 3, 32, 32), **options})


def core():
    """Of float32, for layers that are added by hand."""
    return _native.load().Engine(bf16=False, bf16_weights=False, threads=1, batch=1, size=8)


LAYER = {"weight": torch.ones(2, 4, 3, 3, dtype=torch.int8), "bias": None, "unit": torch.ones(2), "source": 1.0}
BAD_LAYERS = {
    "dtype": ({"weight": torch.ones(2, 4, 3, 3)}, "weight must be int8 of 4 axes on cpu, got float32 of shape"),
    "kernel": ({"weight": torch.ones(2, 4, 2, 2, dtype=torch.int8)}, r"weight must have shape \(Cout, Cin, 3, 3\) or"),
    "sums": ({"weight": torch.ones(2, 7311, 3, 3, dtype=torch.int8)},
             "weight must have at most 65793 values for each output, whose sum fits int32, got 65799"),
    "bias": ({"bias": torch.ones(3)}, r"bias must have shape \(2\), got \(3\)"),
    "unit": ({"unit": torch.ones(3)}, r"unit must have shape \(2\), got \(3\)"),
    "no unit": ({"unit": torch.tensor([1.0, 0.0])}, "unit must be positive and finite, got 0"),
    "nan": ({"unit": torch.tensor([1.0, torch.nan])}, "unit must be positive and finite, got nan"),
    "source": ({"source": -1.0}, "source must be positive and finite, got -1"),
    "too small a source": ({"source": 1e-45}, "source must be positive and finite, got 1.4"),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "text"), BAD_LAYERS.values(), ids=BAD_LAYERS)
def test_layers_that_do_not_fit(changed, text):
    given = {**LAYER, **changed}
    tensors = [None if given[name] is None else _native.view(given[name], name) for name in ("weight", "bias", "unit")]
    with pytest.raises(ValueError, match=text):
        core().add_quantised_conv(*tensors, given["source"])
