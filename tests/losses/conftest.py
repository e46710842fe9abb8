"""Small networks of known preprocessing, and what a loss on their maps is in plain torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vggfast
from vggfast.graph import trunk_names, whole

CHANNELS = (64, 128, 256, 512, 512)


def network(preprocessing=None, config="D", **arguments):
    """VGG-16's convolutions, an eighth as wide, whose biases are not zero."""
    model = vggfast.VGG(config, head="none", init="he", **{"width": 1 / 8, **arguments})
    for name, tensor in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(tensor, 0, 0.1)
    model.preprocessing = preprocessing or vggfast.Preprocessing.torchvision()
    return model


def plain_maps(model, x, layers):
    """Those of plain torch, in the dtype of x, which is what the network takes."""
    found = {}
    for name, node in trunk_names(whole(model, head=False).trunk):
        module = node.module
        if isinstance(module, nn.Conv2d):
            x = F.conv2d(x, module.weight.detach().to(x), module.bias.detach().to(x), padding=1)
        elif isinstance(module, nn.BatchNorm2d):
            mean, var, weight, bias = (
                t.detach().to(x) for t in (module.running_mean, module.running_var, module.weight, module.bias)
            )
            x = F.batch_norm(x, mean, var, weight, bias, eps=module.eps)
        else:
            x = F.relu(x) if isinstance(module, nn.ReLU) else F.max_pool2d(x, 2)
        found[name] = x
        if found.keys() >= set(layers):
            break
    return {layer: found[layer] for layer in layers}


def scaled(x, preprocessing=None):
    """RGB in [0, 1], as the network takes it."""
    p = preprocessing or vggfast.Preprocessing.torchvision()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1).float().to(x) for v in (p.rgb_mean, p.rgb_std))
    x = (x * 255 - mean) / std
    return x if p.order == "RGB" else x.flip(1)


def value_and_gradient(loss, x, *rest):
    x = x.detach().clone().requires_grad_()
    value = loss(x, *rest).sum()
    value.backward()
    return value.detach(), x.grad


def assert_near(found, expected, relative):
    """Relative L2 distance."""
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.double() - theirs.double()).norm() <= relative * theirs.double().norm()


@pytest.fixture
def model():
    return network()


@pytest.fixture
def images():
    """Two pairs of images in [0, 1]."""
    return torch.rand(2, 3, 32, 40), torch.rand(2, 3, 32, 40)


@pytest.fixture(scope="session")
def lpips_package(torchvision):
    return pytest.importorskip("lpips", reason="the package lpips is not installed")


@pytest.fixture
def linear(tmp_path):
    """A file of linear layers like that of `vggfast weights get lpips-vgg`."""
    path = tmp_path / "lins.pth"
    torch.save({f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(CHANNELS)}, path)
    return path
