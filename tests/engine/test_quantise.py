"""Int8 calibration: which layers get 8 bits, their scales and integers, and what they cost. What an engine makes of
them is in test_int8.py."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.engine.test_cuda import exactly
from tests.engine.test_engine import small
from tests.support.comparisons import relative_error
from tests.support.quantised import integers, outputs
from vggfast import graph
from vggfast.engine import calibrate, int8
from vggfast.engine.cpu import CpuNetwork
from vggfast.engine.options import Options
from vggfast.graph.layers import (
    Conv,
    Flatten,
    Linear,
    Lrn,
    MaxPool,
    Quantised,
    QuantisedConv,
    QuantisedLinear,
    Relu,
    RowMean,
    Windows,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def network(config="A", **arguments):
    """With weights that carry the images through to the end, rather than biases."""
    model = small(config, **{"width": 0.25, "hidden": 32, "pool_size": 1, **arguments})
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            nn.init.normal_(module.bias, std=0.1)
    return model


def calibrated(layers, images):
    """(the calibration, the layers with 8 bits); the layers' numbers are their names."""
    exact = CpuNetwork(images.device, Options("fp32", "fp32", None, 1, 32, True, None))
    calibration = int8.Int8(exact, images)
    for layer in layers:
        calibration.add(layer)
    return calibration, calibration.quantise([str(i) for i in range(len(layers))])


def layers_of(model):
    read = graph.whole(model)
    return [layer for layer, _ in read.trunk_layers()] + list(read.head.layers() if read.head else ())


def conv(cin, cout, kernel=3):
    return Conv(torch.randn(cout, cin, kernel, kernel), torch.randn(cout))


def linear(inputs, count):
    return Linear(torch.randn(count, inputs), torch.randn(count))


# ---- which layers -------------------------------------------------------------------------------------------------

POOL = MaxPool(False)
ROWS = {
    "images": ([conv(3, 4), Relu(), conv(4, 5)], "f-q"),
    "no ReLU": ([conv(3, 4), conv(4, 5), Relu(), POOL, conv(5, 4, 1)], "ff--q"),
    "one ReLU serves one": ([conv(3, 4), Relu(), conv(4, 5), conv(5, 4)], "f-qf"),
    "LRN": ([conv(3, 4), Relu(), Lrn(5, 1e-4, 0.75, 2.0), MaxPool(True), conv(4, 5)], "f---q"),
    "head": ([conv(3, 4), Relu(), Flatten(2), linear(16, 8), Relu(), linear(8, 3)], "f--q-q"),
    "dense head": ([conv(3, 4), Relu(), Windows(2), linear(16, 8), Relu(), linear(8, 3), RowMean()], "f--q-q-"),
    "a ReLU on images": ([Relu(), conv(3, 4)], "-q"),
    "no layer with weights": ([Relu(), POOL], "--"),
}  # fmt: skip


def kinds(layers):
    return "".join("q" if isinstance(x, Quantised) else "f" if isinstance(x, Conv | Linear) else "-" for x in layers)


@pytest.mark.parametrize(("layers", "expected"), ROWS.values(), ids=ROWS)
def test_which_layers(layers, expected):
    assert kinds(calibrated(layers, torch.randn(2, 3, 8, 9))[1]) == expected


@pytest.mark.parametrize(("inputs", "expected"), [(65794, "--f"), (65793, "--q")])
def test_sums_fit_in_int32(inputs, expected):
    """Of 65,793 products, each at most 255 * 128."""
    layers = [Flatten(1), Relu(), linear(inputs, 1)]
    assert kinds(calibrated(layers, torch.randn(1, inputs, 1, 1))[1]) == expected
    assert int8.MOST_PRODUCTS * 255 * 128 < 2**31 <= (int8.MOST_PRODUCTS + 1) * 255 * 128


