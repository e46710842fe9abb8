"""Maps by name, differentiable: what the layers give one by one."""

import pytest
import torch
from torch import nn

from vggfast import VGG, Engine
from vggfast.graph import trunk_names, whole


def _one_by_one(model, x):
    names = {node.path: name for name, node in trunk_names(whole(model, head=False).trunk)}
    maps = {}
    for name, layer in model.features.named_children():
        x = layer(x.clone())  # as ReLUs work in place
        maps[names[f"features.{name}"]] = x
    return maps


def _gradient(maps, x):
    return torch.autograd.grad(sum(each.square().sum() for each in maps.values()), x)[0]


@pytest.mark.parametrize("config", ["A", "A-LRN", "C"])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_all_maps_and_their_gradients(config, batch_norm, training):
    torch.manual_seed(0)
    model = VGG(config, 5, hidden=8, width=0.1, batch_norm=batch_norm).double().train(training)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    expected = _one_by_one(model, x)
    gradient = _gradient(expected, x)
    found = model.features_at(x, list(expected)[::-1])
    assert list(found) == list(expected)[::-1]
    for name, maps in expected.items():
        torch.testing.assert_close(found[name], maps)
    torch.testing.assert_close(_gradient(found, x), gradient)


def test_a_few_are_those_of_the_engine_and_no_layer_behind_them_runs():
    model = VGG("D", 5, hidden=8, width=0.1).eval()
    x = torch.randn(1, 3, 16, 20).contiguous(memory_format=torch.channels_last)  # too small for pool5
    found = model.features_at(x, ["relu3_3", "pool1", "relu3_3"])
    assert all(maps.is_contiguous(memory_format=torch.channels_last) for maps in found.values())
    engine = Engine(model.features[:17]).features(x, ["relu3_3", "pool1"])
    for name, maps in engine.items():
        torch.testing.assert_close(found[name], maps)


def test_what_is_refused():
    model = VGG("A", 5, hidden=8, width=0.1)
    x = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"taps must be among conv1_1, relu1_1, pool1, .*, pool5, got 'relu6_1'"):
        model.features_at(x, ["relu6_1"])
    with pytest.raises(ValueError, match="taps must have at least one name, got none"):
        model.features_at(x, [])
    with pytest.raises(TypeError, match="taps"):
        model.features_at(x, "relu1_1")
    model.features = nn.Sequential(model.features[:3], *model.features[3:])
    with pytest.raises(TypeError, match="features must have its layers side by side, got relu1_1 within another"):
        model.features_at(x, ["relu1_1"])
