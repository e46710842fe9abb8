"""The networks of the paper: sizes, initialisation, heads, and what they refuse. Small ones, so that it is quick."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import vggfast
from tests.support.comparisons import assert_as_accurate_as_torch, plain_torch, relative_error
from vggfast import VGG
from vggfast.initialisation import INITS, initialise
from vggfast.models import CONFIGURATIONS
from vggfast.nn import Conv1x1, FusedSequential

pytestmark = pytest.mark.usefixtures("one_thread")
NAMED = {"A": "VGG11", "B": "VGG13", "D": "VGG16", "E": "VGG19"}


def small(config="A", **arguments) -> VGG:
    return VGG(config, **{"num_classes": 7, "width": 0.125, "hidden": 24, "pool_size": 2, **arguments})


# ---- table 1 and table 2 of the paper -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "layers", "parameters"),
    [("A", 11, 132_863_336), ("A-LRN", 11, 132_863_336), ("B", 13, 133_047_848), ("C", 16, 133_638_952),
     ("D", 16, 138_357_544), ("E", 19, 143_667_240)],
)  # fmt: skip
@pytest.mark.parametrize("head", ["linear", "conv"])
def test_the_papers_sizes(config, layers, parameters, head):
    with torch.device("meta"):
        model = VGG(config, head=head, init=None)
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules()) == layers


def test_configuration_c_has_three_pointwise_layers():
    assert sum(type(m) is Conv1x1 for m in small("C").features) == 3


def test_a_lrn_normalises_once_after_the_first_relu():
    kinds = [type(m).__name__ for m in small("A-LRN").features]
    assert kinds[:4] == ["Conv3x3", "ReLU", "LocalResponseNorm", "MaxPool2x2"]
    assert kinds.count("LocalResponseNorm") == 1


@pytest.mark.parametrize("config", CONFIGURATIONS)
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (33, 95), (75, 32)], ids=str)
def test_features_are_those_of_plain_layers(config, batch_norm, size):
    model = small(config, batch_norm=batch_norm, head="none").double().eval()
    x = torch.randn(2, 3, *size).double()
    y = model(x)
    assert y.shape == (2, 64, size[0] // 32, size[1] // 32)
    assert relative_error(y, plain_torch(model.features)(x)) < 1e-12


@pytest.mark.parametrize("config", CONFIGURATIONS)
@pytest.mark.parametrize("size", [(64, 64), (45, 107)], ids=str)
def test_features_in_float32(config, algorithm, size):
    model = small(config, head="none").eval()
    plain = plain_torch(model.features)
    x = torch.randn(3, 3, *size)
    with torch.no_grad():
        y, theirs, exact = model(x), plain(x), plain.double()(x.double())
    if algorithm == "direct":
        assert_as_accurate_as_torch(y, theirs, exact)
    else:
        assert relative_error(y, exact) < 1e-5


@pytest.mark.parametrize("size", [(64, 64), (33, 95), (224, 40)], ids=str)
def test_the_linear_head_takes_any_size(size):
    assert small().eval()(torch.randn(3, 3, *size)).shape == (3, 7)


@pytest.mark.parametrize(("config", "name"), NAMED.items())
def test_named_networks(config, name):
    arguments = {"num_classes": 5, "width": 0.125, "hidden": 8}
    named, plain = getattr(vggfast, name)(**arguments, dropout=0.25), VGG(config, **arguments, dropout=0.25)
    assert repr(named.features) == repr(plain.features)
    assert repr(named.classifier) == repr(plain.classifier)
    assert named.arguments == plain.arguments


def test_arguments_build_the_same_network_again():
    model = small("C", batch_norm=True, head="conv", in_channels=2, dropout=0.1)
    again = VGG(**model.arguments)
    again.load_state_dict(model.state_dict())
    assert repr(again) == repr(model)


# ---- section 3.1: initialisation ----------------------------------------------------------------------------------


def weights(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def wanted_std(init, layer, in_head: bool) -> float:
    """A layer of the head is drawn as the FC layer that it is, also where it is written as a convolution."""
    taps = 1 if in_head else layer.weight[0, 0].numel()
    fan_out, fan_in = layer.weight.shape[0] * taps, layer.weight[0].numel()
    if init == "torchvision":
        return 0.01 if in_head else math.sqrt(2 / fan_out)
    return {
        "glorot": math.sqrt(2 / (fan_in + fan_out)), "he": math.sqrt(2 / fan_in), "paper": 0.01, "paper-literal": 0.1,
    }[init]  # fmt: skip


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("head", ["linear", "conv"])
def test_initialisation(init, head):
    model = small(width=0.25, hidden=64, num_classes=50, batch_norm=True, head=head, init=init)
    in_head = set(model.classifier)
    for layer in weights(model):
        expected = wanted_std(init, layer, layer in in_head)
        count = layer.weight.numel()
        std = layer.weight.square().mean().sqrt().item()
        # Six standard errors; the variance of a normal number's square is the largest of the two distributions'.
        assert abs(std / expected - 1) < 6 / math.sqrt(2 * count)
        assert abs(layer.weight.mean().item()) < 6 * std / math.sqrt(count)
        assert not layer.bias.any()
        if init == "glorot":
            assert layer.weight.abs().max() <= math.sqrt(3) * expected
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        assert (norm.weight == 1).all()
        assert not norm.bias.any()


def test_initialise_draws_anew_and_none_leaves_the_constructors():
    torch.manual_seed(3)
    model = small(init=None)
    assert any(layer.bias.any() for layer in weights(model))
    before = copy.deepcopy(model.state_dict())
    initialise(model, "paper")
    assert all(not torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_init_weights_false_is_no_init():
    torch.manual_seed(3)
    ours = vggfast.VGG11(num_classes=4, init_weights=False, width=0.125, hidden=8)
    torch.manual_seed(3)
    assert torch.equal(ours.classifier[6].weight, VGG("A", 4, init=None, width=0.125, hidden=8).classifier[6].weight)


# ---- section 3.2: the dense head ----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["A", "C"])
@pytest.mark.parametrize("pool_size", [1, 2])
def test_the_conv_head_is_the_linear_head_at_its_native_size(config, pool_size):
    linear = small(config, pool_size=pool_size).double().eval()
    x = torch.randn(2, 3, 32 * pool_size, 32 * pool_size + 13).double()
    assert relative_error(linear.to_conv_head()(x), linear(x)) < 1e-12


def test_the_score_map_is_the_linear_head_at_every_place():
    linear = small().double().eval()
    dense = linear.to_conv_head()
    x = torch.randn(2, 3, 130, 97).double()
    scores, features = dense.score_map(x), linear.features(x)
    assert scores.shape == (2, 7, 3, 2)
    for row in range(3):
        for column in range(2):
            window = features[:, :, row : row + 2, column : column + 2]
            assert relative_error(scores[:, :, row, column], linear.classifier(window.flatten(1))) < 1e-12
    assert relative_error(dense(x), scores.mean((2, 3))) < 1e-12


def test_conversion_shares_memory_and_is_lossless():
    linear = small(batch_norm=True).eval()
    linear.classifier[0].weight.requires_grad_(False)
    dense = linear.to_conv_head()
    back = dense.to_linear_head()
    assert type(dense.classifier) is FusedSequential
    for other in (dense, back):
        assert not other.training
        for (name, mine), (other_name, theirs) in zip(
            linear.state_dict().items(), other.state_dict().items(), strict=True
        ):
            assert (name, mine.data_ptr()) == (other_name, theirs.data_ptr())
        assert not other.classifier[0].weight.requires_grad
        assert other.classifier[3].weight.requires_grad
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(back(x), linear(x))
    with torch.no_grad():
        linear.classifier[6].bias += 1
    assert torch.equal(back(x), linear(x))


def test_training_through_the_converted_head():
    linear = small(dropout=0.0).double()
    dense, x = linear.to_conv_head(), torch.randn(2, 3, 64, 64).double()
    for model in (linear, dense):
        model(x).pow(2).sum().backward()
        model.gradients = [p.grad.clone().flatten() for p in model.parameters()]
        model.zero_grad()
    assert max(map(relative_error, dense.gradients, linear.gradients)) < 1e-12


@pytest.mark.parametrize("head", ["linear", "conv"])
def test_dropout_is_random_in_training_alone(head):
    model, x = small(head=head), torch.randn(2, 3, 64, 64)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]


# ---- what is refused ----------------------------------------------------------------------------------------------

BAD = {
    "config": (lambda: small("F"), "config must be one of 'A', 'A-LRN', 'B', 'C', 'D', 'E', got 'F'"),
    "head": (lambda: small(head="mlp"), "head must be one of 'linear', 'conv', 'none', got 'mlp'"),
    "init": (lambda: small(init="zeros"), "init must be one of 'glorot', .*'paper', .*None, got 'zeros'"),
    "num_classes": (lambda: small(num_classes=0), "num_classes must be at least 1, got 0"),
    "in_channels": (lambda: small(in_channels=0), "in_channels must be at least 1, got 0"),
    "hidden": (lambda: small(hidden=-1), "hidden must be at least 1, got -1"),
    "pool_size": (lambda: small(pool_size=0), "pool_size must be at least 1, got 0"),
    "dropout": (lambda: small(dropout=1.0), r"dropout must be a probability in \[0, 1\), got 1.0"),
    **{f"width {value}": (lambda value=value: small(width=value), "width must be greater than 0 and finite, got")
       for value in (0, float("nan"), float("inf"))},
    "initialise": (lambda: initialise(small(), "zeros"), "init must be one of .*, got 'zeros'"),
    "score_map": (lambda: small().score_map(torch.zeros(1, 3, 64, 64)),
                  "head must be 'conv' for a score map, got 'linear'"),
    "small dense input": (lambda: small(head="conv")(torch.zeros(1, 3, 63, 64)),
                          r"x of shape \(1, 3, 63, 64\) is too small: its map must have at least 2 x 2 cells"),
    "small input": (lambda: small()(torch.zeros(1, 3, 31, 64)),
                    "x must have H and W of at least 2 with pool, got shape"),
    "channels": (lambda: small()(torch.zeros(1, 4, 64, 64)),
                 r"must have the same length, got shapes \(1, 4, 64, 64\) and \(8, 3, 3, 3\)"),
    "no head": (lambda: small(head="none").to_conv_head(),
                "head must not be 'none': there are no FC layers to convert"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "text"), BAD.values(), ids=BAD)
def test_error(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize(("arguments", "text"), [
    ({"num_classes": 10.0}, "num_classes must be a whole number, got 10.0"),
    ({"hidden": "24"}, "hidden must be a whole number, got str '24'"),
    ({"pool_size": (2, 2)}, "pool_size must be a whole number, got tuple"),
    ({"width": "0.5"}, "width must be a number, got str '0.5'"),
    ({"dropout": None}, "dropout must be a number, got None"),
    ({"batch_norm": "no"}, "batch_norm must be True or False, got str 'no'"),
])  # fmt: skip
def test_arguments_of_other_kinds_are_named(arguments, text):
    with pytest.raises(TypeError, match=text):
        small(**arguments)


def test_arguments_of_numpys_kinds_are_pythons_own():
    arguments = small(num_classes=np.int64(5), in_channels=np.int32(3), width=np.float32(0.125), dropout=np.float64(0),
                      batch_norm=np.True_, pool_size=np.int8(2)).arguments  # fmt: skip
    assert json.loads(json.dumps(arguments)) == arguments


# ---- heads of networks that were changed ----------------------------------------------------------------------------


def test_a_replaced_last_layer_survives_the_conversion():
    model = small("A", num_classes=10, dropout=0.3)
    model.classifier[6] = nn.Linear(model.classifier[6].in_features, 3)
    model.classifier[2].p = 0.1
    dense = model.to_conv_head()
    assert dense.classifier[6].weight.data_ptr() == model.classifier[6].weight.data_ptr()
    assert dense.classifier[2].p == 0.1
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(dense.eval()(x), model.eval()(x))
    model.classifier[6] = nn.Identity()
    assert not any(p.is_meta for p in model.to_conv_head().parameters())
    model.classifier[6] = nn.Bilinear(2, 2, 2)
    with pytest.raises(TypeError, match=r"classifier\.6 is Bilinear.*: a layer must be one that a VGG has"):
        model.to_conv_head()


def test_the_converted_network_has_a_training_mode_of_its_own():
    model = small("A", batch_norm=True).train()
    model.to_conv_head().eval()
    assert all(module.training for module in model.modules())
    model.features[1].eval()
    assert not model.to_conv_head().features[1].training
