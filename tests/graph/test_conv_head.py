"""What to_conv_head makes of a network, and what both do afterwards."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from tests.graph.networks import network
from tests.support.comparisons import relative_error

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")]


@pytest.mark.parametrize("change", [
    lambda layer: layer.register_forward_hook(lambda module, args, y: y * 2),
    lambda layer: setattr(layer, "weight", nn.Parameter(torch.zeros_like(layer.weight))),
    lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    parametrizations.weight_norm, nn.utils.weight_norm,
], ids=["hook", "weight", "pruning", "parametrisation", "weight_norm"])  # fmt: skip
@torch.no_grad()
def test_a_change_of_one_is_not_of_the_other(change):
    model, x = network(), torch.rand(1, 3, 64, 64)
    dense = model.to_conv_head()
    for changed, other in ((model, dense), (dense, model)):
        expected = other(x)
        change(changed.features[3])
        assert torch.equal(other(x), expected)


@torch.no_grad()
def test_the_mode_of_compiled_layers_is_its_own():
    model, x = network(batch_norm=True), torch.rand(2, 3, 64, 64)
    expected = model(x)
    model.features[1].compile(backend="eager")
    model.train()
    assert relative_error(model.to_conv_head().eval()(x), expected) < 1e-5


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(64), nn.Dropout(), nn.Sequential(nn.Dropout())])
def test_a_forward_that_follows_another_mode_is_named(layer):
    model = network()
    model.features.append(layer)
    replaced = layer[0] if isinstance(layer, nn.Sequential) else layer
    forward = replaced.forward
    replaced.forward = lambda x: forward(x)
    with pytest.raises(TypeError, match=r"features\.21(\.0)? is \w+, whose forward was replaced"):
        model.to_conv_head()


@torch.no_grad()
def test_a_trunk_of_fewer_pools_takes_smaller_images():
    model, x = network(), torch.rand(1, 3, 32, 32)
    model.features = model.features[:-1]
    dense = model.to_conv_head()
    assert relative_error(dense(x), model(x)) < 1e-5
    with pytest.raises(ValueError, match=r"its map must have at least 2 x 2 cells for the dense head, got 1 x 2"):
        dense(x[:, :, :31])
