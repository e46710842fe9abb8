"""Against the real torchvision: the same state, tree, signatures, outputs, and behaviour when watched or rewritten."""

import copy
import inspect

import pytest
import torch
from torch import nn

import vggfast
from tests.support.comparisons import relative_error
from vggfast.models import make_features

NAMES = [f"vgg{depth}{suffix}" for depth in (11, 13, 16, 19) for suffix in ("", "_bn")]
NATIVE, ODD = (224, 224), (193, 251)


def pair(torchvision, name, **arguments):
    """(ours, torchvision's) in eval mode; ours holds the same memory."""
    theirs = getattr(torchvision.models, name)(num_classes=10, **arguments).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training, rather than 0 and 1
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    with torch.device("meta"):
        ours = getattr(vggfast, name)(num_classes=10, **arguments).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    return ours, theirs


@pytest.fixture(scope="module", params=["vgg11", "vgg11_bn"])
def vgg11(request, torchvision):
    torch.manual_seed(0)
    return pair(torchvision, request.param)


@pytest.fixture(params=[False, True], ids=["plain", "batch norm"])
def features(request, torchvision):
    """(ours, torchvision's) narrow trunks in float64, where no ReLU falls on different sides of 0."""
    widths = [w if w == "M" else w // 8 for w in torchvision.models.vgg.cfgs["A"]]
    theirs = torchvision.models.vgg.make_layers(widths, batch_norm=request.param).double().eval()
    ours, _ = make_features("A", 3, request.param, 1 / 8)
    ours.double().eval().load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def image(height=64, width=75) -> torch.Tensor:
    return torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)


def assert_like(ours, theirs, x=None):
    """Output, and gradients of the input and of what is not frozen."""
    x = image() if x is None else x

    def all_of(model):
        y = model(x.clone())  # no leaf, because a slice may begin with a ReLU in place
        return [y, *torch.autograd.grad(y.pow(2).sum(), [x, *(p for p in model.parameters() if p.requires_grad)])]

    assert max(map(relative_error, all_of(ours), all_of(theirs))) < 1e-11


# ---- without running anything -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_tree_and_state(torchvision, name):
    with torch.device("meta"):
        ours, theirs = getattr(vggfast, name)(), getattr(torchvision.models, name)()
    for (our_name, mine), (their_name, other) in zip(ours.named_children(), theirs.named_children(), strict=True):
        assert our_name == their_name
        for (path, module), (their_path, their_module) in zip(mine.named_modules(), other.named_modules(), strict=True):
            assert path == their_path
            assert isinstance(module, type(their_module))
            assert module.extra_repr() == their_module.extra_repr()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)


@pytest.mark.parametrize("name", NAMES)
def test_signatures_of_the_functions(torchvision, name):
    ours, theirs = (inspect.signature(getattr(m, name)).parameters.values() for m in (vggfast, torchvision.models))
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]


@pytest.mark.parametrize("name", ["VGG11", "VGG13", "VGG16", "VGG19"])
def test_signature_of_the_constructors(torchvision, name):
    """torchvision's takes the trunk first, which ours brings along, and ends there."""
    theirs = list(inspect.signature(torchvision.models.VGG).parameters.values())[1:]
    ours = list(inspect.signature(getattr(vggfast, name)).parameters.values())[: len(theirs)]
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]


# ---- the same numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [NATIVE, ODD], ids=str)
def test_outputs(vgg11, size):
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert relative_error(vgg11[0](x), vgg11[1](x)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[2:])
def test_outputs_of_every_network(torchvision, name):
    ours, theirs = pair(torchvision, name)
    with torch.no_grad():
        for size in (NATIVE, ODD):
            x = torch.randn(1, 3, *size)
            assert relative_error(ours(x), theirs(x)) < 1e-5


def test_gradients(features):
    assert_like(*features)


def test_training_mode(features):
    ours, theirs = (net.train() for net in features)
    x = image()
    assert relative_error(ours(x), theirs(x)) < 1e-11
    for (name, mine), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        assert relative_error(mine, other) < 1e-11, name


def test_export(features):
    x = image().detach()
    programs = [torch.export.export(net, (x,)) for net in features]
    ours, theirs = (program.module()(x) for program in programs)
    assert relative_error(ours, theirs) < 1e-11
    assert relative_error(ours, features[0](x)) < 1e-13
    assert list(programs[0].state_dict) == list(programs[1].state_dict)


# ---- the same behaviour when looked into or rewritten -------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 3, 8, 15, -1])
def test_slices(features, cut):
    for part in (slice(None, cut), slice(cut, None)):
        ours, theirs = (net[part] for net in features)
        assert_like(ours, theirs, torch.randn(1, self_channels(theirs), 64, 64).double().requires_grad_())


def self_channels(net) -> int:
    """Channels that a part of a trunk takes."""
    first = next((m for m in net if isinstance(m, nn.Conv2d | nn.BatchNorm2d)), None)
    if isinstance(first, nn.Conv2d):
        return first.in_channels
    return first.num_features if first is not None else 64


def watched(net, register):
    seen = []
    for module in net:
        register(module, seen)
    return seen


@pytest.mark.parametrize(
    "register",
    [
        lambda m, seen: m.register_forward_hook(lambda m, args, y: seen.extend([args[0].clone(), y.clone()])),
        lambda m, seen: m.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone())),
        lambda m, seen: m.register_full_backward_hook(lambda m, gx, gy: seen.extend([*gx, *gy])),
    ],
    ids=["forward", "pre", "backward"],
)
def test_hooks_see_the_same_tensors(features, register):
    for net in features:
        for module in net:
            if isinstance(module, nn.ReLU):  # torch refuses backward hooks before a change in place
                module.inplace = False
    ours, theirs = (watched(net, register) for net in features)
    assert_like(*features)
    assert len(ours) == len(theirs) >= len(features[1])
    assert max(map(relative_error, ours, theirs)) < 1e-11


def test_deep_copies_are_their_own(features):
    ours, theirs = copy.deepcopy(features)
    for net in (ours, theirs):
        with torch.no_grad():
            net[0].weight.mul_(2)
    assert_like(ours, theirs)
    assert_like(*features)
    assert relative_error(ours(image()), features[0](image())) > 0.1


@pytest.mark.parametrize("which", [0, 1, 4])
def test_ceil_mode(features, which):
    for net in features:
        [m for m in net if isinstance(m, nn.MaxPool2d)][which].ceil_mode = True
    assert_like(*features, image(97, 75))


@pytest.mark.parametrize("frozen", [slice(0, 1), slice(0, 8), slice(0, None)], ids=str)
def test_frozen_weights(features, frozen):
    for net in features:
        net[frozen].requires_grad_(False)
    assert_like(*features)


def test_the_usual_ways_of_rewriting(features):
    for net in features:
        torch.manual_seed(1)
        net[-1] = nn.Identity()
        net[0] = nn.Conv2d(3, 8, 5, padding=2).double()
        net.append(nn.AdaptiveAvgPool2d(1))
    assert_like(*features)