@pytest.mark.parametrize(("inputs", "expected"), [(4, "--f"), (256, "--q")])
def test_the_last_fc_layer_stays_where_8_bits_cost_too_much(inputs, expected, monkeypatch):
    """Most of these outputs is lost between two large inputs; those of many are not."""
    fc = linear(inputs, 5)
    x = torch.rand(8, inputs, 1, 1)
    if inputs == 4:
        fc.weight[:, :2] = torch.tensor([100.0, -100.0])
        x[:, :2] = 1
    layers = [Relu(), Flatten(1), fc]
    assert kinds(calibrated(layers, x)[1]) == expected
    monkeypatch.setattr(int8, "MOST_ERROR", -1.0)
    assert kinds(calibrated([*layers, Relu(), linear(5, 5)], x)[1]) == "--q-f"  # of others nothing is asked


# ---- scales and integers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [conv(6, 70), conv(6, 70, 1), linear(6, 70)], ids=["3x3", "1x1", "linear"])
def test_weights(layer):
    """Each output channel's largest is 127; the others are nearest."""
    layer.weight[2] = 0
    layer.weight[3] *= 1e-3
    made = int8.quantised(layer, 0.5, torch.zeros(6).double())
    assert isinstance(made, QuantisedConv if layer.weight.dim() == 4 else QuantisedLinear)
    assert made.weight.dtype == torch.int8
    assert made.weight.shape == layer.weight.shape
    assert made.weight.is_contiguous()
    assert made.weight.flatten(1).abs().amax(1).tolist() == [127, 127, 0, *[127] * 67]
    largest = layer.weight.flatten(1).abs().amax(1)
    expected = torch.where(largest == 0, 1, largest / 127) * 0.5
    torch.testing.assert_close(made.unit, expected, rtol=1e-6, atol=0)
    back = made.weight * (made.unit / made.source).view(-1, *[1] * (layer.weight.dim() - 1))
    assert ((back - layer.weight).abs().flatten(1).amax(1) <= largest / 127 * 0.5001).all()
    assert torch.equal(made.bias, layer.bias)
    assert made.bias.data_ptr() != layer.bias.data_ptr()
    assert not int8.quantised(replace(layer, bias=None), 0.5, torch.zeros(6).double()).bias.any()
    layer.weight.mul_(1e-42)
    assert (int8.quantised(layer, 0.5, torch.zeros(6).double()).unit > 0).all()


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_mean_output_stays(kernel):
    """Whatever rounding does to the weights; near the edges, where less is summed, only about."""
    layers = [Relu(), conv(6, 8, kernel)]
    x = torch.rand(3, 6, 20, 20) * torch.arange(1, 7)[:, None, None]
    made = calibrated(layers, x)[1]
    q = made[1].weight * (made[1].unit / made[1].source)[:, None, None, None]
    exact = F.conv2d(x, layers[1].weight, layers[1].bias, padding="same").mean((0, 2, 3))
    rounded = F.conv2d(x, q, padding="same").mean((0, 2, 3))
    off = (rounded + layers[1].bias - exact).abs()
    assert ((rounded + made[1].bias - exact).abs() < off * (1e-3 if kernel == 1 else 0.2) + 1e-6).all()


def error_of(values, scale):
    return float((integers(values, scale) * scale - values).square().mean())


@pytest.mark.parametrize("power", [1, 4], ids=["even", "few large ones"])
def test_scales_have_the_least_error(power):
    """Of values as they are, not of a histogram; large ones are cut off where they are few."""
    values = torch.rand(1 << 16).double() ** power * 3 if power == 1 else torch.randn(1 << 16).double().abs() ** power
    largest = float(values.max())
    scale = int8.scale_of(torch.histc(values.float(), int8.BINS, 0, largest).double(), largest)
    least = min(error_of(values, largest * k / 2000 / 255) for k in range(400, 2001))
    assert error_of(values, scale) < 1.02 * least
    assert (scale == pytest.approx(largest / 255)) == (power == 1)


