"""How far what a network computes is from what the same network computes otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.acceleration.networks import LARGE, NETWORKS, PACKAGED, SIDE

MODES = ("eval", "train")


def make(torchvision, case: tuple[str, str]) -> nn.Module:
    """A network of networks.py, "eval" or "train", with the shape of its images as `image`."""
    name, mode = case
    model = (NETWORKS | LARGE | PACKAGED)[name](torchvision).train(mode == "train")
    model.image = (1 if name in SIDE else 2, 3, *(SIDE.get(name, side) for side in (32, 48)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training, rather than 0 and 1
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
        elif isinstance(module, nn.Dropout):  # draws in the order of memory, which is another in NHWC
            module.p = 0.0
    return model


def step(
    model: nn.Module, dtype: torch.dtype, call: Callable[..., Any] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and running statistics, and gradients, of a forward and backward pass; `call` is the model compiled."""
    torch.manual_seed(1)
    x = torch.randn(model.image, dtype=torch.float64).to(dtype).requires_grad_()
    y = (model if call is None else call)(x)  # a compiled model may have no length, and so no truth
    y = y["out"] if isinstance(y, dict) else y
    y.pow(2).mean().backward()
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    gradients = {"x": x.grad, **{name: parameter.grad for name, parameter in trained.items()}}
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
