"""Steps with a gradient on CUDA: of training, and of frozen features to the images (a perceptual loss).

The spec's part says which: the whole network is trained, the features are frozen. No autocast: the model is of the
spec's dtype. The check takes the loss of the first images alone, on kernels and graphs of the full batch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peers import engine_torch
from peers.face import Runner
from peers.network import Spec, images, labels, made
from peers.training import DROPOUT, RATE
from torch import Tensor, nn

from gpu import choice
from gpu.engines import clock, network, placed

CHECKED_IMAGES = 2


def _convolutions(model: nn.Module) -> list[nn.Parameter]:
    """Weights and biases of the convolutions: what our kernels have gradients of."""
    return [p for module in model.modules() if isinstance(module, nn.Conv2d) for p in (module.weight, module.bias)]


def _array(tensors: list[Tensor]) -> np.ndarray:
    return np.concatenate([t.detach().double().cpu().contiguous().reshape(-1).numpy() for t in tensors])


def _training_gradient(model: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor, expected: Tensor) -> np.ndarray:
    """Of the loss over the first images with respect to the convolutions, dropout off."""
    model.zero_grad()
    model.eval()
    F.cross_entropy(call(x)[:CHECKED_IMAGES], expected[:CHECKED_IMAGES]).backward()
    found = _array([p.grad for p in _convolutions(model) if p.grad is not None])
    model.zero_grad()
    return found


def _perceptual_gradient(call: Callable[[Tensor], Tensor], x: Tensor) -> np.ndarray:
    """Of the mean square of the first images' features with respect to those images."""
    x = x.detach().requires_grad_()
    call(x)[:CHECKED_IMAGES].square().mean().backward()
    assert x.grad is not None
    return _array([x.grad[:CHECKED_IMAGES]])


def reference_file(spec: Spec, cache: Path) -> Path:
    """The gradient in float64, by plain torch on the CPU."""
    few = Spec(**{**spec.as_dict(), "batch": CHECKED_IMAGES})

    def write(path: Path) -> None:
        model = engine_torch.plain(few, cache).double()
        x = torch.from_numpy(images(few)).double()
        if few.part == "whole":
            found = _training_gradient(model, model, x, torch.from_numpy(labels(few)))
        else:
            found = _perceptual_gradient(model.requires_grad_(False), x)
        with open(path, "wb") as file:
            np.save(file, found)

    return made(cache / f"gradient-cuda-{few.part}-{few.key}-n{CHECKED_IMAGES}.npy", write)


def build(
    spec: Spec, cache: Path, ours: bool = False, layout: str = "channels_last", tuned: bool = False,
    mode: str | None = None,
) -> Runner:  # fmt: skip
    """Args: as gpu.engines.build."""
    choice.set_precision(spec.dtype)
    torch.backends.cudnn.benchmark = tuned
    training = spec.part == "whole"
    model = network(spec, cache, ours, layout, DROPOUT if training else 0.0)
    call = torch.compile(model, mode=mode, dynamic=False) if mode else model
    x = placed(spec, layout)(images(spec))
    if not training:
        model.eval().requires_grad_(False)
        return Runner(lambda _: x.requires_grad_(), lambda x: _perceptual(call, x), lambda y: y,
                      lambda: _perceptual_gradient(call, x), clock())  # fmt: skip
    # fused: torch's fastest SGD, for everyone.
    optimiser = torch.optim.SGD(
        model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, fused=choice.DEVICE != "cpu"
    )
    expected = torch.from_numpy(labels(Spec(**{**spec.as_dict(), "batch": max(spec.batch, CHECKED_IMAGES)})))
    expected = expected.to(choice.DEVICE)

    def step(x: Tensor) -> Tensor:
        loss = F.cross_entropy(call(x), expected[: spec.batch])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss.detach()

    def check() -> np.ndarray:
        found = _training_gradient(model, call, x, expected)
        model.train()
        return found

    return Runner(lambda _: x, step, lambda loss: loss.float().cpu().numpy(), check, clock())


def _perceptual(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x.grad = None
    loss = call(x).square().mean()
    loss.backward()
    return loss.detach()