def test_scales_of_nothing_but_zeros():
    assert int8.scale_of(torch.zeros(int8.BINS), 0.0) == 1.0


def test_scales_are_of_all_images(monkeypatch):
    """Wherever they are, and however many are taken at a time."""
    layers = layers_of(network(head="none"))
    images = torch.randn(5, 3, 32, 40)
    images[3] *= 3
    whole = [x.source for x in calibrated(layers, images)[1] if isinstance(x, Quantised)]
    monkeypatch.setattr(calibrate, "IMAGES_AT_A_TIME", 2)
    parts = [x.source for x in calibrated(layers, images)[1] if isinstance(x, Quantised)]
    dark = [x.source for x in calibrated(layers, images[:3])[1] if isinstance(x, Quantised)]
    assert len(whole) == 7
    assert parts == pytest.approx(whole, rel=1e-5)
    assert all(a < 0.8 * b for a, b in zip(dark, whole, strict=True))


def test_a_relu_takes_what_is_below_zero():
    """No scale is wasted on what a ReLU cuts off."""
    layers = [Conv(torch.tensor([[[[1.0]]], [[[-9.0]]]]), None), Relu(), conv(2, 2)]
    made = calibrated(layers, torch.rand(1, 1, 8, 8))[1]
    assert made[2].source <= 1 / 255


# ---- what they cost -----------------------------------------------------------------------------------------------

NETWORKS = [("A", {}), ("A", {"batch_norm": True}), ("A-LRN", {}), ("C", {}), ("D", {"head": "conv"})]


@pytest.mark.parametrize(("config", "arguments"), NETWORKS, ids=str)
def test_networks(config, arguments):
    model, x = network(config, **arguments), torch.randn(4, 3, 40, 33)
    made = calibrated(layers_of(model), x)[1]
    assert kinds(made).count("f") == 1
    *_, y = outputs(made, x)
    assert 1e-4 < relative_error(y, exactly(model, x)) < 0.1


def test_deviation():
    """Of the outputs that it is shown from those of float32, run by run."""
    model, images = network(num_classes=3), torch.randn(3, 3, 32, 40)
    layers = layers_of(model)
    calibration, made = calibrated(layers, images)
    names = [str(i) for i in range(len(layers) - 6)]  # the head has 6

    def of_runs(x):
        each = list(outputs(made, x))
        return [each[end] for end in calibration.ends]

    found = calibration.deviation(of_runs, names)
    *_, y = outputs(made, images)
    expected = exactly(model, images)
    assert found.output == pytest.approx(relative_error(y, expected), rel=1e-3)
    assert found.top1 == (y.argmax(1) == expected.argmax(1)).double().mean().item()
    assert all(a < b for a, b in pairwise(list(found.layers.values())[:3]))
    assert list(found.layers)[-1] == names[-1]


# ---- what is refused ----------------------------------------------------------------------------------------------


def changed(value):
    images = torch.zeros(2, 3, 32, 32)
    images[1, 0, 0, 1] = value
    return images


BAD = {
    "no images": (torch.zeros(0, 3, 32, 32), r"calibration must have no empty axis, got shape \(0, 3, 32, 32\)"),
    "channels": (torch.zeros(1, 2, 32, 32), "calibration does not fit: x must have 3 channels, got 2"),
    "small": (torch.zeros(1, 3, 32, 1),
              "calibration does not fit: x is too small: a max-pool needs at least 2 x 2 pixels, got 32 x 1"),
    "nan": (changed(math.nan), "calibration must make 2 put out finite values, got nan"),
    "inf": (changed(math.inf), "calibration must make 2 put out finite values, got (inf|nan)"),
}  # fmt: skip


@pytest.mark.parametrize(("images", "text"), BAD.values(), ids=BAD)
def test_images_that_do_not_fit(images, text):
    with pytest.raises(ValueError, match=text) as caught:
        calibrated([conv(3, 4), Relu(), POOL, conv(4, 4)], images)
    assert "\n" not in str(caught.value)
