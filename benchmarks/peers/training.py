"""A training step, forward, cross-entropy, backward, SGD, of vggfast's module and of torch's layers: in float32, or
under autocast for bfloat16 with weights and their update in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peers import engine_torch
from peers.face import Runner
from peers.network import Spec, images, labels, made

CHECKED_IMAGES = 2  # the gradient in float64 is dear
DROPOUT = 0.5
# So small that some hundred steps on random images leave the network as it is; the arithmetic is the same.
RATE = 1e-6


def _checked(spec: Spec) -> Spec:
    return Spec(**{**spec.as_dict(), "batch": CHECKED_IMAGES})


def loss_of(model: Callable[[Tensor], Tensor], x: Tensor, expected: Tensor, spec: Spec) -> Tensor:
    """Cross-entropy; the network runs under autocast where the dtype is bf16."""
    with torch.autocast("cpu", torch.bfloat16, enabled=spec.dtype == "bf16"):
        y = model(x)
    return F.cross_entropy(y.to(x.dtype), expected)


def gradient(model: nn.Module, spec: Spec, memory: torch.memory_format, dtype: torch.dtype) -> np.ndarray:
    """The gradients of all parameters in a row, dropout off, on the first images."""
    spec = _checked(spec)
    model.zero_grad()
    x = torch.from_numpy(images(spec)).to(dtype=dtype, memory_format=memory)
    for module in model.train().modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    loss_of(model, x, torch.from_numpy(labels(spec)), spec).backward()
    gradients = [p.grad.contiguous().reshape(-1).numpy() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return np.concatenate(gradients)


def reference_file(spec: Spec, cache: Path) -> Path:
    """The gradients in float64, by plain torch."""

    def write(path: Path) -> None:
        model = engine_torch.plain(spec, cache).double()
        with open(path, "wb") as file:
            np.save(file, gradient(model, spec, torch.contiguous_format, torch.float64))

    return made(cache / f"gradient-{spec.key}-n{CHECKED_IMAGES}.npy", write)


def network(spec: Spec, cache: Path, ours: bool, memory: torch.memory_format) -> nn.Module:
    """The network to train, in training mode."""
    if ours:
        from peers import engine_vggfast

        return engine_vggfast.module(spec, cache, DROPOUT).train()
    return engine_torch.plain(spec, cache, DROPOUT).to(memory_format=memory)


def build(spec: Spec, cache: Path, ours: bool = False, layout: str = "channels_last", compiled: bool = False) -> Runner:
    """Args: `ours` takes vggfast.VGG; else torch's layers in `layout`, `compiled` by inductor or not."""
    torch.set_num_threads(spec.threads)
    memory = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
    model = network(spec, cache, ours, memory)
    # Static shapes: the smaller batch of the check must not make the timed graph a general one.
    call = torch.compile(model, dynamic=False) if compiled else model
    # fused: torch's fastest SGD, for everyone.
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, fused=True)
    expected = torch.from_numpy(labels(spec))

    def step(x: Tensor) -> Tensor:
        loss = loss_of(call, x, expected, spec)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss.detach()

    def check() -> np.ndarray:
        found = gradient(call, spec, memory, torch.float32)
        model.train()
        return found

    return Runner(
        lambda x: torch.from_numpy(x).contiguous(memory_format=memory), step, lambda loss: loss.numpy(), check
    )
