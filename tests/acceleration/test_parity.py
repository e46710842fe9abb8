"""An accelerated network computes what it did: outputs, gradients of input and parameters, running statistics."""

import copy

import pytest
import torch
from torch import nn

import vggfast
from tests.acceleration.networks import LARGE, NETWORKS, SIDE

pytestmark = pytest.mark.usefixtures("one_thread")
MODES = {"eval": False, "train": True}
SMALL_CASES = [pytest.param((name, mode), id=f"{name}-{mode}") for name in NETWORKS for mode in MODES]
LARGE_CASES = [
    pytest.param((name, mode), id=f"{name}-{mode}", marks=pytest.mark.slow)
    for name in LARGE
    for mode in MODES
    if (name, mode) != ("SSD300", "train")  # nothing in it knows its mode
]
WINOGRAD = 1e-5  # relative error of a layer that is not direct


def make(torchvision, case) -> nn.Module:
    name, mode = case
    model = (NETWORKS | LARGE)[name](torchvision).train(MODES[mode])
    model.image = (1 if name in SIDE else 2, 3, *(SIDE.get(name, side) for side in (32, 48)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training, rather than 0 and 1
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
        elif isinstance(module, nn.Dropout):  # draws in the order of memory, which is another in NHWC
            module.p = 0.0
    return model


def step(model: nn.Module, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Outputs and running statistics, and gradients, of a forward and backward pass."""
    torch.manual_seed(1)
    x = torch.randn(model.image, dtype=torch.float64).to(dtype).requires_grad_()
    y = model(x)
    y = y["out"] if isinstance(y, dict) else y
    y.pow(2).mean().backward()
    gradients = {"x": x.grad, **{name: parameter.grad for name, parameter in model.named_parameters()}}
    return {"y": y.detach(), **dict(model.named_buffers())}, gradients


def largest_errors(got, want) -> tuple[float, float]:
    """Relative L2 errors of outputs and of gradients. A gradient that nearly cancels, as that of a bias before a batch
    norm, is compared with all together."""
    all_gradients = torch.stack([t.double().norm() for t in want[1].values()]).norm()
    found = []
    for ours, theirs, floor in zip(got, want, (0.0, 1e-3 * all_gradients), strict=True):
        differences = {name: (ours[name].double() - t.double()).norm() for name, t in theirs.items()}
        found.append(max(float(d / max(theirs[name].double().norm(), floor, 1e-30)) for name, d in differences.items()))
    return found[0], found[1]


def float32_errors(torchvision, case) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ours and torch's own, against float64."""
    plain = make(torchvision, case)
    want = step(copy.deepcopy(plain).double(), torch.float64)
    fast = vggfast.accelerate(copy.deepcopy(plain))
    return largest_errors(step(fast, torch.float32), want), largest_errors(step(plain, torch.float32), want)


@pytest.mark.parametrize("case", [*SMALL_CASES, *LARGE_CASES])
def test_float64(torchvision, case):
    plain = make(torchvision, case).double()
    fast = vggfast.accelerate(copy.deepcopy(plain))
    assert max(largest_errors(step(fast, torch.float64), step(plain, torch.float64))) < 1e-10


@pytest.mark.parametrize("case", SMALL_CASES)
def test_float32_of_direct_sums(torchvision, exact, case):
    ours, torchs = float32_errors(torchvision, case)
    assert ours[0] < 2 * torchs[0] + 1e-6
    assert ours[1] < 2 * torchs[1] + 1e-6


@pytest.mark.parametrize("case", [*SMALL_CASES, *LARGE_CASES])
def test_float32(torchvision, case):
    """A value that rounding moves across the corner of a ReLU, or behind another in a pool, changes its gradient as a
    whole: where a share of e of all are, gradients have an error of the root of e."""
    ours, torchs = float32_errors(torchvision, case)
    assert ours[0] < 2 * torchs[0] + WINOGRAD
    assert ours[1] < 2 * torchs[1] + WINOGRAD**0.5
